"""`schedule` tells what training will see, before it does."""

import re

import pytest

from jobs.config import ConfigError, RunConfig
from jobs.progress import console
from jobs.run_toml import load_config
from jobs.schedule import epoch_table, parse_steps, show_schedule
from jobs.shapes import make_shapes
from pipeline.records import Sample
from pipeline.schedule import Bucket, Count
from pipeline.tables import read_records
from tests.conftest import cache_config, fill_cache

Capture = pytest.CaptureFixture[str]


def with_train(config: RunConfig, **knobs) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=knobs)})


def with_words(config: RunConfig, *words: str) -> RunConfig:
    asked = load_config(None, list(words)).train
    return with_train(config, **{name: getattr(asked, name) for name in asked.model_fields_set})


def indexed(config: RunConfig) -> list[Sample]:
    return list(read_records([config.cache.index], Sample))


def told(config: RunConfig, capsys: Capture, epoch: int = 0, steps: str = "0:100") -> str:
    capsys.readouterr()
    show_schedule(config, epoch, steps)
    return capsys.readouterr().out


def row_of(shown: str, name: str) -> list[str]:
    """The words of a row of the summary."""
    return next(line.split() for line in shown.splitlines() if line.split()[:1] == [name])


def keys_in(shown: str) -> list[str]:
    """The keys of the batches, each with where it begins, such as +34."""
    return re.findall(r"\S+-64x64\S*", shown)


@pytest.fixture(scope="module")
def padded(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A cache of two videos whose last chunks are filled up with padding."""
    root = tmp_path_factory.mktemp("padded")
    make_shapes(root / "shapes", num_clips=2)
    config = cache_config(root / "shapes" / "captions.csv", root, "recipe.tail=pad")
    fill_cache(config)
    return config


def test_every_clip_of_an_epoch_is_told_once(cached: RunConfig, capsys: Capture) -> None:
    shown = told(with_train(cached, batch=3), capsys, epoch=1)
    assert sorted(keys_in(shown)) == sorted(sample.key for sample in indexed(cached))
    assert "64x64, 17 frames" in shown and "64x64, 34 frames" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if not line.startswith("schedule: "))


def test_only_the_steps_asked_for_are_told(cached: RunConfig, capsys: Capture) -> None:
    shown = told(with_train(cached, batch=3), capsys, steps="1:3")
    assert re.findall(r"^epoch 0, step (\d+):", shown, re.MULTILINE) == ["1", "2"]


def test_the_summary_adds_up(cached: RunConfig, capsys: Capture) -> None:
    samples = indexed(cached)
    shown = told(with_train(cached, batch=4), capsys, steps="0:0")
    latents = sum(5 * sample.num_chunks for sample in samples)
    assert row_of(shown, "all")[1:3] == [f"{len(samples)}", f"{latents * 4 * 4:,}"]  # 4x4 patches of 2x2 latents
    assert row_of(shown, "all")[-1] == "0.0%"  # no padding


def test_fillers_and_padding_are_shares_of_what_is_computed(capsys: Capture) -> None:
    short, long = Bucket(64, 64, 17, 1), Bucket(1080, 1920, 102, 6)
    counts = [Count(short, 4, 6, 2), Count(long, 475, 10**7, 21053), Count(Bucket(8, 8, 1, 1), 4, 0, 0)]
    console.print(epoch_table(0, counts, {short: 0.5}, lambda bucket: 80 if bucket == short else 243000))
    shown = capsys.readouterr().out
    assert row_of(shown, "64x64") == ["64x64", "17", "6", "480", "4", "2", "25.0%", "6.2%"]
    assert row_of(shown, "1080x1920")[:4] == ["1080x1920", "102", "10,000,000", "2,430,000,000,000"]
    assert row_of(shown, "all")[1:3] == ["10,000,006", "2,430,000,000,480"]
    assert "8x8" not in shown.split()
    assert all(len(line) <= 80 for line in shown.splitlines())


def filled_latents(frames: int) -> int:
    """One of the first frame of a chunk, and one of each four after it, or part of four."""
    return sum(frame % 17 in (0, 1, 5, 9, 13) for frame in range(frames))


def test_padding_is_what_no_frame_fills(padded: RunConfig, capsys: Capture) -> None:
    samples = indexed(padded)
    assert any(sample.valid_frames < sample.num_frames for sample in samples)
    filled = sum(filled_latents(sample.valid_frames) for sample in samples)
    latents = sum(5 * sample.num_chunks for sample in samples)
    shown = told(with_train(padded, batch=1), capsys, steps="0:0")  # so that nothing is a filler
    assert row_of(shown, "all")[-2:] == ["0.0%", f"{1 - filled / latents:.1%}"]


@pytest.mark.parametrize("epoch", range(6))  # the parts are drawn
def test_of_a_clip_shown_in_part_only_the_padding_of_that_part_counts(
    padded: RunConfig, capsys: Capture, epoch: int
) -> None:
    shown = told(with_words(padded, "train.buckets={'*' = {17 = [1, 1, 1]}}"), capsys, epoch)
    valid = {sample.key: sample.valid_frames for sample in indexed(padded)}
    begun = [key.partition("+") for key in keys_in(shown)]
    filled = [filled_latents(min(17, valid[key] - int(begin or 0))) for key, _, begin in begun]
    assert row_of(shown, "all")[-1] == f"{1 - sum(filled) / (5 * len(filled)):.1%}"


def test_a_table_of_lengths_shows_long_clips_short(cached: RunConfig, capsys: Capture) -> None:
    shown = told(with_words(cached, "train.buckets={'*' = {17 = [1, 1, 4]}}"), capsys)
    assert "64x64, 17 frames" in shown and "34 frames" not in shown
    long = {sample.key for sample in indexed(cached) if sample.num_chunks > 1}
    begun_late = set(re.findall(r"(\S+-64x64)\+17\b", shown))
    assert begun_late and begun_late <= long


def test_a_token_budget_decides_the_batch(cached: RunConfig, capsys: Capture) -> None:
    shown = told(with_words(cached, f"train.tokens={2 * 5 * 4 * 4}"), capsys)  # two clips of one chunk
    assert "17 frames, 2 of 2 samples, 160 tokens" in shown
    assert "34 frames, 1 of 1 samples, 160 tokens" in shown
    assert "17 frames, 1 of 1 samples, 80 tokens" in told(with_words(cached, "train.tokens=1"), capsys)


@pytest.mark.parametrize(
    ("buckets", "batch"),
    [
        ("{'64x64' = {17 = [1, 1, 3]}}", "9"),  # scaled
        ("{'64x64' = {17 = [1, 1, 0]}}", "7"),  # as the run says
        ("{'256x256' = {17 = [1, 1, 3]}}", "7"),  # says nothing of this size
    ],
)
def test_tables_are_scaled_and_what_they_leave_open_is_the_runs(
    cached: RunConfig, capsys: Capture, buckets: str, batch: str
) -> None:
    words = (f"train.buckets={buckets}", "train.batch_scale=3", "train.batch=7")
    assert row_of(told(with_words(cached, *words), capsys, steps="0:0"), "64x64")[4] == batch


def test_keys_of_mixed_caches_are_told_by_cache(cached: RunConfig, padded: RunConfig, capsys: Capture) -> None:
    shown = told(with_train(cached, mix={padded.data.cache: 2.0}, batch=100), capsys)
    assert f"clips of {padded.data.cache}, each 2 times per epoch" in shown
    own, other = len(indexed(cached)), len(indexed(padded))
    assert row_of(shown, "all")[1] == f"{own + 2 * other}"
    blocks = re.split(r"^  of (.*):$", shown, flags=re.MULTILINE)[1:]
    keys = {
        place: sorted(key for one, block in zip(blocks[::2], blocks[1::2]) if one == place for key in keys_in(block))
        for place in (cached.data.cache, padded.data.cache)
    }
    assert keys[cached.data.cache] == sorted(sample.key for sample in indexed(cached))
    assert keys[padded.data.cache] == sorted(2 * [sample.key for sample in indexed(padded)])


@pytest.mark.parametrize("steps", ["5", "5:", ":5", "7:3", "a:b", "-1:3", "1:2:3", ""])
def test_steps_that_are_none_are_told(steps: str) -> None:
    with pytest.raises(ConfigError, match="--steps: found .*wanted A:B"):
        parse_steps(steps)


def test_steps_behind_the_end_of_the_epoch_are_told(cached: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"--steps: found 2:3, but epoch 5 has 2 steps; wanted some of 0:2"):
        show_schedule(with_train(cached, batch=100), 5, "2:3")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.buckets=open-sora", "train.buckets: found 'open-sora': not known; known: open-sora-v1.2-stage1"),
        ("train.buckets={'240' = {17 = [1, 1, 1]}}", "'240' is no size"),
        ("train.buckets={'*' = {17 = [1, 2, 1]}}", "17 = .1, 2, 1. cannot be"),
        ("train.buckets={'*' = {17 = [1, 1]}}", r"17 = \[1, 1\] cannot be; wanted frames = \[share, keep, batch\]$"),
        ("train.tokens=0", "train.tokens: found 0"),
        ("train.batch_scale=0", "train.batch_scale: found 0"),
        ("train.mix={'/data/more' = 0}", "train.mix./data/more: found 0"),
        ("train.mix={'/data/more' = inf}", "train.mix./data/more: found inf"),
    ],
)
def test_knobs_that_cannot_be_are_told(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [word])
