"""What training reads of a cache's two indexes: a few bytes for each clip, in files that all of a node map."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from einops import rearrange

from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.filter import keys_in, matches, names_in
from pipeline.index import check_index
from pipeline.lengths import Bucket
from pipeline.location import Place
from pipeline.plan import read_tombstones
from pipeline.recipe import Recipe
from pipeline.records import Sample, TextSample, Video
from pipeline.scratch import scratch_folder
from pipeline.split import ALL, Split
from pipeline.storage import publish, while_room
from pipeline.tables import read_parts, read_table

FORMAT = 2  # of the files below; another one is made anew
FILES = ("rows", "kind", "view.json")  # the last one says that the others are whole
UNUSED_S = 7 * 24 * 3600.0  # after which a view that nobody has opened is removed
PART_ROWS = 1 << 16  # of the indexes, that are in memory together
HASHED_BYTES = 16 << 20  # of the manifest, at a time
KEY_BYTES = 48
MEMBER = ("offset", "bytes", "crc32c")
ROW = np.dtype(
    [
        ("key", f"S{KEY_BYTES}"),
        ("shard", np.int32),  # into the view's names of shards
        ("height", np.int32),
        ("width", np.int32),
        ("num_chunks", np.int32),
        ("num_frames", np.int32),
        ("valid_frames", np.int32),
        ("num_tokens", np.int32),
        ("fps", np.float32),
        *((f"latent_{fact}", np.int64) for fact in MEMBER),
        *((f"text_{fact}", np.int64) for fact in MEMBER),
    ],
    align=True,
)
COPIED = ROW.names[2:]  # pyright: ignore[reportOptionalSubscript]  # as they are, from columns of the same names
OF_INDEX = {field.name for field in fields(Sample)}
OF_MANIFEST = {field.name for field in fields(Video)} - OF_INDEX
Match = Callable[[pa.Table], np.ndarray]


class NothingLeft(Refused):
    """There are no clips, or none to train on."""


@dataclass(frozen=True)
class View:
    """The clips of one cache that are trained on, in the order of its index; rows of one shard follow each other."""

    folder: Path  # of its files; the same clips are in the same one
    rows: np.ndarray  # (clips,) ROW, mapped
    kind: np.ndarray  # (clips,) uint16, mapped: into `kinds`
    kinds: tuple[Bucket, ...]
    shards: tuple[str, ...]
    shard_ends: np.ndarray  # (shards,) int64
    num_removed: int  # clips left out because their videos left the source
    num_filtered: int  # clips left out by the filter
    num_held_out: int  # clips left out because they are of the other side of the split

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is mapped there, not copied."""
        return _map, (self.folder,)


def open_view(cache: Cache, recipe: Recipe, text_encoder: str, filter: str = "", split: Split = ALL) -> View:
    """The clips of a cache on one side of a split, without those of removed videos and those that `filter` does not
    match.

    It is made once for each state of the cache, filter and side, in this machine's scratch folder, then only mapped.
    Refused where a column is missing, made by another recipe or behind the other, or where no clip is left.
    """
    identity = _identity(cache, recipe, text_encoder, filter, split)
    views = scratch_folder("views")
    folder = views / identity
    with _locked(views / f"{identity}.lock"):
        if not all((folder / name).exists() for name in FILES):
            _sweep(views)
            try:
                with while_room(f"{folder}: cannot be written", "set TMPDIR"):
                    told = _write(folder, cache, text_encoder, filter, split)
                if identity != _identity(cache, recipe, text_encoder, filter, split):
                    raise Refused(f"{cache.root}: changed while its index was read; run again when that is done")
                publish(folder / "view.json", json.dumps(told).encode())
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return _map(folder)


def _identity(cache: Cache, recipe: Recipe, text_encoder: str, filter: str, split: Split) -> str:
    """A digest of all that decides what is in a view."""
    facts = [FORMAT, filter, split, recipe.fingerprint(), text_encoder]
    for index, verb in ((cache.index, "encode"), (cache.text_index(text_encoder), "text")):
        facts.append(check_index(index, recipe, verb)["shards_sha256"])
    facts.append(sorted(read_tombstones(cache)))
    if names_in(filter) - OF_INDEX:
        facts.append(_digest(_manifest(cache, filter)))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _digest(place: Place) -> str:
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while content := file.read(HASHED_BYTES):
            digest.update(content)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the others wait."""
    while True:
        with open(path, "w") as file:  # which makes it as young as its view's last use
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else it was swept while we waited
                yield
                return


def _sweep(views: Path) -> None:
    """Remove what nobody has opened for long; who has it mapped keeps it."""
    for lock in views.glob("*.lock"):
        with suppress(FileNotFoundError, BlockingIOError), open(lock, "r+b") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > UNUSED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()


def _write(folder: Path, cache: Cache, text_encoder: str, filter: str, split: Split) -> dict[str, Any]:
    """Write a view's rows, part by part of the index; returns what `view.json` is to say."""
    for name in FILES:  # what a killed process left, or who cleans up, may be mapped: its bytes must stay
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    match, removed = _matcher(cache, filter), pa.array(sorted(read_tombstones(cache)), pa.string())
    kinds: dict[Bucket, int] = {}
    shards: dict[str, int] = {}
    ends: list[int] = []
    num_rows, num_removed, num_filtered, num_held_out = 0, 0, 0, 0
    with open(folder / "rows", "wb") as rows_file, open(folder / "kind", "wb") as kind_file:
        for samples, texts in _parts(cache, text_encoder, names_in(filter) & OF_INDEX):
            present = ~pc.call_function("is_in", [samples["video"]], pc.SetLookupOptions(removed)).to_numpy()
            matched, own = match(samples), split.takes(_fixed_width(samples["video"]))
            num_removed += int((~present).sum())
            num_filtered += int((present & ~matched).sum())
            num_held_out += int((present & matched & ~own).sum())
            kept = pa.array(present & matched & own)
            rows = _rows(samples.filter(kept), texts.filter(kept), shards)
            rows_file.write(rows.data)
            kind_file.write(_kinds(rows, kinds).data)
            ends = _extend_ends(ends, rows["shard"], num_rows)
            num_rows += len(rows)
        for file in (rows_file, kind_file):
            file.flush()
            os.fsync(file.fileno())
    if not num_rows + num_removed + num_filtered + num_held_out:
        raise NothingLeft(f"{cache.index}: holds no clips; everything is in the quarantine")
    if not num_rows:
        raise NothingLeft(
            f"{cache.index}: of {num_removed + num_filtered + num_held_out} clips none is left to train on: "
            f"{num_removed} are of videos that left the source, {num_filtered} do not match train.filter {filter!r}, "
            f"{num_held_out} are held out by train.held_out; change these, or bring the videos back"
        )
    return {
        "kinds": list(kinds),
        "shards": list(shards),
        "shard_ends": ends,
        "num_removed": num_removed,
        "num_filtered": num_filtered,
        "num_held_out": num_held_out,
    }


def _parts(cache: Cache, text_encoder: str, filtered_by: set[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Both indexes, so many rows at a time that memory is bounded: what a view and its filter need of them."""
    index, text_index = cache.index, cache.text_index(text_encoder)
    behind = Refused(f"{text_index}: its captions are not those of the clips of {index}, in their order; run `text`")
    of_samples = sorted({"key", "shard", "video"} | OF_INDEX.intersection(COPIED) | filtered_by)
    of_texts = ["key", *(name for name in COPIED if name not in OF_INDEX)]
    parts = read_parts(index, Sample, of_samples, PART_ROWS)
    text_parts = read_parts(text_index, TextSample, of_texts, PART_ROWS)
    for samples, texts in zip_longest(parts, text_parts):
        if samples is None or texts is None or samples["key"] != texts["key"]:
            raise behind
        yield samples, texts


def _matcher(cache: Cache, filter: str) -> Match:
    """Tells of a part of the index which of its rows the filter matches, (rows,) bool.

    Names that the index does not have are columns of the manifest, else of the user's own table.
    """
    names = names_in(filter)
    if names <= OF_INDEX:
        return lambda samples: matches(filter, samples)
    asked = {"extra"} if names - OF_INDEX - OF_MANIFEST else set()
    videos = read_table(_manifest(cache, filter), Video, sorted({"id"} | asked | names & OF_MANIFEST))
    known = OF_INDEX | OF_MANIFEST | (keys_in(videos["extra"]) if asked else set())

    def match(samples: pa.Table) -> np.ndarray:
        here = pc.call_function("is_in", [videos["id"]], pc.SetLookupOptions(samples["video"].unique()))
        own = videos.filter(here)  # a table of few is looked up in faster than one of all
        rows = pc.call_function("index_in", [samples["video"]], pc.SetLookupOptions(own["id"]))
        for name in own.column_names:
            samples = samples.append_column(name, own[name].take(rows))
        return matches(filter, samples, known)

    return match


def _manifest(cache: Cache, filter: str) -> Place:
    if not cache.manifest.exists():
        raise Refused(f"{cache.manifest}: not found, and train.filter {filter!r} needs it; run `scan`, or empty it")
    return cache.manifest


def _rows(samples: pa.Table, texts: pa.Table, shards: dict[str, int]) -> np.ndarray:
    """Rows of both indexes -> (rows,) ROW; shards that are new get the next numbers."""
    rows = np.zeros(samples.num_rows, ROW)
    names = samples["shard"].combine_chunks().dictionary_encode()
    numbers = [shards.setdefault(name, len(shards)) for name in names.dictionary.to_pylist()]
    rows["shard"] = np.array(numbers, np.int32)[names.indices.to_numpy()]
    rows["key"] = _fixed_width(samples["key"])
    for name in COPIED:
        rows[name] = (samples if name in OF_INDEX else texts)[name].to_numpy()
    return rows


def _fixed_width(keys: pa.ChunkedArray) -> np.ndarray:
    """Keys as (rows,) S48."""
    longest = pc.call_function("max", [pc.call_function("binary_length", [keys])]).as_py() or 0
    if longest > KEY_BYTES:
        raise Refused(f"the index: found a key of {longest} bytes, wanted {KEY_BYTES} at most; run `verify --repair`")
    padded = pc.call_function("ascii_rpad", [keys], pc.PadOptions(KEY_BYTES, "\0")).combine_chunks()
    return np.frombuffer(padded.buffers()[2], f"S{KEY_BYTES}", len(padded)) if len(padded) else np.zeros(0, "S1")


def _kinds(rows: np.ndarray, known: dict[Bucket, int]) -> np.ndarray:
    """The kind of each row, (rows,) uint16; those that are new get the next numbers."""
    packed = pa.py_buffer(np.stack([rows[name] for name in Bucket._fields], axis=1))  # (rows, fields) int32
    whole = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * len(Bucket._fields)), len(rows), [None, packed])
    coded = whole.dictionary_encode()  # by hashing, in a hundredth of the time that NumPy takes to sort records
    found = np.frombuffer(coded.dictionary.buffers()[1], np.int32, len(coded.dictionary) * len(Bucket._fields))
    kinds = rearrange(found, "(kinds field) -> kinds field", field=len(Bucket._fields)).tolist()
    numbers = [known.setdefault(Bucket(*kind), len(known)) for kind in kinds]
    return np.array(numbers, np.uint16)[coded.indices.to_numpy()]


def _extend_ends(ends: list[int], shard: np.ndarray, first: int) -> list[int]:
    """Where the rows of each shard end, with those of one part more, whose first row has the number `first`."""
    last = np.flatnonzero(np.diff(shard, append=-1)) + 1 + first
    begun = ends[:-1] if len(shard) and len(ends) > shard[0] else ends  # its last shard goes on in this part
    return begun + last.tolist()


def _map(folder: Path) -> View:
    told = json.loads((folder / "view.json").read_text())
    return View(
        folder=folder,
        rows=np.memmap(folder / "rows", ROW, "r"),
        kind=np.memmap(folder / "kind", np.uint16, "r"),
        kinds=tuple(Bucket(*kind) for kind in told["kinds"]),
        shards=tuple(told["shards"]),
        shard_ends=np.array(told["shard_ends"], np.int64),
        num_removed=told["num_removed"],
        num_filtered=told["num_filtered"],
        num_held_out=told["num_held_out"],
    )
