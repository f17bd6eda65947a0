"""A training set numbers the clips of one cache or of several, and mixes only what means the same."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vae import load_vae
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.recipe import Recipe, bind_recipe
from pipeline.records import Sample, Tombstone
from pipeline.tables import write_records
from pipeline.text_column import read_text_origin, write_text_origin
from pipeline.training_set import TrainingSet, open_training_set
from tests.indexes import ENCODER, RECIPE, make_sample, write_index, write_indexes
from tests.shards import local

CUT_OTHERWISE = replace(RECIPE, fps=12.0, buckets=((96, 64),), max_chunks=2, tail="pad", scenes="content")
NORMALIZED_ANEW = replace(RECIPE, latent=replace(RECIPE.latent, scaling_factor=3.0))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scratch folder for this test alone."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def make_cache(root: Path, samples: list[Sample], recipe: Recipe = RECIPE) -> Cache:
    write_indexes(Cache(root), samples, recipe=recipe)
    return Cache(root)


def clips(first: int, count: int, **fields) -> list[Sample]:
    """Clips by number, two in each shard."""
    return [make_sample(number, shard=f"{first}/{number // 2}", **fields) for number in range(first, first + count)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "one", clips(0, 5))


@pytest.fixture
def other(tmp_path: Path) -> Cache:
    """Of other sizes, rates and cuts."""
    tall = clips(100, 3, height=96) + clips(110, 2, num_chunks=2, num_frames=34)
    return make_cache(tmp_path / "two", tall, CUT_OTHERWISE)


def open_set(cache: Cache, mixed: Mapping[Cache, float] | None = None, **asked) -> TrainingSet:
    return open_training_set(cache, asked.pop("recipe", RECIPE), "bytes", mixed=mixed, **asked)


def test_the_clips_of_one_cache_have_the_numbers_of_its_index(cache: Cache) -> None:
    write_records(cache.tombstones, Tombstone, [Tombstone("v0", "")])
    write_index(cache, [replace(sample, video=f"v{n % 2}") for n, sample in enumerate(clips(0, 5))])
    data = open_set(cache)
    assert data.num_clips == 2 and data.keys(np.array([1, 0])) == ["k3", "k1"]
    assert (data.parts[0].view.num_removed, data.parts[0].times) == (3, 1.0)
    rows = data.schedule_rows()
    assert rows.times is None and rows.kind.tolist() == [0, 0] and rows.shard_ends.tolist() == [1, 2]


def test_the_clips_of_several_are_numbered_on(cache: Cache, other: Cache, tmp_path: Path) -> None:
    third = make_cache(tmp_path / "three", clips(200, 1))
    data = open_set(cache, {other: 0.5, third: 3.0})
    assert data.num_clips == 11 and data.starts.tolist() == [0, 5, 10, 11]
    numbers = [*range(5), *range(100, 103), *range(110, 112), 200]
    assert data.keys(np.arange(11)) == [f"k{number}" for number in numbers]
    assert [part.cache for part in data.parts] == [cache, other, third]
    assert [part.recipe for part in data.parts] == [RECIPE, CUT_OTHERWISE, RECIPE]


def test_a_schedule_is_told_of_each_clip_its_kind_its_shard_and_how_often_it_is_wanted(
    cache: Cache, other: Cache
) -> None:
    data = open_set(cache, {other: 2.5})
    rows, found = data.schedule_rows(), data.rows(np.arange(10))
    assert rows.times is not None
    for number, kind in enumerate(rows.kind):
        assert all(getattr(rows.kinds[kind], name) == found[number][name] for name in rows.kinds[kind]._fields)
        assert rows.times[kind] == (1.0 if number < 5 else 2.5)
    assert rows.shard_ends.tolist() == [2, 4, 5, 7, 8, 10]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingSet]:
    """The clips 0 to 3 of one cache, and 4 to 9 of another."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        one, two = make_cache(folder / "one", clips(0, 4)), make_cache(folder / "two", clips(4, 6))
        yield open_set(one, {two: 1.0})


@given(asked=st.lists(st.integers(0, 9), max_size=20))
def test_rows_come_as_they_are_asked_for(mixed: TrainingSet, asked: list[int]) -> None:
    numbers = np.array(asked, np.int64)
    assert mixed.keys(numbers) == [f"k{number}" for number in asked]
    assert mixed.part_of(numbers).tolist() == [int(number >= 4) for number in asked]
    assert mixed.rows(numbers)["latent_offset"].tolist() == [512 * number for number in asked]


def test_the_filter_is_that_of_every_cache(cache: Cache, other: Cache) -> None:
    data = open_set(cache, {other: 1.0}, filter="latent_offset > 1024 and num_chunks == 1")
    assert data.keys(np.arange(data.num_clips)) == ["k3", "k4", "k100", "k101", "k102"]


@pytest.mark.parametrize("is_own", [True, False])
def test_a_cache_is_named_once(cache: Cache, other: Cache, tmp_path: Path, is_own: bool) -> None:
    """By whatever path: the same clips would be shown twice."""
    (tmp_path / "link").symlink_to(local((cache if is_own else other).root))
    with pytest.raises(Refused, match=r"link: holds the clips of .* again; name each cache once"):
        open_set(cache, {other: 1.0, Cache(tmp_path / "link"): 2.0})
    with pytest.raises(Refused, match=r"one: holds the clips of .*one again"):
        open_set(cache, {cache: 2.0})


def test_the_latents_of_another_vae_are_not_mixed(cache: Cache, tmp_path: Path) -> None:
    recipe = replace(CUT_OTHERWISE, latent=load_vae("dct:8").spec, pixels="BGR")
    foreign = make_cache(tmp_path / "two", clips(9, 1), recipe)
    for renormalize in (False, True):
        with pytest.raises(Refused) as refused:
            open_set(cache, {foreign: 1.0}, renormalize=renormalize)
        message = str(refused.value)
        assert "recipe.latent.channels: found 8, wanted 16" in message
        assert "recipe.pixels: found 'BGR', wanted 'RGB in [-1, 1]'" in message
        assert "fps" not in message and "renormalize" not in message and str(tmp_path / "two") in message


def test_another_normalization_is_mixed_where_it_may_be_converted(cache: Cache, tmp_path: Path) -> None:
    foreign = make_cache(tmp_path / "two", clips(9, 1), replace(NORMALIZED_ANEW, fps=12.0))
    with pytest.raises(Refused, match=r"scaling_factor: found 3\.0, wanted 1\.0.*set train\.renormalize=true"):
        open_set(cache, {foreign: 1.0})
    data = open_set(cache, {foreign: 1.0}, renormalize=True)
    assert [part.recipe.latent.scaling_factor for part in data.parts] == [1.0, 3.0]
    assert data.recipe == RECIPE


def test_the_runs_own_cache_is_of_its_recipe_but_for_what_it_converts(cache: Cache, other: Cache) -> None:
    with pytest.raises(Refused, match=r"recipe\.fps: found 12\.0, wanted 24\.0"):
        open_set(other, {cache: 1.0})
    with pytest.raises(Refused, match=r"scaling_factor: .*train\.renormalize=true"):
        open_set(cache, recipe=NORMALIZED_ANEW)
    data = open_set(cache, recipe=NORMALIZED_ANEW, renormalize=True)
    assert (data.recipe, data.parts[0].recipe) == (NORMALIZED_ANEW, RECIPE)


def test_the_text_of_another_encoder_is_not_mixed_and_what_differs_is_named(cache: Cache, other: Cache) -> None:
    found = read_text_origin(other, "bytes")
    write_text_origin(other, replace(found, max_tokens=9, fingerprint="9" * 64))
    with pytest.raises(Refused) as refused:
        open_set(cache, {other: 1.0})
    message = str(refused.value)
    assert message.startswith(f"{other.root}: its text") and "max_tokens: found 9, wanted 20" in message
    assert "run `text` again" in message and "dim" not in message and "null" not in message and len(message) < 300
    write_text_origin(other, replace(found, fingerprint="9" * 64))
    with pytest.raises(Refused, match="the encoder had other weights; run `text` again"):
        open_set(cache, {other: 1.0})
    write_text_origin(other, replace(found, path="/elsewhere"))  # the same encoder
    assert len(open_set(cache, {other: 1.0}).parts) == 2


def test_a_place_that_is_no_cache_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"recipe\.json: not found, so .* is not a cache yet"):
        open_set(cache, {Cache(tmp_path / "nothing"): 1.0})
    bind_recipe(Cache(tmp_path / "planned"), RECIPE)
    with pytest.raises(Refused, match=r"planned/text/bytes/encoder\.json: not found; run `text` first"):
        open_set(cache, {Cache(tmp_path / "planned"): 1.0})


def test_the_null_caption_is_the_one_that_was_written(cache: Cache) -> None:
    [wanted] = ENCODER.load().encode([""])
    assert np.array_equal(open_set(cache).null_text(), wanted)


@pytest.mark.parametrize("content", [None, b"", b"other"])
def test_another_null_caption_is_refused(cache: Cache, content: bytes | None) -> None:
    path = local(cache.null_text("bytes"))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match=r"null\.npy: missing, or not the null caption that `text` wrote; run `text`"):
        open_set(cache).null_text()
