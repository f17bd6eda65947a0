"""The text column follows the latents key by key, and is made again only when captions or encoder change."""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.text.byte_encoder import ByteEncoder
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.records import Sample, TextSample, Video
from pipeline.sample import array_bytes, read_array
from pipeline.shard import Member, Packed
from pipeline.storage import publish
from pipeline.tables import read_metadata, read_records
from pipeline.text_column import (
    TextOrigin,
    is_current,
    is_null_current,
    text_shard,
    write_null_text,
    write_text_origin,
    write_text_shard,
)
from tests.shards import local, write_shard

SHARD = "64x64/0000-000000"
KEYS = ["c", "a", "d", "b"]  # of the videos 3, 1, 3 and 2
VIDEO_OF = {"c": "3", "a": "1", "d": "3", "b": "2"}
CAPTIONS = {"1": "a red square", "2": "", "3": "ein grüner Kreis"}


def video(identity: str, caption: str) -> Video:
    return Video(identity, f"/{identity}.mp4", caption, 1, 1, "h264", 0, 64, 64, 34, 0.0, 1.0, 24.0)


VIDEOS = {identity: video(identity, caption) for identity, caption in CAPTIONS.items()}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with one shard of latents."""

    def sample(key: str, _: Mapping[str, Member]) -> Sample:
        return Sample(key, SHARD, VIDEO_OF[key], 0.0, 24.0, 64, 64, 1, 17, 17, 0, 0, 0, 0, 0)

    packed = [Packed(key, {"json": b"{}"}) for key in KEYS]
    write_shard(Cache(tmp_path).latents, SHARD, packed, Sample, sample, {"recipe": "r"})
    return Cache(tmp_path)


class CountingEncoder(ByteEncoder):
    """Remembers what it was asked to encode."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__(dim)
        self.asked: list[str] = []

    def encode(self, captions: list[str]) -> list[np.ndarray]:
        self.asked += captions
        return super().encode(captions)


def write(cache: Cache, encoder: ByteEncoder, videos: dict[str, Video] = VIDEOS) -> Path:
    column = local(cache.text(encoder.name))
    write_text_shard(column, text_shard(cache, SHARD, videos, encoder.fingerprint()), encoder)
    return column


def test_keys_and_order_are_those_of_the_latents(cache: Cache) -> None:
    column = write(cache, ByteEncoder(32))
    found = read_records([sidecar_path(column, SHARD)], TextSample)
    assert [row.key for row in found] == KEYS
    assert {row.shard for row in found} == {SHARD}
    with tarfile.open(local(tar_path(column, SHARD))) as tar:
        assert list(dict.fromkeys(member.name.split(".")[0] for member in tar)) == KEYS


def test_every_clip_has_the_embedding_of_its_videos_caption(cache: Cache) -> None:
    encoder = ByteEncoder(32)
    column = write(cache, encoder)
    content = tar_path(column, SHARD).read_bytes()
    for row in read_records([sidecar_path(column, SHARD)], TextSample):
        caption = CAPTIONS[VIDEO_OF[row.key]]
        tokens = read_array(content[row.text_offset : row.text_offset + row.text_bytes])
        assert row.caption == caption
        assert np.array_equal(tokens, encoder.encode([caption])[0])
        assert tokens.dtype == np.float16
        assert row.num_tokens == len(tokens) == len(caption.encode())
    with tarfile.open(local(tar_path(column, SHARD))) as tar:
        stored = tar.extractfile("c.txt")
        assert stored is not None and stored.read().decode() == CAPTIONS["3"]


def test_each_distinct_caption_is_encoded_once(cache: Cache) -> None:
    encoder = CountingEncoder()
    write(cache, encoder)
    assert sorted(encoder.asked) == sorted(CAPTIONS.values())


def test_text_is_current_until_a_caption_or_the_encoder_changes(cache: Cache) -> None:
    encoder = ByteEncoder(32)
    column = cache.text(encoder.name)
    assert not is_current(column, text_shard(cache, SHARD, VIDEOS, encoder.fingerprint()))
    write(cache, encoder)
    assert is_current(column, text_shard(cache, SHARD, VIDEOS, encoder.fingerprint()))
    moved = {identity: replace(one, path="/elsewhere") for identity, one in VIDEOS.items()}
    assert is_current(column, text_shard(cache, SHARD, moved, encoder.fingerprint()))
    other = {**VIDEOS, "2": video("2", "a blue star")}
    assert not is_current(column, text_shard(cache, SHARD, other, encoder.fingerprint()))
    swapped = {**VIDEOS, "1": video("1", CAPTIONS["2"]), "2": video("2", CAPTIONS["1"])}
    assert not is_current(column, text_shard(cache, SHARD, swapped, encoder.fingerprint()))
    assert not is_current(column, text_shard(cache, SHARD, VIDEOS, ByteEncoder(64).fingerprint()))
    write(cache, encoder, other)
    assert is_current(column, text_shard(cache, SHARD, other, encoder.fingerprint()))


def test_a_caption_of_an_unused_video_changes_nothing(cache: Cache) -> None:
    encoder = ByteEncoder(32)
    column = write(cache, encoder)
    assert is_current(column, text_shard(cache, SHARD, {**VIDEOS, "9": video("9", "new")}, encoder.fingerprint()))


def test_the_recipe_of_the_latents_travels_along(cache: Cache) -> None:
    column = write(cache, ByteEncoder(32))
    assert read_metadata(sidecar_path(column, SHARD))["recipe"] == "r"


def test_a_removed_video_keeps_its_caption(cache: Cache) -> None:
    removed = {identity: replace(one, removed=True) for identity, one in VIDEOS.items()}
    fingerprint = ByteEncoder(32).fingerprint()
    assert text_shard(cache, SHARD, removed, fingerprint) == text_shard(cache, SHARD, VIDEOS, fingerprint)


def test_a_video_that_the_manifest_forgot_is_refused(cache: Cache) -> None:
    with pytest.raises(Refused, match="1 of its videos are not in the manifest.*restore it"):
        text_shard(cache, SHARD, {"1": VIDEOS["1"], "2": VIDEOS["2"]}, ByteEncoder(32).fingerprint())


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_the_null_caption_is_current_until_it_or_the_encoder_changes(tmp_path: Path, num_tokens: int) -> None:
    class Wordy(CountingEncoder):
        """Says something for an empty caption too, as T5 does."""

        def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
            return super().embed([text or "x" * num_tokens for text in texts])

    cache, encoder = Cache(tmp_path), Wordy()
    origin = TextOrigin("bytes", None, 32, 300, None, False, encoder.fingerprint())
    assert not is_null_current(cache, origin)
    write_text_origin(cache, origin)
    assert not is_null_current(cache, origin)  # stated, and not there
    write_null_text(cache.null_text("bytes"), encoder)
    assert not is_null_current(cache, origin)  # there, and not stated
    write_text_origin(cache, origin)
    assert is_null_current(cache, origin)
    assert encoder.asked == [""]
    assert not is_null_current(cache, replace(origin, fingerprint="another"))
    tokens = read_array(cache.null_text("bytes").read_bytes())
    assert tokens.shape == (num_tokens, 32) and tokens.dtype == np.float16
    publish(cache.null_text("bytes"), array_bytes(tokens + 1) + b"0")
    assert not is_null_current(cache, origin)
