"""The demo's videos: one shape moving on a dark background, a caption for each, and a judge that reads them back.

The judge (`dominant_colour`, `direction_of_motion`) looks at pixels only, so it says of a sampled video whether the
model drew what the caption asked for.
"""

import csv
import io
import math
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from einops import rearrange, reduce
from numpy.typing import NDArray

from jobs.mp4 import write_mp4
from pipeline.storage import publish

COLOURS: dict[str, tuple[int, int, int]] = {  # hues 60 degrees apart: none is mistaken for another when it blurs
    "red": (230, 40, 40),
    "green": (40, 205, 50),
    "blue": (50, 80, 240),
    "yellow": (235, 220, 40),
    "magenta": (225, 45, 215),
    "cyan": (40, 215, 225),
}
SHAPES: dict[str, float] = {"circle": 1.0, "square": 0.9, "triangle": 1.25}  # reach from the centre, in radii
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x)
SIZES = ((64, 64), (96, 96), (96, 128), (128, 96), (128, 128))  # (height, width) in pixels
RATES = (Fraction(8), Fraction(12), Fraction(24), Fraction(30), Fraction(24000, 1001))  # frames per second
TARGET_FPS = 8  # what the demo samples at; lengths below are counted at this rate
SHORT = (19, 24)  # one 17-frame chunk and some frames over
LONG = (38, 60)  # two or three chunks; one clip in five

NONE = "none"  # the judge's word for "nothing to see"
CELLS = 16  # the judge averages each frame down to about 16 cells a side: noise goes, a shape stays
MIN_CHROMA = 24.0  # 8-bit levels of colourfulness below which a cell is grey
MIN_AGREEMENT = 0.5  # between the foreground's hues: 1 for one colour, near 0 for noise
MIN_TRAVEL = 0.04  # of the frame's side, below which nothing has moved


@dataclass(frozen=True)
class ShapeClip:
    """One written video and what is in it."""

    path: Path
    caption: str
    colour: str
    shape: str
    direction: str
    height: int
    width: int
    fps: Fraction
    num_frames: int


def make_shapes(folder: str | Path, num_clips: int = 64, seed: int = 0) -> list[ShapeClip]:
    """`num_clips` h264 videos in `folder`, and `captions.csv` (path relative to `folder`, caption); in file order.

    Colours, directions and pairs of them differ in number by at most one, and among 72 clips no two are of the same
    colour, shape and direction. The same seed gives the same bytes.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips is {num_clips}; make at least 1")
    folder = Path(folder)
    rng = random.Random(seed)
    clips = []
    for number, which in enumerate(rng.sample(range(num_clips), num_clips)):
        clip = design(folder, number, which, rng)
        write_mp4(clip.path, draw(clip, rng), clip.fps)
        clips.append(clip)
    captions = io.StringIO()
    csv.writer(captions, lineterminator="\n").writerows(
        [("path", "caption"), *((clip.path.name, clip.caption) for clip in clips)]
    )
    publish(folder / "captions.csv", captions.getvalue().encode())
    return clips


def design(folder: Path, number: int, which: int, rng: random.Random) -> ShapeClip:
    """Clip `which` of the balanced design, to be written as file `number`.

    Consecutive `which` walk through colours and directions together (6 and 4 share a factor, hence the step half way
    through the 24 pairs), through sizes, and through rates; the long clips fall on every size and rate in turn.
    """
    colour = list(COLOURS)[which % 6]
    direction = list(DIRECTIONS)[(which + which % 24 // 12) % 4]
    shape = list(SHAPES)[(which % 6 + which // 6) % 3]
    height, width = SIZES[which % 5]
    fps = RATES[(which + which // 5) % 5]
    shortest, longest = LONG if which % 5 == which // 5 % 5 else SHORT
    return ShapeClip(
        path=folder / f"{number:03d}-{colour}-{shape}-{direction}.mp4",
        caption=f"a {colour} {shape} moving {direction}",
        colour=colour,
        shape=shape,
        direction=direction,
        height=height,
        width=width,
        fps=fps,
        num_frames=math.ceil(rng.randint(shortest, longest) * fps / TARGET_FPS),
    )


def draw(clip: ShapeClip, rng: random.Random) -> NDArray[np.uint8]:
    """The clip's frames, uint8 (T, H, W, 3): the shape crosses the centre square at constant speed, never leaving it.

    Long clips move slowly: there is neither bounce nor wrap. The centre square is what a square crop keeps.
    """
    side = min(clip.height, clip.width)
    radius = side * rng.uniform(0.20, 0.22)
    reach = side / 2 - SHAPES[clip.shape] * radius - side / 32  # how far from the centre the shape's centre may go
    heading = np.array(DIRECTIONS[clip.direction], dtype=float)
    sideways = heading[::-1] * rng.uniform(-0.1, 0.1) * reach
    middle = np.array([clip.height, clip.width]) / 2
    background = np.full(3, rng.uniform(16, 48))
    ys, xs = np.mgrid[: clip.height, : clip.width] + 0.5  # (H, W) pixel centres
    frames = np.empty((clip.num_frames, clip.height, clip.width, 3), dtype=np.uint8)
    for index, along in enumerate(np.linspace(-reach, reach, clip.num_frames)):
        y, x = middle + along * heading + sideways
        outside = distance(clip.shape, ys - y, xs - x, radius)
        cover = rearrange(np.clip(0.5 - outside, 0, 1), "h w -> h w 1")  # a soft edge one pixel wide
        frames[index] = np.rint(background + cover * (np.array(COLOURS[clip.colour]) - background))
    return frames


def distance(shape: str, y: NDArray[np.float64], x: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Pixels from the edge of a shape around the origin, negative inside; y grows downwards, triangles point up."""
    reach = SHAPES[shape] * radius
    if shape == "circle":
        return np.hypot(y, x) - reach
    if shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) - reach
    return np.maximum(y, np.abs(x) * math.sin(math.pi / 3) - y / 2) - reach / 2


def parse_caption(caption: str) -> tuple[str, str, str]:
    """Colour, shape and direction of a caption like "a red circle moving left"; ValueError for any other sentence."""
    names = (COLOURS, SHAPES, DIRECTIONS)
    pattern = "a ({}) ({}) moving ({})".format(*("|".join(table) for table in names))
    found = re.fullmatch(pattern, caption.strip())
    if found is None:
        raise ValueError(f"caption is {caption!r}; wanted 'a <colour> <shape> moving <direction>'")
    colour, shape, direction = found.groups()
    return colour, shape, direction


def dominant_colour(frames: NDArray[np.uint8]) -> str:
    """The name in COLOURS nearest in hue to the foreground of uint8 (T, H, W, 3); "none" if all is grey or noise."""
    chroma, weight = foreground(frames)
    seen = reduce(chroma * rearrange(weight, "t h w -> t h w 1"), "t h w c -> c", "sum")
    if np.linalg.norm(seen) <= MIN_AGREEMENT * (np.linalg.norm(chroma, axis=-1) * weight).sum():
        return NONE
    pure = np.array(list(COLOURS.values()), dtype=float)
    pure -= pure.mean(axis=1, keepdims=True)
    pure /= np.linalg.norm(pure, axis=1, keepdims=True)
    return list(COLOURS)[int(np.argmax(pure @ seen))]


def direction_of_motion(frames: NDArray[np.uint8]) -> str:
    """Where the foreground of uint8 (T, H, W, 3) moves, a name in DIRECTIONS, or "none" where nothing moves.

    The slope of a least-squares line through the foreground's centre in each frame that has one.
    """
    _, weight = foreground(frames)
    times = np.flatnonzero(weight.sum(axis=(1, 2)))
    if len(times) < 2:
        return NONE
    rows, columns = np.mgrid[: weight.shape[1], : weight.shape[2]]
    mass = weight[times].sum(axis=(1, 2))
    centres = np.stack([(weight[times] * axis).sum(axis=(1, 2)) / mass for axis in (rows, columns)], axis=1)  # (T, 2)
    centred = times - times.mean()
    travel = (centred @ centres) / (centred @ centred) * (times[-1] - times[0])  # (2,) cells from first to last frame
    if np.abs(travel).max() < MIN_TRAVEL * min(weight.shape[1:]):
        return NONE
    return max(DIRECTIONS, key=lambda name: float(np.dot(travel, DIRECTIONS[name])))


def foreground(frames: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chroma (T, h, w, 3) of each cell, its colour less its own grey, and its weight (T, h, w), 0 in the background.

    A cell is foreground when it is colourful, and at least half as far from the background's colour as the most
    distant cells are; so a tinted background does not count, and a blurred shape does.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; wanted uint8 (T, H, W, 3), none of them 0")
    _, height, width, _ = frames.shape
    cell = max(1, min(height, width) // CELLS)  # pixels
    whole = frames[:, : height - height % cell, : width - width % cell].astype(float)
    cells = reduce(whole, "t (h a) (w b) c -> t h w c", "mean", a=cell, b=cell)
    chroma = cells - cells.mean(axis=-1, keepdims=True)
    apart = np.linalg.norm(chroma - np.median(chroma, axis=(0, 1, 2)), axis=-1)  # (T, h, w)
    colourful = np.linalg.norm(chroma, axis=-1) > MIN_CHROMA
    enough = max(MIN_CHROMA, float(np.percentile(apart, 98)) / 2)
    return chroma, np.where(colourful & (apart > enough), apart, 0.0)
