"""The schedule over ten million clips: seconds and memory of making a view, opening it, and of its batches.

Every line is a process of its own. `own` is its memory at the peak, without what its imports took and without files
that it maps; `alone` counts the pages of those too that no other process maps, at the end.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange

from models.text import describe_text_encoder
from models.text.interface import TextSettings
from models.vae import load_vae
from pipeline.cache import Cache
from pipeline.lengths import Entry, lengths_of
from pipeline.recipe import Recipe, bind_recipe
from pipeline.records import Sample, TextSample, Video
from pipeline.schedule import Schedule
from pipeline.tables import schema_of
from pipeline.text_column import text_origin, write_null_text, write_text_origin
from pipeline.training_set import open_training_set

NUM_CLIPS, MORE_CLIPS = 10_000_000, 1_000_000  # of the two caches
SHARD_CLIPS, VIDEO_CLIPS = 1000, 5
WRITTEN_ROWS = 1 << 20
BATCHES = 2000
SIZES = ((240, 424), (256, 256), (480, 848), (360, 640))
RECIPE = Recipe(load_vae("dct").spec, 24.0, SIZES, 6)
TABLE = {"*": {17: Entry(1, 1, 64), 51: Entry(1, 0.5, 20), 102: Entry(1, 0.33, 10)}}
WAYS = {  # name -> filter, how often the second cache is shown
    "one cache": ("", 0.0),
    "a filter by its index": ("motion > 0.1 and not dark", 0.0),
    "a filter by its manifest": ("motion > 0.1 and codec == 'h264'", 0.0),
    "two caches": ("", 2.5),
}
PLAIN = {pa.string(): "", pa.int64(): 1, pa.float64(): 24.0, pa.bool_(): False}  # in columns that do not matter
DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def main() -> None:
    """Write the caches, then make, open, and open beside another process that has it open, each way."""
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        write_cache(Cache(Path(folder) / "cache"), NUM_CLIPS)
        write_cache(Cache(Path(folder) / "more"), MORE_CLIPS)
        print(f"indexes of {NUM_CLIPS} and {MORE_CLIPS} clips written in {time.perf_counter() - began_s:.0f} s")
        for name in WAYS:
            print(name)
            _run("made", folder, name).wait()
            first = _run("opened", folder, name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert first.stdout and first.stdin
            print(first.stdout.readline().decode(), end="", flush=True)
            _run("beside", folder, name).wait()
            first.stdin.close()
            first.wait()


def _run(told: str, folder: str, name: str, stdin: int = subprocess.DEVNULL, stdout: int | None = None):
    code = f"from tests.benchmarks.bench_schedule import measure; measure({told!r}, {folder!r}, {name!r})"
    environment = {**os.environ, "TMPDIR": folder}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=stdin, stdout=stdout)


def measure(told: str, folder: str, name: str) -> None:
    """Open what a run trains on, and draw its first batches; print what that took, and end with the standard input."""
    filter, times = WAYS[name]
    mixed = {Cache(Path(folder) / "more"): times} if times else {}
    with _peak() as own:
        began_s = time.perf_counter()
        data = open_training_set(Cache(Path(folder) / "cache"), RECIPE, "bytes", filter, mixed=mixed)
        opened_s, opened_bytes = time.perf_counter(), own()
        schedule = Schedule(data.schedule_rows(), lambda kind: lengths_of(kind, TABLE, (8, 8), lambda *_: 16), seed=0)
        schedule.batch(0, 0)
        ready_s = time.perf_counter()
        next_s, read_s = [], []
        for step in range(1, BATCHES):
            at_s = time.perf_counter()
            batch = schedule.batch(0, step)
            drawn_s = time.perf_counter()
            data.rows(batch.rows)
            next_s.append(drawn_s - at_s)
            read_s.append(time.perf_counter() - drawn_s)
        print(
            f"{told:>8}: {opened_s - began_s:6.2f} s, own {opened_bytes / 1e6:4.0f} MB; first batch "
            f"{ready_s - opened_s:5.2f} s, own {own() / 1e6:4.0f} MB; next {statistics.median(next_s) * 1e6:3.0f} us, "
            f"rows {statistics.median(read_s) * 1e6:3.0f} us; alone {_alone() / 1e6:5.0f} MB; {data.num_clips} clips",
            flush=True,
        )
    sys.stdin.read()


@contextmanager
def _peak() -> Iterator:
    """Tells the most memory so far that is this process's own and no file's, beyond what it had before: bytes."""
    before, seen, done = _anonymous(), [0], Event()

    def look() -> int:
        seen[0] = max(seen[0], _anonymous() - before)
        return seen[0]

    def sample() -> None:
        while not done.wait(0.01):
            look()

    thread = Thread(target=sample)
    thread.start()
    try:
        yield look
    finally:
        done.set()
        thread.join()


def _anonymous() -> int:
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def _alone() -> int:
    return psutil.Process().memory_full_info().uss


def write_cache(cache: Cache, num_clips: int) -> None:
    """Both indexes, the manifest, and what says how they were made; no shards."""
    bind_recipe(cache, RECIPE)
    encoder = describe_text_encoder("bytes", None, TextSettings())
    write_null_text(cache.null_text("bytes"), encoder.load())
    write_text_origin(cache, text_origin(encoder, None))
    (Path(str(cache.root)) / "manifest").mkdir()
    tables = {cache.index: Sample, cache.text_index("bytes"): TextSample, cache.manifest: Video}
    for path, row_type in tables.items():
        num_rows, columns = (
            (num_clips // VIDEO_CLIPS, video_columns) if row_type is Video else (num_clips, clip_columns)
        )
        schema = schema_of(row_type, {"recipe": RECIPE.fingerprint(), "shards_sha256": str(num_clips)})
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for first in range(0, num_rows, WRITTEN_ROWS):
                rows = np.arange(first, min(num_rows, first + WRITTEN_ROWS))
                found = {field.name: PLAIN[field.type] for field in schema} | columns(rows)
                arrays = [_column(found[field.name], len(rows), field.type) for field in schema]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def clip_columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Those columns of both indexes that matter here, for clips by number; texts are (rows, characters)."""
    random, shard = np.random.default_rng(len(rows)), rows // SHARD_CLIPS
    height, width = rearrange(np.array(SIZES)[shard % len(SIZES)], "rows side -> side rows")
    size = np.concatenate([_digits(height, 3), _letters("x", rows), _digits(width, 3)], axis=1)
    dash, video, num_chunks = (
        _letters("-", rows),
        _digits(rows // VIDEO_CLIPS, 16, 16),
        random.integers(1, 7, len(rows)),
    )
    frame = _digits(rows % VIDEO_CLIPS * 102, 8)
    return {
        "key": np.concatenate([video, dash, frame, dash, size], axis=1),
        "shard": np.concatenate([size, _letters("/0000-", rows), _digits(shard, 6)], axis=1),
        "video": video,
        "caption": np.concatenate(
            [_letters("a person does something, a text of some words with number ", rows), video], 1
        ),
        "height": height,
        "width": width,
        "num_chunks": num_chunks,
        "num_frames": 17 * num_chunks,
        "valid_frames": 17 * num_chunks,
        "num_tokens": random.integers(1, 300, len(rows)),
        "latent_offset": rows % SHARD_CLIPS * 1_000_000,
        "text_offset": rows % SHARD_CLIPS * 2_000_000,
        "latent_crc32c": random.integers(0, 1 << 32, len(rows)),
        "text_crc32c": random.integers(0, 1 << 32, len(rows)),
        "motion": random.random(len(rows)),
        "luminance": random.random(len(rows)),
    }


def video_columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"id": _digits(rows, 16, 16), "codec": _letters("h264", rows), "caption": _digits(rows, 64)}


def _digits(numbers: np.ndarray, count: int, base: int = 10) -> np.ndarray:
    """Numbers as text: (rows, count) uint8."""
    places = rearrange(base ** np.arange(count)[::-1], "count -> 1 count")
    return DIGITS[rearrange(numbers, "rows -> rows 1") // places % base]


def _letters(text: str, rows: np.ndarray) -> np.ndarray:
    return np.tile(np.frombuffer(text.encode(), np.uint8), (len(rows), 1))


def _column(values: np.ndarray | str | float, num_rows: int, kind: pa.DataType) -> pa.Array:
    """(rows,) numbers, (rows, characters) texts, or one value for all -> a column."""
    if not isinstance(values, np.ndarray):
        return pa.repeat(pa.scalar(values, kind), num_rows)
    if values.ndim == 1:
        return pa.array(values, kind)
    ends = np.arange(num_rows + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.StringArray.from_buffers(num_rows, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(values)))
