"""What lies in the folder of a run's checkpoints: which are committed, what they say of themselves, which are kept."""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from pipeline.errors import Refused
from pipeline.storage import publish, sync_folder, writing

COMMIT_NAME = "COMMITTED.json"
FORMAT = 2
READ_BYTES = 16 << 20


class Extent(NamedTuple):
    """A part of a flattened parameter."""

    parameter: int  # its place in `Committed.shapes`: with thousands of ranks there are a million of these
    start: int
    length: int


@dataclass(frozen=True)
class WrittenFile:
    """One file of a checkpoint, as it was read back."""

    name: str
    num_bytes: int
    crc32c: int
    extents: list[Extent]  # that are in it


@dataclass(frozen=True)
class Committed:
    """What a commit mark says."""

    step: int
    ranks: int
    facts: dict[str, Any]  # of the run, for those who use its weights
    counters: dict[str, Any]
    shapes: dict[str, list[int]]  # of the trained parameters
    files: list[WrittenFile]
    format: int = FORMAT


def begin(final: Path) -> Path | None:
    """An empty folder to write a checkpoint in; None where it is committed already. What crashes left is removed."""
    if (final / COMMIT_NAME).exists():
        return None
    if final.exists():
        raise Refused(f"{final}: there is no {COMMIT_NAME} in it, so nobody knows what it is; move it away")
    aside = name_aside(final)
    with writing(aside):
        sweep(final.parent)
        aside.mkdir(parents=True)
    return aside


def name_aside(final: Path) -> Path:
    """A new name for what is not whole, or no longer: no other process, not even one taken for dead, uses it."""
    return final.with_name(f"{final.name}.{uuid.uuid4().hex}.tmp")


def write_synced(path: Path, content: bytes) -> None:
    """A file that survives a power cut as soon as its folder does. Refused where it cannot be written."""
    with writing(path), open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def commit(aside: Path, final: Path, committed: Committed) -> None:
    """Mark a checkpoint whose files are all there, and give it its name."""
    held = Counter[int]()
    for file in committed.files:
        if (aside / file.name).stat().st_size != file.num_bytes:
            raise RuntimeError(f"{aside / file.name}: changed while the checkpoint was written")
        for extent in file.extents:
            held[extent.parameter] += extent.length
    for number, (name, shape) in enumerate(committed.shapes.items()):
        if held[number] != prod(shape):
            raise RuntimeError(f"{aside}: the ranks wrote {held[number]} elements of {name}, which has {prod(shape)}")
    publish(aside / COMMIT_NAME, json.dumps(asdict(committed)).encode())
    settle(aside, final)


def settle(aside: Path, final: Path) -> None:
    """Give a marked checkpoint its name, for good."""
    with writing(final):
        os.replace(aside, final)
        sync_folder(final.parent)


def read_committed(checkpoint: Path) -> Committed:
    """What a checkpoint's mark says; Refused where it is damaged, or an earlier version wrote it."""
    return parse_committed((checkpoint / COMMIT_NAME).read_bytes(), str(checkpoint))


def parse_committed(mark: bytes, where: str) -> Committed:
    """As `read_committed`, from the content of the mark."""
    try:
        told = json.loads(mark)
        if told["format"] != FORMAT:
            raise Refused(f"{where}: written by another version of latentmill; use another train.out")
        files = [{**file, "extents": [Extent(*one) for one in file["extents"]]} for file in told["files"]]
        return Committed(**{**told, "files": [WrittenFile(**file) for file in files]})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise Refused(f"{where}: {COMMIT_NAME} is damaged; {REMOVE_IT}") from error


REMOVE_IT = "delete the folder, and the run goes on from the one before"


def find_damage(checkpoint: Path, files: Iterable[WrittenFile]) -> str | None:
    """Say which file is not as it was written, if any; reads them whole."""
    for file in files:
        path = checkpoint / file.name
        if not path.exists():
            return f"{path}: is missing; {REMOVE_IT}"
        if path.stat().st_size != file.num_bytes or crc32c_of(path) != file.crc32c:
            return f"{path}: is not as it was written; {REMOVE_IT}"
    return None


def list_committed(folder: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first."""
    return sorted(mark.parent for mark in folder.glob("step-*/" + COMMIT_NAME) if mark.parent.suffix != ".tmp")


def step_of(name: str) -> int:
    """How many steps were done when the checkpoint of this name was written."""
    return int(name.removeprefix("step-"))


def superseded(steps: Sequence[int], keep_last: int, keep_every: int) -> list[int]:
    """Of the checkpoints of these steps, oldest first, those to delete: neither among the newest nor of every so many
    steps."""
    return [step for step in steps[:-keep_last] if not (keep_every and step % keep_every == 0)]


def prune(folder: Path, keep_last: int, keep_every: int, spared: Collection[Path] = ()) -> None:
    """Delete superseded checkpoints, but those `spared`, and what crashes left."""
    found = {step_of(path.name): path for path in list_committed(folder)}
    for step in superseded(list(found), keep_last, keep_every):
        if found[step] not in spared:
            os.replace(found[step], name_aside(found[step]))  # first its name, so that a half deleted one is none
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what is not whole, or no longer."""
    for aside in folder.glob("step-*.tmp"):
        remove(aside)


def remove(aside: Path) -> None:
    """Delete a folder, be it that another process does so too."""
    shutil.rmtree(aside, ignore_errors=True)


def crc32c_of(path: Path) -> int:
    """Of all bytes of a file."""
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            checksum.update(content)
    return int.from_bytes(checksum.digest(), "big")
