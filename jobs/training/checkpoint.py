"""Checkpoints that are either whole or not there, and that any number of ranks can read.

`step-N/` holds one safetensors file per rank, with the pieces of each parameter that the rank held: its float32 master
weights, Adam's two moments and the average. `COMMITTED.json` says what belongs to it and which piece is where. It is
written aside as `step-N.tmp`, read back and compared, marked and then renamed: a folder without the suffix is whole.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from jobs.training.engine import Engine
from pipeline.errors import Refused
from pipeline.storage import publish, sync_folder, while_room

COMMIT_NAME = "COMMITTED.json"
UNTRAINED_NAME = "untrained.safetensors"
FORMAT = 1
READ_BYTES = 16 << 20


@dataclass(frozen=True)
class WrittenFile:
    """One file of a checkpoint, as it was read back."""

    name: str
    num_bytes: int
    crc32c: int
    starts: dict[str, int]  # where the piece of each parameter that is in it begins


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


def save(engine: Engine, folder: Path, step: int, facts: dict[str, Any]) -> Path:
    """Commit a checkpoint of all ranks as `folder/step-<step>`; called by every rank.

    Where it is there already nothing is done: the same step of the same run is the same state.
    """
    final = folder / f"step-{step:08d}"
    if (final / COMMIT_NAME).exists():
        return final
    aside, rank = folder / f"{final.name}.tmp", dist.get_rank()
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    written = [_write_pieces(engine, aside / f"rank-{rank:05d}.safetensors")]
    untrained = engine.untrained()
    if rank == 0:
        written.append(_write(aside / UNTRAINED_NAME, untrained, {}))
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, written)  # a barrier too
    if rank == 0:
        files = [file for one in everywhere for file in one]
        shapes = {name: list(shape) for name, shape in engine.shapes.items()}
        commit(aside, final, Committed(step, len(everywhere), facts, engine.counters, shapes, files))
    dist.barrier()
    return final


def _write_pieces(engine: Engine, path: Path) -> WrittenFile:
    """Write what this rank holds; of what every rank holds, its share."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = [piece for number, piece in enumerate(engine.pieces()) if not piece.is_shared or number % world == rank]
    tensors = {f"{state}/{piece.name}": tensor for piece in mine for state, tensor in piece.tensors.items()}
    return _write(path, tensors, {piece.name: piece.start for piece in mine})


def _write(path: Path, tensors: dict[str, Tensor], starts: dict[str, int]) -> WrittenFile:
    """Write a file, and read it back: what is on disk is what is in memory."""
    with while_room(f"{path}: cannot be written"):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    with safe_open(path, framework="pt") as file:
        if wrong := [name for name, tensor in tensors.items() if not torch.equal(file.get_tensor(name), tensor.cpu())]:
            raise RuntimeError(f"{path}: {len(wrong)} tensors read back differ from those written, such as {wrong[0]}")
    return WrittenFile(path.name, path.stat().st_size, crc32c_of(path), starts)


def commit(aside: Path, final: Path, committed: Committed) -> None:
    """Mark a checkpoint whose files are all there, and give it its name."""
    if wrong := [file.name for file in committed.files if (aside / file.name).stat().st_size != file.num_bytes]:
        raise RuntimeError(f"{aside}: {', '.join(wrong)} changed while the checkpoint was written")
    publish(aside / COMMIT_NAME, json.dumps(asdict(committed)).encode())
    os.replace(aside, final)
    sync_folder(final.parent)


def load(engine: Engine, checkpoint: Path) -> int:
    """Restore all that is trained from a committed checkpoint of any number of ranks; called by every rank.

    Returns the number of steps done. Refused where a file is damaged or the model is another one.
    """
    told = read_committed(checkpoint)
    before, now = {name: tuple(shape) for name, shape in told.shapes.items()}, engine.shapes
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise Refused(
            f"{checkpoint}: trains other parameters than this run, such as {changed[0]}; change [model] and "
            f"train.lr_scales back, or use another train.out"
        )
    reader = PieceReader(checkpoint, told)
    for piece in engine.pieces():
        for state, tensor in piece.tensors.items():
            reader.read(state, piece.name, piece.start, tensor)
    engine.restored(told.counters)
    return told.step


class PieceReader:
    """Reads stretches of flattened parameters from the files that hold them; each file is checked before its first."""

    def __init__(self, checkpoint: Path, told: Committed) -> None:
        self.checkpoint, self.told = checkpoint, told
        self.checked: set[str] = set()
        self.holders: dict[str, list[tuple[int, WrittenFile]]] = {}
        for file in told.files:
            for name, start in file.starts.items():
                self.holders.setdefault(name, []).append((start, file))

    def read(self, state: str, name: str, start: int, into: Tensor) -> None:
        """Fill `into` (n,) with the parameter's elements from `start` on."""
        filled = 0
        for first, file in self.holders[name]:
            self._check(file)
            with safe_open(self.checkpoint / file.name, framework="pt") as opened:
                stored = opened.get_slice(f"{state}/{name}")
                begin, end = max(start, first), min(start + len(into), first + stored.get_shape()[0])
                if begin < end:
                    into[begin - start : end - start].copy_(stored[begin - first : end - first])
                    filled += end - begin
        if filled != len(into):
            raise Refused(f"{self.checkpoint}: holds {filled} of {len(into)} elements of {name}; {DELETE_IT}")

    def _check(self, file: WrittenFile) -> None:
        if file.name not in self.checked:
            path = self.checkpoint / file.name
            found = crc32c_of(path) if path.exists() and path.stat().st_size == file.num_bytes else None
            if found != file.crc32c:
                raise Refused(f"{path}: is not as it was written; {DELETE_IT}")
            self.checked.add(file.name)


DELETE_IT = "delete the folder to resume from an earlier checkpoint"


def read_committed(checkpoint: Path) -> Committed:
    """What a checkpoint's mark says; Refused where an earlier version wrote it."""
    told = json.loads((checkpoint / COMMIT_NAME).read_text())
    if told.get("format") != FORMAT:
        raise Refused(f"{checkpoint}: written by another version of latentmill; use another train.out")
    return Committed(**{**told, "files": [WrittenFile(**file) for file in told["files"]]})


def list_committed(folder: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first."""
    return sorted(mark.parent for mark in folder.glob("step-*/" + COMMIT_NAME) if mark.parent.suffix != ".tmp")


def step_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Delete all but the newest checkpoints and those of every so many steps, and what crashes left."""
    kept = [path for path in list_committed(folder) if not (keep_every and step_of(path) % keep_every == 0)]
    for old in kept[:-keep_last]:
        aside = old.with_name(f"{old.name}.tmp")  # first its name, so that a half deleted one is none
        os.replace(old, aside)
    for aside in folder.glob("step-*.tmp"):
        shutil.rmtree(aside)


def crc32c_of(path: Path) -> int:
    """Of all bytes of a file."""
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            checksum.update(content)
    return int.from_bytes(checksum.digest(), "big")
