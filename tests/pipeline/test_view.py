"""A view holds exactly the clips that are trained on, is made once for each state of a cache, and mends leftovers."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import view
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.location import place_of
from pipeline.records import Sample, TextSample, Tombstone, Video
from pipeline.split import ALL, Split
from pipeline.tables import write_records
from pipeline.view import COPIED, KEY_BYTES, UNUSED_S, View, open_view
from tests.indexes import RECIPE, make_sample, text_of, write_index, write_indexes, write_text_index
from tests.object_store import Bucket, Request, serve_bucket
from tests.shards import local

CAPTIONS = ["a red square", "", "ein grüner Kreis", "b", "two"]
VIDEOS = [
    Video(f"v{n}", f"/{n}", caption, 1, 1, "h264", 0, 999, 999, 99, 0.0, 4.0, 24.0, f'{{"rank": {n}}}')
    for n, caption in enumerate(CAPTIONS)
]
SAMPLES = [  # of the videos v0 to v4 in turn, in three shards of two sizes
    make_sample(number, shard=f"s{number // 5}", video=f"v{number % 5}", width=96 if number >= 10 else 64)
    for number in range(15)
]


@contextmanager
def scratch_in(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir()
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder for this test alone."""
    with scratch_in(tmp_path / "scratch"):
        yield tmp_path / "scratch"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache")
    write_indexes(cache, SAMPLES)
    return cache


def open_it(cache: Cache, filter: str = "", split: Split = ALL) -> View:
    return open_view(cache, RECIPE, "bytes", filter, split)


def upload(cache: Cache, bucket: Bucket) -> Cache:
    """The same cache in a store."""
    for path in local(cache.root).rglob("*.*"):
        bucket.put(f"cache/{path.relative_to(local(cache.root))}", path)
    return Cache(place_of(bucket.uri("cache")))


def remove(cache: Cache, *videos: str) -> None:
    write_records(cache.tombstones, Tombstone, [Tombstone(video, "") for video in videos])


def numbers(found: View) -> list[int]:
    return [int(key[1:]) for key in found.rows["key"].tolist()]


def check(found: View, samples: list[Sample]) -> None:
    """A view is of these clips: all that both indexes say of them, their kinds, and where their shards end."""
    assert [key.decode() for key in found.rows["key"].tolist()] == [sample.key for sample in samples]
    for row, kind, sample in zip(found.rows, found.kind, samples):
        said = {**asdict(text_of(sample)), **asdict(sample)}
        assert {name: row[name] for name in COPIED} == {name: said[name] for name in COPIED}
        assert found.shards[row["shard"]] == sample.shard
        assert all(getattr(found.kinds[kind], name) == said[name] for name in found.kinds[kind]._fields)
    ends = [n + 1 for n in range(len(samples)) if n + 1 == len(samples) or samples[n].shard != samples[n + 1].shard]
    assert found.shard_ends.tolist() == ends
    assert found.shards == tuple(dict.fromkeys(sample.shard for sample in samples))
    assert len(set(found.kinds)) == len(found.kinds)


HALF = 0.5  # of the videos, of which there are five
HELD_OUT = {"v0", "v1"}


clips = st.builds(
    lambda video, width, chunks, dark: {
        "video": f"v{video}",
        "width": width,
        "num_chunks": chunks,
        "num_frames": 17 * chunks,
        "valid_frames": 17 * chunks - video,
        "dark": dark,
    },
    st.integers(0, 4),
    st.sampled_from([64, 96, 128]),
    st.integers(1, 3),
    st.booleans(),
)
FILTERS: dict[str, Callable[[Sample], bool]] = {
    "": lambda sample: True,
    "not dark": lambda sample: not sample.dark,
    "num_chunks > 1 and width < 128": lambda sample: sample.num_chunks > 1 and sample.width < 128,
    "rank >= 2 or dark": lambda sample: int(sample.video[1:]) >= 2 or sample.dark,
    "'r' in caption": lambda sample: "r" in CAPTIONS[int(sample.video[1:])],
}


@settings(max_examples=60)  # each writes a cache
@given(
    st.lists(st.lists(clips, max_size=6), min_size=1, max_size=6),
    st.sets(st.integers(0, 4)),
    st.sampled_from(sorted(FILTERS)),
    st.integers(1, 9),
    st.sampled_from([ALL, Split(HALF), Split(HALF, held_out=True)]),
)
def test_a_view_is_of_the_clips_of_one_side_that_are_neither_removed_nor_filtered(
    shards: list[list[dict]], gone: set[int], filter: str, part_rows: int, split: Split
) -> None:
    """However the index is cut into the parts that are read together."""
    rows = [(f"64x{shard}", fields) for shard, rows in enumerate(shards) for fields in rows]
    samples = [make_sample(number, shard=shard, **fields) for number, (shard, fields) in enumerate(rows)]
    present = [sample for sample in samples if int(sample.video[1:]) not in gone]
    matching = [sample for sample in present if FILTERS[filter](sample)]
    kept = [sample for sample in matching if not split.share or (sample.video in HELD_OUT) == split.held_out]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "PART_ROWS", part_rows)
        cache = Cache(Path(folder) / "cache")
        write_indexes(cache, samples)
        write_records(cache.manifest, Video, reversed(VIDEOS))
        remove(cache, *(f"v{number}" for number in gone), "never planned")
        with scratch_in(Path(folder) / "scratch"):
            if not kept:
                with pytest.raises(Refused):
                    open_it(cache, filter, split)
                return
            found = open_it(cache, filter, split)
            check(found, kept)
            counts = (found.num_removed, found.num_filtered, found.num_held_out)
            assert counts == (len(samples) - len(present), len(present) - len(matching), len(matching) - len(kept))


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        ("", range(15)),
        ("rank >= 3", [3, 4, 8, 9, 13, 14]),
        ("width > 64 and codec == 'h264'", range(10, 15)),
        ("height == 999 or key == 'k4'", [4]),
        ("'red' in caption", [0, 5, 10]),
        ("not dark and num_chunks > 0 and rank != 2", [n for n in range(15) if n % 5 != 2]),
    ],
)
def test_the_filter_sees_the_index_then_the_manifest_then_the_users_columns(
    cache: Cache, filter: str, wanted: list[int]
) -> None:
    write_records(cache.manifest, Video, reversed(VIDEOS))
    found = open_it(cache, filter)
    assert numbers(found) == list(wanted)
    assert found.num_filtered == 15 - len(wanted)


def test_a_clip_is_counted_as_removed_or_as_filtered(cache: Cache) -> None:
    write_records(cache.manifest, Video, VIDEOS)
    remove(cache, "v1")
    found = open_it(cache, "rank > 1")
    assert (len(found.rows), found.num_removed, found.num_filtered) == (9, 3, 3)


def test_a_name_that_few_videos_have_is_known_everywhere(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in parts of the index where none of these is; and what the manifest forgot matches nothing of it."""
    write_records(cache.manifest, Video, [VIDEOS[2], replace(VIDEOS[3], extra="{}")])
    monkeypatch.setattr(view, "PART_ROWS", 2)
    assert numbers(open_it(cache, "rank >= 0")) == [2, 7, 12]


@pytest.mark.parametrize(
    ("filter", "message"),
    [("quality > 1", "'quality' is not known; known are .*num_chunks.*codec.*rank"), ("fps", "a truth value")],
)
def test_a_filter_that_does_not_fit_is_refused(cache: Cache, filter: str, message: str) -> None:
    write_records(cache.manifest, Video, VIDEOS)
    with pytest.raises(Refused, match=message):
        open_it(cache, filter)


def test_a_filter_needs_the_manifest_where_the_index_does_not_say(cache: Cache) -> None:
    assert len(open_it(cache, "fps > 1").rows) == 15
    with pytest.raises(Refused, match=r"part-00000\.parquet: not found, and train\.filter .* needs it; run `scan`"):
        open_it(cache, "codec == 'h264'")


def test_nothing_left_to_train_on_is_refused_with_the_counts(cache: Cache) -> None:
    write_records(cache.manifest, Video, VIDEOS)
    remove(cache, "v0")
    message = r"of 15 clips none is left.*3 are of videos that left.*12 do not match.*'rank > 9'"
    with pytest.raises(Refused, match=message):
        open_it(cache, "rank > 9")


def test_a_cache_without_clips_is_refused(tmp_path: Path) -> None:
    write_indexes(Cache(tmp_path), [])
    with pytest.raises(Refused, match="holds no clips"):
        open_it(Cache(tmp_path))


TEXTS = [text_of(sample) for sample in SAMPLES]


@pytest.mark.parametrize("texts", [TEXTS[::-1], TEXTS[:-1], [*TEXTS, text_of(make_sample(15))], []])
def test_text_that_is_not_of_the_same_clips_is_refused(cache: Cache, texts: list[TextSample]) -> None:
    write_text_index(cache, texts)
    with pytest.raises(Refused, match=r"text/bytes/index\.parquet: its captions are not those of .*; run `text`"):
        open_it(cache)


def test_a_missing_column_says_which_verb_writes_it(cache: Cache) -> None:
    cache.text_index("bytes").unlink()
    with pytest.raises(Refused, match="run `text` first"):
        open_it(cache)
    cache.index.unlink()
    with pytest.raises(Refused, match="run `encode` first"):
        open_it(cache)


def test_a_foreign_index_is_refused(cache: Cache) -> None:
    with pytest.raises(Refused, match="made by recipe"):
        open_view(cache, replace(RECIPE, fps=12.0), "bytes")


@pytest.mark.parametrize("num_bytes", [KEY_BYTES, KEY_BYTES + 1])
def test_a_key_fits_or_is_refused(cache: Cache, num_bytes: int) -> None:
    key = "ü" + "k" * (num_bytes - 2)
    write_index(cache, [make_sample(1), make_sample(2, key=key)])
    write_text_index(cache, [text_of(make_sample(1)), replace(text_of(make_sample(2)), key=key)])
    if num_bytes <= KEY_BYTES:
        assert open_it(cache).rows["key"].tolist() == [b"k1", key.encode()]
    else:
        with pytest.raises(Refused, match=f"found a key of {num_bytes} bytes, wanted {KEY_BYTES} at most"):
            open_it(cache)


def files(found: View) -> dict[str, tuple[int, int]]:
    """Which files a view has: their inodes and times of writing."""
    stats = {path.name: path.stat() for path in found.folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_view_is_made_once(cache: Cache, tmp_path: Path) -> None:
    before = files(open_it(cache))
    write_records(cache.manifest, Video, VIDEOS)  # which no filter asks for
    assert files(open_it(cache)) == before
    cache.root.rename(tmp_path / "moved")  # pyright: ignore[reportAttributeAccessIssue]
    assert files(open_it(Cache(tmp_path / "moved"))) == before


OTHERS = [replace(sample, latent_crc32c=1) for sample in SAMPLES]
CHANGES: dict[str, Callable[[Cache], None]] = {
    "index": lambda cache: write_index(cache, OTHERS),
    "text": lambda cache: write_text_index(cache, [replace(text, text_crc32c=1) for text in TEXTS]),
    "removed": lambda cache: remove(cache, "v3"),
    "manifest": lambda cache: write_records(
        cache.manifest, Video, [replace(video, extra=f'{{"rank": {4 - n}}}') for n, video in enumerate(VIDEOS)]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_state_of_the_cache_has_another_view(cache: Cache, change: str) -> None:
    write_records(cache.manifest, Video, VIDEOS)
    before = open_it(cache, "rank > 1")
    rows = before.rows.copy()
    CHANGES[change](cache)
    after = open_it(cache, "rank > 1")
    assert after.folder != before.folder and not np.array_equal(after.rows, rows)
    assert np.array_equal(before.rows, rows)  # which another process may be reading


def test_another_filter_has_another_view(cache: Cache) -> None:
    assert len({open_it(cache, filter).folder for filter in ("", "width > 0", "width > 64")}) == 3


def test_a_view_that_is_sent_to_another_process_is_mapped_there(cache: Cache) -> None:
    found = open_it(cache)
    sent = pickle.dumps(found)
    assert len(sent) < 1000 < found.rows.nbytes
    check(pickle.loads(sent), SAMPLES)


OPEN = """
import sys
from pipeline.cache import Cache
from pipeline.location import place_of
from pipeline.view import open_view
from tests.indexes import RECIPE
{before}
found = open_view(Cache(place_of(sys.argv[1])), RECIPE, "bytes")
print(found.folder, (found.folder / "rows").stat().st_ino, found.rows.tobytes().hex())
"""


def opening(cache: Cache, scratch: Path, before: str = "") -> subprocess.Popen:
    """A process that opens the view and tells of it."""
    command = [sys.executable, "-c", OPEN.format(before=before), str(cache.root)]
    return subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE, text=True)


def test_of_processes_that_open_it_at_once_one_makes_it(cache: Cache, scratch: Path) -> None:
    together, heads = Barrier(2), []

    def let_two_in(request: Request) -> None:
        if request.verb == "HEAD" and request.key == "cache/plan/tombstones.parquet":
            heads.append(request)
            if len(heads) <= 2:  # the last that each asks to know which view it wants
                together.wait(60)

    with serve_bucket() as bucket:
        remote = upload(cache, bucket)
        bucket.door.before = let_two_in
        told = [process.communicate(timeout=60)[0] for process in [opening(remote, scratch) for _ in range(2)]]
    assert len(heads) == 4  # one of them read what is in it, and asked again whether that is still so
    found = open_it(cache)
    assert told == [f"{found.folder} {files(found)['rows'][0]} {found.rows.tobytes().hex()}\n"] * 2


KILLED_BY_ITS_FIRST_BYTES = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def test_what_a_killed_process_left_is_made_anew(cache: Cache, scratch: Path) -> None:
    process = opening(cache, scratch, KILLED_BY_ITS_FIRST_BYTES)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGXFSZ
    [left] = scratch.rglob("rows")
    assert left.stat().st_size == 1000
    found = open_it(cache)
    assert found.folder == left.parent
    check(found, SAMPLES)


@pytest.mark.parametrize("name", view.FILES)
def test_a_file_that_was_cleaned_away_is_made_anew_and_who_has_it_mapped_keeps_it(cache: Cache, name: str) -> None:
    before = open_it(cache)
    mapped = files(before)
    (before.folder / name).unlink()
    after = open_it(cache)
    check(after, SAMPLES)
    check(before, SAMPLES)
    assert all(files(after)[name][0] != mapped[name][0] for name in ("rows", "kind"))  # none was written over


def test_a_full_disk_is_told_and_nothing_is_left_on_it(cache: Cache, scratch: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(Refused, match=r"views/\w+: cannot be written: File too large; make room or set TMPDIR"):
            open_it(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in scratch.rglob("*") if path.is_file() and path.stat().st_size]
    check(open_it(cache), SAMPLES)


def test_views_that_nobody_has_opened_for_long_are_removed(cache: Cache) -> None:
    unused, mapped, young = (open_it(cache, f"width > {n}") for n in range(3))
    long_ago_s = time.time() - UNUSED_S - 1
    for one in (unused, mapped):
        os.utime(one.folder.with_suffix(".lock"), (long_ago_s, long_ago_s))
    open_it(cache, "width > 0")  # which is a use of it
    os.utime(unused.folder.with_suffix(".lock"), (long_ago_s, long_ago_s))
    new = open_it(cache, "width > 3")
    there = {path for path in new.folder.parent.iterdir() if path.is_dir()}
    assert there == {young.folder, new.folder}
    assert {path.stem for path in new.folder.parent.glob("*.lock")} == {path.name for path in there}
    check(mapped, SAMPLES)
    check(open_it(cache, "width > 1"), SAMPLES)


def test_a_view_that_was_just_opened_again_is_not_removed(cache: Cache) -> None:
    old = open_it(cache)
    lock = old.folder.with_suffix(".lock")
    os.utime(lock, (0, 0))
    open_it(cache)
    open_it(cache, "width > 0")
    assert old.folder.exists() and lock.stat().st_mtime > 0


def test_a_cache_in_a_store_has_the_same_view(cache: Cache) -> None:
    write_records(cache.manifest, Video, VIDEOS)
    with serve_bucket() as bucket:
        found = open_it(upload(cache, bucket), "rank >= 0")
    check(found, SAMPLES)
    assert found.folder == open_it(cache, "rank >= 0").folder  # whose clips are the same


def test_an_index_that_changes_while_it_is_read_is_refused(cache: Cache) -> None:
    """What was read belongs to neither state of the cache."""
    asked: list[Request] = []
    with serve_bucket() as bucket:
        remote = upload(cache, bucket)
        CHANGES["index"](cache)

        def change(request: Request) -> None:
            if request.verb == "HEAD" and request.key == "cache/plan/tombstones.parquet":
                asked.append(request)
                if len(asked) == 2:  # the first was for the identity of what is now about to be read
                    bucket.put("cache/index.parquet", local(cache.index))

        bucket.door.before = change
        with pytest.raises(Refused, match="changed while its index was read; run again"):
            open_it(remote)
        check(open_it(remote), OTHERS)


def test_where_all_is_held_out_nothing_is_left_to_train_on(cache: Cache) -> None:
    with pytest.raises(Refused, match=r"of 15 clips none is left .* 15 are held out by train\.held_out; change these"):
        open_it(cache, split=Split(1.0))
    assert len(open_it(cache, split=Split(1.0, held_out=True)).rows) == 15


def test_the_sides_of_a_split_have_views_of_their_own(cache: Cache) -> None:
    sides = [numbers(open_it(cache, split=Split(HALF, held_out=held_out))) for held_out in (False, True)]
    assert [len(one) for one in sides] == [9, 6] and sorted(sides[0] + sides[1]) == list(range(15))
