"""Of a thousand inputs one changes: the VAE sees the chunks of that one and no other. Of captions it sees none."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.config import RunConfig
from jobs.encode import encode
from jobs.events import read_events
from jobs.mp4 import write_mp4
from jobs.plan import plan
from jobs.scan import scan
from jobs.text import text
from pipeline.storage import publish
from tests.conftest import cache_config, digests
from tests.test_end_to_end import moving_bar

CHUNKS = [1, 2, 2, 1, 2, 1]  # of each video; all others are images, of one chunk each
NUM_INPUTS = 1000


def write_bar(path: Path, num_chunks: int, seed: int) -> None:
    write_mp4(path, moving_bar(17 * num_chunks + 3, seed), 8)


def write_image(path: Path, seed: int) -> None:
    Image.new("RGB", (64, 64), (seed % 256, seed // 256, 90)).save(path, "png", compress_level=0)


def encoded_chunks(config: RunConfig) -> int:
    """How many chunks `scan`, `plan` and `encode` have the VAE encode."""
    for verb in (scan, plan, encode):
        assert verb(config) == 0
    events = [event for event in read_events(config.cache.events) if event["verb"] == "encode"]
    start = max(number for number, event in enumerate(events) if event["event"] == "start")
    return sum(event["chunks"] for event in events[start:] if event["event"] == "shard")


def encoded_captions(config: RunConfig) -> int:
    assert text(config) == 0
    return [event for event in read_events(config.cache.events) if event["verb"] == "text"][-1]["captions"]


@pytest.fixture(scope="module")
def thousand(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A thousand inputs, encoded; each test leaves the cache with what it has changed."""
    root = tmp_path_factory.mktemp("thousand")
    videos = root / "videos"
    publish(videos / "0.txt", b"bar number 0")
    for number, num_chunks in enumerate(CHUNKS):
        write_bar(videos / f"{number}.mp4", num_chunks, number)
    for number in range(NUM_INPUTS - len(CHUNKS)):
        write_image(videos / f"{number:04d}.png", number)
    config = cache_config(videos, root, "recipe.scenes=off", "encode.shard_bytes=262144", "encode.forecast=false")
    assert encoded_chunks(config) == NUM_INPUTS - len(CHUNKS) + sum(CHUNKS)
    assert encoded_captions(config) > 0
    return config


@pytest.fixture
def videos(thousand: RunConfig) -> Path:
    return Path(thousand.data.source)


def test_nothing_new_is_no_work(thousand: RunConfig) -> None:
    assert (encoded_chunks(thousand), encoded_captions(thousand)) == (0, 0)


def test_one_more_costs_its_own_chunks(thousand: RunConfig, videos: Path) -> None:
    before = digests(thousand.cache.latents)
    write_bar(videos / "more.mp4", 2, 10)
    assert encoded_chunks(thousand) == 2
    assert before.items() <= digests(thousand.cache.latents).items()


def test_one_more_image_is_one_chunk(thousand: RunConfig, videos: Path) -> None:
    write_image(videos / "more.png", 10_000)
    assert encoded_chunks(thousand) == 1


def test_another_one_in_its_place_costs_its_own_chunks(thousand: RunConfig, videos: Path) -> None:
    before = digests(thousand.cache.latents)
    write_bar(videos / "3.mp4", 2, 20)  # which had one
    assert encoded_chunks(thousand) == 2
    assert before.items() <= digests(thousand.cache.latents).items()


def test_one_less_costs_nothing_nor_does_its_return(thousand: RunConfig, videos: Path) -> None:
    content = (videos / "4.mp4").read_bytes()
    (videos / "4.mp4").unlink()
    assert encoded_chunks(thousand) == 0
    (videos / "4.mp4").write_bytes(content)
    assert encoded_chunks(thousand) == 0


def test_another_caption_costs_nothing_but_its_shards_captions(thousand: RunConfig, videos: Path) -> None:
    encoded_captions(thousand)
    before = digests(thousand.cache.latents)
    (videos / "0.txt").write_text("another bar")
    assert encoded_chunks(thousand) == 0
    assert digests(thousand.cache.latents) == before
    assert encoded_captions(thousand) <= len(CHUNKS)
