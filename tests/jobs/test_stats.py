"""`stats` tells what the sidecars know, and the words it prints normalize the cache as it is."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.events import read_events
from jobs.run_toml import load_config
from jobs.stats import stats
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.lengths import whole
from pipeline.loader import load_batches
from pipeline.recipe import read_recipe
from pipeline.records import Sample
from pipeline.sample import read_array
from pipeline.schedule import Schedule
from pipeline.shard import Member
from pipeline.tables import read_records
from pipeline.tar_reader import TarReader
from pipeline.training_set import open_training_set
from tests.conftest import cache_config
from tests.object_store import serve_bucket


@pytest.fixture
def copied(cached: RunConfig, tmp_path: Path) -> RunConfig:
    shutil.copytree(cached.data.cache, tmp_path / "cache")
    return cached.model_copy(update={"data": cached.data.model_copy(update={"cache": str(tmp_path / "cache")})})


def cached_values(cache: Cache) -> np.ndarray:
    """Every value in the tars, read one by one: (c, values) float64."""
    reader = TarReader(cache.latents)

    def read(sample: Sample) -> np.ndarray:
        member = Member(sample.latent_offset, sample.latent_bytes, sample.latent_crc32c)
        latents = read_array(reader.read(sample.shard, member))  # (c, t, h, w)
        return latents.reshape(len(latents), -1)

    arrays = [read(sample) for sample in read_records([cache.index], Sample)]
    return np.concatenate(arrays, axis=1).astype(np.float64)


def pasted_words(printed: str) -> list[str]:
    """What a shell makes of the last line, behind `latentmill train`."""
    *_, line = printed.strip().splitlines()
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("latentmill", "train")
    return words


def batch_values(config: RunConfig) -> Iterator[np.ndarray]:
    """The latents of each clip (c, values) as training reads them, each clip once."""
    recipe = configured_recipe(config)
    data = open_training_set(config.cache, recipe, config.text.encoder, renormalize=True)
    schedule = Schedule(data.schedule_rows(), lambda kind: whole(kind, 1), 0)
    for batch in load_batches(data, schedule, range(data.num_clips), 0, 1, 0):
        [latents] = batch.latents.double().numpy()
        yield latents.reshape(len(latents), -1)


def test_the_merged_sidecars_say_what_all_latents_say(copied: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(copied) == 0
    found, values = json.loads(copied.cache.stats.read_text()), cached_values(copied.cache)
    wanted = {"mean": values.mean(axis=1), "std": values.std(axis=1), "least": values.min(axis=1)}
    for name, numbers in {**wanted, "greatest": values.max(axis=1)}.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-9, atol=1e-12)
    assert found["count"] == values.shape[1]
    assert found["recipe"] == read_recipe(copied.cache).fingerprint()
    printed = capsys.readouterr().out
    assert all(f"{number:.4g}" in printed for number in [*found["mean"], *found["std"], *found["greatest"]])
    assert read_events(copied.cache.events)[-1]["verb"] == "stats"


def test_the_printed_words_make_training_read_mean_0_and_std_1(
    copied: RunConfig, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats(copied)
    config = cache_config(shapes, tmp_path, *pasted_words(capsys.readouterr().out))
    assert config.data.cache == copied.data.cache and config.train.renormalize
    values = np.concatenate(list(batch_values(config)), axis=1)
    assert values.shape == cached_values(copied.cache).shape
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-4)


def test_the_same_cache_gives_the_same_file(copied: RunConfig) -> None:
    stats(copied)
    before = copied.cache.stats.read_bytes()
    stats(copied)
    assert copied.cache.stats.read_bytes() == before


def test_shards_that_are_not_whole_do_not_count(copied: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    cache = copied.cache
    shards = sorted({sample.shard for sample in read_records([cache.index], Sample)})
    sidecar_path(cache.latents, shards[0]).unlink()
    stats(copied)
    assert f"of {len(shards) - 1} of {len(shards)} shards" in capsys.readouterr().out
    for shard in shards[1:]:
        tar_path(cache.latents, shard).unlink()
    with pytest.raises(Refused, match=f"none of its {len(shards)} shards holds latents; run `encode` first"):
        stats(copied)


def test_a_cache_in_an_object_store_has_the_same(copied: RunConfig) -> None:
    stats(copied)
    with serve_bucket() as bucket:
        root = Path(copied.data.cache)
        for path in (path for path in root.rglob("*") if path.is_file()):
            bucket.put(f"deep/{path.relative_to(root)}", path)
        there = load_config(None, [f"data.cache={bucket.uri('deep')}"])
        there.cache.stats.unlink()
        stats(there)
        assert there.cache.stats.read_bytes() == copied.cache.stats.read_bytes()
        assert [event["event"] for event in read_events(there.cache.events) if event["verb"] == "stats"] == ["done"]
