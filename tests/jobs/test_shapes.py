"""The synthetic videos are what their captions say, and the judge can tell, and can tell when they are not."""

import csv
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image

from jobs.shapes import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    TARGET_FPS,
    ShapeClip,
    direction_of_motion,
    dominant_colour,
    make_shapes,
    parse_caption,
)

CHUNK = 17  # frames


def read(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sampled(clip: ShapeClip, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames nearest 0, 1/8, 2/8 ... seconds, while the video lasts."""
    wanted = np.arange(int(len(frames) / clip.fps * TARGET_FPS))
    return frames[np.minimum(np.rint(wanted / TARGET_FPS * float(clip.fps)).astype(int), len(frames) - 1)]


def centre_crop(frames: NDArray[np.uint8], size: int = 64) -> NDArray[np.uint8]:
    """Resized to cover size x size, then its centre."""
    _, height, width, _ = frames.shape
    scale = size / min(height, width)
    resized = (round(width * scale), round(height * scale))
    y, x = (resized[1] - size) // 2, (resized[0] - size) // 2
    box = (x, y, x + size, y + size)
    return np.stack([np.asarray(Image.fromarray(f).resize(resized).crop(box)) for f in frames])


def noisy(frames: NDArray[np.uint8], sigma: float = 20, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def blurred(frames: NDArray[np.uint8], factor: int = 8) -> NDArray[np.uint8]:
    """Down to a few pixels and up again, and half as colourful."""
    _, height, width, _ = frames.shape
    small = (width // factor, height // factor)
    soft = np.stack([np.asarray(Image.fromarray(f).resize(small).resize((width, height))) for f in frames])
    grey = soft.mean(axis=-1, keepdims=True)
    return (grey + (soft - grey) * 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ShapeClip]:
    return make_shapes(tmp_path_factory.mktemp("shapes"), num_clips=64, seed=0)


@pytest.fixture(scope="module")
def decoded(clips: list[ShapeClip]) -> list[NDArray[np.uint8]]:
    return [read(clip.path) for clip in clips]


def test_the_judge_reads_every_clip(clips: list[ShapeClip], decoded: list[NDArray[np.uint8]]) -> None:
    for clip, frames in zip(clips, decoded):
        chunk = centre_crop(sampled(clip, frames)[:CHUNK])
        assert chunk.shape == (CHUNK, 64, 64, 3)
        for seen in (frames, chunk, noisy(chunk), blurred(chunk)):
            assert (dominant_colour(seen), direction_of_motion(seen)) == (clip.colour, clip.direction), clip.path.name


def test_every_chunk_of_a_long_clip_moves(clips: list[ShapeClip], decoded: list[NDArray[np.uint8]]) -> None:
    for clip, frames in zip(clips, decoded):
        whole = sampled(clip, frames)
        for start in range(0, len(whole) - CHUNK + 1, CHUNK):
            assert direction_of_motion(whole[start : start + CHUNK]) == clip.direction, (clip.path.name, start)


def test_the_judge_can_say_no(clips: list[ShapeClip], decoded: list[NDArray[np.uint8]]) -> None:
    for clip, frames in zip(clips[:24], decoded):
        assert dominant_colour(frames[..., [1, 2, 0]]) not in (clip.colour, "none")
        assert direction_of_motion(frames[::-1]) not in (clip.direction, "none")
        turned = rearrange(frames, "t h w c -> t w h c")  # mirrored on the diagonal: left becomes up
        assert direction_of_motion(turned) not in (clip.direction, "none")


def test_nothing_to_see_is_none(decoded: list[NDArray[np.uint8]]) -> None:
    black = np.zeros((CHUNK, 64, 64, 3), dtype=np.uint8)
    grey = repeat(decoded[0].mean(axis=-1).astype(np.uint8), "t h w -> t h w c", c=3)
    tinted = black + np.array([60, 20, 20], dtype=np.uint8)
    static = noisy(black + np.uint8(128), sigma=40)
    for frames in (black, grey, tinted, static):
        assert (dominant_colour(frames), direction_of_motion(frames)) == ("none", "none")


def test_a_shape_at_rest_has_a_colour_and_no_direction(
    clips: list[ShapeClip], decoded: list[NDArray[np.uint8]]
) -> None:
    still = repeat(decoded[0][0], "h w c -> t h w c", t=CHUNK)
    assert (dominant_colour(still), direction_of_motion(still)) == (clips[0].colour, "none")
    assert direction_of_motion(decoded[0][:1]) == "none"


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_the_judge_refuses_what_is_no_video(frames: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="wanted uint8"):
        dominant_colour(frames)


def test_colours_shapes_and_directions_are_balanced(clips: list[ShapeClip]) -> None:
    def spread(names: list[str] | list[tuple[str, str]], kinds: int) -> int:
        counts = Counter(names)
        assert len(counts) == kinds
        return max(counts.values()) - min(counts.values())

    assert spread([c.colour for c in clips], len(COLOURS)) <= 1
    assert spread([c.direction for c in clips], len(DIRECTIONS)) <= 1
    assert spread([c.shape for c in clips], len(SHAPES)) <= 1
    assert spread([(c.colour, c.direction) for c in clips], len(COLOURS) * len(DIRECTIONS)) <= 1
    assert len({c.caption for c in clips}) == len(clips)
    long = [c for c in clips if c.num_frames / c.fps * TARGET_FPS >= 2 * CHUNK]
    assert 10 <= len(long) <= 16
    assert len({(c.height, c.width) for c in long}) == 5


def test_files_are_as_recorded(clips: list[ShapeClip], decoded: list[NDArray[np.uint8]]) -> None:
    for clip, frames in zip(clips, decoded):
        assert frames.shape == (clip.num_frames, clip.height, clip.width, 3)
        assert len(sampled(clip, frames)) >= CHUNK
        assert clip.num_frames / clip.fps >= 2.2
        with av.open(str(clip.path)) as container:
            assert container.streams.video[0].average_rate == clip.fps
            assert container.streams.video[0].codec_context.name == "h264"


def test_captions_are_beside_the_videos(clips: list[ShapeClip]) -> None:
    folder = clips[0].path.parent
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {path.name for path in folder.glob("*.mp4")}
    for row, clip in zip(rows, clips, strict=True):
        assert folder / row["path"] == clip.path
        assert parse_caption(row["caption"]) == (clip.colour, clip.shape, clip.direction)


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_shapes(tmp_path / name, num_clips=6, seed=seed)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("caption", ["", "a red circle", "a mauve circle moving left", "a red circle moving left!"])
def test_other_sentences_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="wanted 'a <colour>"):
        parse_caption(caption)


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_shapes(tmp_path, num_clips=0)
