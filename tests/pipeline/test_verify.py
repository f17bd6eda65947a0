"""Whatever is changed in a shard is found and named; what nobody changed is left in peace."""

import io
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text import describe_text_encoder
from models.text.interface import TextSettings
from models.vae import load_vae
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.index import merge_index
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Quarantined, Sample, TextSample, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample
from pipeline.shard import Packed, commit_shard, writing_shard
from pipeline.stats import ChannelStats, merge_all
from pipeline.storage import publish
from pipeline.tables import read_metadata, read_records, write_records
from pipeline.text_column import (
    read_text_origin,
    text_origin,
    text_shard,
    write_null_text,
    write_text_origin,
    write_text_shard,
)
from pipeline.verify import Broken, PlannedShard, check_index, check_latents, check_null, check_text
from tests.shards import local

RECIPE = Recipe(load_vae("dct:4").spec, fps=24.0, buckets=((16, 16),), max_chunks=2, tail="pad")
DESCRIPTION = describe_text_encoder("bytes", None, TextSettings())
ORIGIN = text_origin(DESCRIPTION, None)
VIDEOS = {
    f"v{n}": Video(f"v{n}", f"/{n}", caption, 1, 1, "h264", 0, 16, 16, 40, 0.5 * n, 4.0, 24.0)
    for n, caption in enumerate(["a red square", "", "ein grüner Kreis"])
}
SHARDS = ("16x16/0000-000000", "16x16/0000-000001")


def planned(shard: str) -> PlannedShard:
    """Three clips of one and two chunks, one of them padded, of videos of their own."""
    sizes = [(1, 17), (2, 34), (2, 20)]
    clips = [
        Clip(f"{shard[-1]}{n}-00000000-16x16", shard, f"v{n}", 0, chunks, 17 * chunks, valid, 24.0, 16, 16, 0.0, 4.0)
        for n, (chunks, valid) in enumerate(sizes)
    ]
    facts = {"recipe": RECIPE.fingerprint(), "generation": "0000", "clips_sha256": shard}
    return PlannedShard(shard, tuple(clips), tuple(VIDEOS.values()), tuple(facts.items()))


def write_latents(cache: Cache, work: PlannedShard) -> None:
    random = np.random.default_rng(int(work.shard[-1]))
    rows, stats = [], []
    with writing_shard(cache.latents, work.shard) as tar:
        for clip in work.clips:
            latents = random.normal(size=(4, 5 * clip.num_chunks, 2, 2)).astype(np.float16)
            start_s = clip_start_s(VIDEOS[clip.video], clip)
            members = {"latent.npy": array_bytes(latents), "json": clip_facts(clip, start_s, RECIPE)}
            look = Look(0.5, 0.1, float("nan"))
            rows.append(make_sample(clip, work.shard, start_s, look, 30.0, tar.add(Packed(clip.key, members))))
            stats.append(ChannelStats.of(latents[:, : RECIPE.latent.filled_latents(clip.valid_frames)]))
    merged = merge_all(stats)
    assert merged is not None
    commit_shard(cache.latents, work.shard, Sample, rows, {**dict(work.facts), **tar.facts, "stats": merged.to_json()})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    cache, encoder = Cache(tmp_path_factory.mktemp("written")), DESCRIPTION.load()
    for shard in SHARDS:
        write_latents(cache, planned(shard))
        write_text_shard(cache.text("bytes"), text_shard(cache, shard, VIDEOS, ORIGIN.fingerprint), encoder)
    write_null_text(cache.null_text("bytes"), encoder)
    write_text_origin(cache, ORIGIN)
    merge_index(cache.index, cache.latents, SHARDS, Sample)
    merge_index(cache.text_index("bytes"), cache.text("bytes"), SHARDS, TextSample)
    return cache


@pytest.fixture
def cache(written: Cache, tmp_path: Path) -> Cache:
    """A copy to be damaged."""
    shutil.copytree(local(written.root), tmp_path / "cache")
    return Cache(tmp_path / "cache")


def check_all(cache: Cache) -> None:
    """Everything there is; Broken at the first thing that is wrong."""
    for shard in SHARDS:
        check_latents(cache, RECIPE, planned(shard))
        check_text(cache, ORIGIN, text_shard(cache, shard, VIDEOS, ORIGIN.fingerprint))
    check_null(cache, read_text_origin(cache, "bytes"))
    check_index(cache.index, cache.latents, SHARDS, Sample)
    check_index(cache.text_index("bytes"), cache.text("bytes"), SHARDS, TextSample)


def test_a_cache_that_nobody_changed_is_whole(written: Cache) -> None:
    check_all(written)


def test_a_shard_without_clips_is_whole(tmp_path: Path) -> None:
    cache, work = Cache(tmp_path), replace(planned(SHARDS[0]), clips=())
    with writing_shard(cache.latents, work.shard) as tar:
        pass
    commit_shard(cache.latents, work.shard, Sample, [], {**dict(work.facts), **tar.facts})
    check_latents(cache, RECIPE, work)


# Damages of bytes. A place in the tar is found by what the sidecar says of the second clip.


def row_of(cache: Cache, column: str) -> Any:
    kind = Sample if column == "latents" else TextSample
    return read_records([sidecar_path(cache.root / column, SHARDS[0])], kind)[1]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def flip_in_tar(where: Callable[[Any], int], cache: Cache, column: str) -> None:
    flip(local(tar_path(cache.root / column, SHARDS[0])), where(row_of(cache, column)))


def cut(path: Callable, cache: Cache, column: str) -> None:
    file = path(cache.root / column, SHARDS[0])
    file.write_bytes(file.read_bytes()[:-512])


def delete_tar(cache: Cache, column: str) -> None:
    tar_path(cache.root / column, SHARDS[0]).unlink()


def lengthen_tar(cache: Cache, column: str) -> None:
    with open(local(tar_path(cache.root / column, SHARDS[0])), "ab") as file:
        file.write(bytes(512))


def swap(paths: list[Callable], cache: Cache, column: str) -> None:
    for path in paths:
        one, other = (path(cache.root / column, shard) for shard in SHARDS)
        aside = one.with_suffix(".aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def flip_sidecar(cache: Cache, column: str) -> None:
    path = local(sidecar_path(cache.root / column, SHARDS[0]))
    flip(path, path.read_bytes().index(b"-00000000-16x16"))  # in the page of the keys


def replace_sidecar(cache: Cache, column: str) -> None:
    write_records(sidecar_path(cache.root / column, SHARDS[0]), Video, VIDEOS.values())


def edit_footer(name: str, value: str, cache: Cache, column: str) -> None:
    path, kind = sidecar_path(cache.root / column, SHARDS[0]), Sample if column == "latents" else TextSample
    write_records(path, kind, read_records([path], kind), {**read_metadata(path), name: value})


BYTES = [
    ("latents", partial(flip_in_tar, lambda row: row.latent_offset + 200), r"CRC-32C of 01-.*\.latent\.npy"),
    ("latents", partial(flip_in_tar, lambda row: row.json_offset + 9), r"01-.*\.json"),
    ("latents", partial(flip_in_tar, lambda row: row.latent_offset - 512), "members of the tar, at number 3 of 6"),
    ("latents", partial(flip_in_tar, lambda row: row.json_offset + row.json_bytes), "SHA-256 of the tar"),
    ("latents", partial(cut, tar_path), "bytes of the tar"),
    ("latents", lengthen_tar, "bytes of the tar"),
    ("latents", delete_tar, "bytes of the tar"),
    ("latents", partial(swap, [tar_path]), "members of the tar, at number 0"),
    ("latents", partial(swap, [tar_path, sidecar_path]), "clips_sha256 in the sidecar"),
    ("latents", flip_sidecar, "the sidecar"),
    ("latents", partial(cut, sidecar_path), "the sidecar"),
    ("latents", replace_sidecar, "the sidecar"),
    ("latents", partial(edit_footer, "recipe", "f" * 64), "recipe in the sidecar"),
    ("latents", partial(edit_footer, "generation", "0001"), "generation in the sidecar"),
    ("latents", partial(edit_footer, "tar_sha256", "f" * 64), "SHA-256 of the tar"),
    ("latents", partial(edit_footer, "stats", "{}"), "stats in the sidecar"),
    ("text/bytes", partial(flip_in_tar, lambda row: row.text_offset + 20), r"CRC-32C of 01-.*\.text\.npy"),
    ("text/bytes", partial(cut, tar_path), "bytes of the tar"),
    ("text/bytes", delete_tar, "bytes of the tar"),
    ("text/bytes", partial(swap, [tar_path, sidecar_path]), "keys, at number 0 of 3"),
    ("text/bytes", partial(edit_footer, "encoder", "f" * 64), "encoder in the sidecar"),
    ("text/bytes", partial(edit_footer, "recipe", "f" * 64), "recipe in the sidecar"),
]


@pytest.mark.parametrize(("column", "damage", "what"), BYTES)
def test_changed_bytes_are_found_and_named(cache: Cache, column: str, damage: Callable, what: str) -> None:
    damage(cache, column)
    with pytest.raises(Broken) as found:
        check_all(cache)
    assert re.match(what, found.value.args[0])


# Shards that were written wrong, with the right sums.


def rewrite(cache: Cache, column: str, change: Callable[[list[Any], list[Packed]], None]) -> None:
    """Write the first shard again, after a change of its rows and samples; sums, sizes and offsets are made anew."""
    kind = Sample if column == "latents" else TextSample
    place, sidecar = cache.root / column, sidecar_path(cache.root / column, SHARDS[0])
    rows, footer, packed = read_records([sidecar], kind), read_metadata(sidecar), []
    with tarfile.open(local(tar_path(place, SHARDS[0]))) as tar:
        for row in rows:
            members = {m.name.partition(".")[2]: tar.extractfile(m) for m in tar if m.name.startswith(row.key)}
            packed.append(Packed(row.key, {ending: file.read() for ending, file in members.items() if file}))
    change(rows, packed)
    with writing_shard(place, SHARDS[0]) as writer:
        for number, one in enumerate(packed):
            where = writer.add(one)
            npy = where["latent.npy" if column == "latents" else "text.npy"]
            names = ("latent_offset", "latent_bytes", "latent_crc32c", "json_offset", "json_bytes")
            lies: dict[str, int] = {"text_offset": npy.offset, "text_bytes": npy.num_bytes, "text_crc32c": npy.crc32c}
            if column == "latents":
                facts = where["json"]
                lies = dict(zip(names, (npy.offset, npy.num_bytes, npy.crc32c, facts.offset, facts.num_bytes)))
            if number < len(rows) and rows[number].key == one.key:
                rows[number] = replace(rows[number], **lies)
    commit_shard(place, SHARDS[0], kind, rows, {**footer, **writer.facts})


def set_array(make: Callable[[np.ndarray], bytes], rows: list[Any], packed: list[Packed]) -> None:
    [ending] = [ending for ending in packed[1].members if ending.endswith(".npy")]
    packed[1].members[ending] = make(np.load(io.BytesIO(packed[1].members[ending])))


def with_value(value: float, array: np.ndarray) -> bytes:
    array[0, 0] = value
    return array_bytes(array)


def pickled(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def set_row(rows: list[Any], packed: list[Packed], **fields: Any) -> None:
    rows[1] = replace(rows[1], **fields)


def set_member(ending: str, content: bytes, rows: list[Any], packed: list[Packed]) -> None:
    packed[1].members[ending] = content


def drop_one(rows: list[Any], packed: list[Packed]) -> None:
    del rows[1], packed[1]


def reverse(rows: list[Any], packed: list[Packed]) -> None:
    rows.reverse()
    packed.reverse()


def edit_caption(rows: list[Any], packed: list[Packed]) -> None:
    rows[1] = replace(rows[1], caption="a lie")
    packed[1].members["txt"] = b"a lie"


CONTENTS = [
    ("latents", partial(set_array, partial(with_value, np.nan)), r"values of 01-.*npy: found \d+ of 160 that are not"),
    ("latents", partial(set_array, partial(with_value, -np.inf)), r"values of 01-.*npy: found \d+ of 160 that are not"),
    ("latents", partial(set_array, lambda a: array_bytes(a.astype(np.float32))), "dtype of 01-.*found <f4, wanted <f2"),
    ("latents", partial(set_array, lambda a: array_bytes(a[:2])), r"shape of 01-.*found \(2, 10, 2, 2\), wanted \(4,"),
    ("latents", partial(set_array, lambda a: array_bytes(a) + b"\0"), "layout of 01-"),
    ("latents", partial(set_array, lambda a: b"not an array"), r"01-.*latent\.npy: found .*magic"),
    ("latents", partial(set_array, pickled), r"01-.*latent\.npy: found Object arrays cannot be loaded"),
    ("latents", partial(set_array, partial(with_value, 3.0)), "stats in the sidecar"),
    ("latents", partial(set_member, "json", b'{"key": 1}'), r"01-.*\.json: found .*key.*wanted .*num_frames"),
    ("latents", partial(set_member, "pkl", pickle.dumps(1)), r"members of the tar.*found 01-.*\.pkl"),
    ("latents", drop_one, "keys, at number 1 of 3: found 02-.*wanted 01-"),
    ("latents", reverse, "keys, at number 0 of 3: found 02-"),
    ("latents", partial(set_row, start_s=9.0), "start_s of 01-.*found 9.0, wanted 0.5"),
    ("latents", partial(set_row, valid_frames=33), "valid_frames of 01-.*found 33, wanted 34"),
    ("latents", partial(set_row, dark=True), "dark of 01-.*found True, wanted False"),
    ("text/bytes", edit_caption, "caption of 01-.*found a lie, wanted "),
    ("text/bytes", partial(set_member, "txt", b"a lie"), r"01-.*\.txt: found b'a lie', wanted b''"),
    ("text/bytes", partial(set_array, lambda a: array_bytes(a[:, :8])), r"shape of 01-.*wanted \(at most 300, 256\)"),
    ("text/bytes", partial(set_array, lambda a: array_bytes(np.full((1, 256), np.nan, np.float16))), "values of 01-"),
    ("text/bytes", partial(set_row, num_tokens=7), "num_tokens of 01-.*found 7, wanted 0"),
    ("text/bytes", drop_one, "keys, at number 1 of 3"),
    ("text/bytes", reverse, "keys, at number 0 of 3"),
]


@pytest.mark.parametrize(("column", "change", "told"), CONTENTS)
def test_wrong_content_is_found_though_all_sums_are_right(
    cache: Cache, column: str, change: Callable, told: str
) -> None:
    rewrite(cache, column, change)
    with pytest.raises(Broken) as found:
        check_all(cache)
    what, one, other = found.value.args
    assert re.match(told, f"{what}: found {one}, wanted {other}")


def test_offsets_that_point_elsewhere_are_found(cache: Cache) -> None:
    path = sidecar_path(cache.latents, SHARDS[0])
    rows = read_records([path], Sample)
    rows[1] = replace(rows[1], json_offset=rows[1].json_offset + 512)
    write_records(path, Sample, rows, read_metadata(path))
    with pytest.raises(Broken, match="json_offset of 01-"):
        check_all(cache)


def test_a_key_that_others_would_cut_is_found(cache: Cache) -> None:
    work = planned(SHARDS[0])
    work = replace(work, clips=(replace(work.clips[0], key="00.5-00000000-16x16"), *work.clips[1:]))
    write_latents(cache, work)
    with pytest.raises(Broken) as found:
        check_latents(cache, RECIPE, work)
    assert found.value.args == ("key of 00.5-00000000-16x16 as webdataset reads it", "00", "00.5-00000000-16x16")


class Touch:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(cache: Cache, tmp_path: Path) -> None:
    evil = partial(set_member, "pyd", pickle.dumps(Touch(tmp_path / "unpickled")))
    rewrite(cache, "latents", evil)
    with pytest.raises(Broken, match="members of the tar"):
        check_all(cache)
    assert not (tmp_path / "unpickled").exists()


def test_a_video_is_missing_only_where_the_quarantine_says_so(cache: Cache) -> None:
    work = planned(SHARDS[0])
    rewrite(cache, "latents", drop_one)
    path = sidecar_path(cache.latents, SHARDS[0])
    with tarfile.open(local(tar_path(cache.latents, SHARDS[0]))) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".npy")]
        arrays = [np.load(io.BytesIO(file.read())) for file in files if file]
    filled = RECIPE.latent.filled_latents(20)  # of the third clip
    stats = merge_all([ChannelStats.of(arrays[0]), ChannelStats.of(arrays[1][:, :filled])])
    assert stats is not None
    footer = {**read_metadata(path), "stats": stats.to_json()}
    write_records(path, Sample, read_records([path], Sample), footer)
    with pytest.raises(Broken, match="keys"):
        check_latents(cache, RECIPE, work)
    write_records(cache.quarantine(work.shard), Quarantined, [Quarantined("/1", "decode", "", 2, "v1", work.shard)])
    check_latents(cache, RECIPE, work)


@settings(max_examples=100)
@given(st.data())
def test_any_flipped_bit_of_a_tar_is_found(written: Cache, data: st.DataObject) -> None:
    column = data.draw(st.sampled_from(["latents", "text/bytes"]))
    path = local(tar_path(written.root / column, SHARDS[0]))
    with restored(path) as content:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with pytest.raises(Broken):
            check_all(written)


@settings(max_examples=150)
@given(st.data())
def test_any_flipped_bit_of_a_sidecar_is_found_or_changes_nothing_that_is_read(
    written: Cache, data: st.DataObject
) -> None:
    path = local(sidecar_path(written.latents, SHARDS[0]))
    before = repr(read_records([path], Sample)), read_metadata(path)
    with restored(path) as content:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            check_latents(written, RECIPE, planned(SHARDS[0]))
        except Broken:
            return
        after = read_metadata(path)
        assert repr(read_records([path], Sample)) == before[0]
        assert all(after[name] == value for name, value in before[1].items() if name != "stats")  # up to rounding


@contextmanager
def restored(path: Path) -> Iterator[bytearray]:
    """The content of a file, which is there again after the block."""
    content = path.read_bytes()
    try:
        yield bytearray(content)
    finally:
        path.write_bytes(content)


# Indexes, captions of today, and the null caption.


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda index, rows, footer: index.unlink(), "the index"),
        (lambda index, rows, footer: index.write_bytes(b"PAR1"), "the index"),
        (lambda index, rows, footer: write_records(index, Sample, rows[:3], footer), "rows of the index"),
        (lambda index, rows, footer: write_records(index, Sample, rows[::-1], footer), "key in the index"),
        (
            lambda index, rows, footer: write_records(
                index, Sample, [replace(rows[0], latent_offset=0), *rows[1:]], footer
            ),
            "latent_offset in the index",
        ),
        (
            lambda index, rows, footer: write_records(index, Sample, rows, {**footer, "recipe": "f"}),
            "recipe in the index",
        ),
    ],
)
def test_an_index_that_is_not_the_merge_of_the_sidecars_is_found(cache: Cache, damage: Callable, what: str) -> None:
    damage(cache.index, read_records([cache.index], Sample), read_metadata(cache.index))
    with pytest.raises(Broken, match=what):
        check_all(cache)


def test_a_caption_of_today_that_the_column_does_not_have_is_found(written: Cache) -> None:
    videos = {**VIDEOS, "v1": replace(VIDEOS["v1"], caption="new")}
    with pytest.raises(Broken) as found:
        check_text(written, ORIGIN, text_shard(written, SHARDS[0], videos, ORIGIN.fingerprint))
    assert found.value.args == ("caption of 01-00000000-16x16", "", "new")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda null: null.unlink(), "the null caption"),
        (lambda null: flip(null, 100), r"SHA-256 of null\.npy"),
    ],
)
def test_a_damaged_null_caption_is_found(cache: Cache, damage: Callable, told: str) -> None:
    damage(cache.null_text("bytes"))
    with pytest.raises(Broken, match=told):
        check_all(cache)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (301, 256)])
def test_a_null_caption_of_another_shape_is_found(cache: Cache, shape: tuple[int, ...]) -> None:
    publish(cache.null_text("bytes"), array_bytes(np.zeros(shape, np.float16)))
    write_text_origin(cache, ORIGIN)
    with pytest.raises(Broken, match=r"shape of null\.npy"):
        check_all(cache)
