"""Sheets: the frames given are where they belong, and what cannot be shown is refused."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.pictures import (
    GAP,
    LINE,
    PAPER,
    STRIP,
    TILE,
    Row,
    column_left,
    contact_sheet,
    sample_sheet,
    sheet_top,
    shown,
)
from jobs.shapes import design, draw

TITLES = ("source", "from the cache")


def counting(num_frames: int, blue: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Frame t is flat (10 t, 0, blue)."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = 10 * np.arange(num_frames)[:, None, None]
    frames[..., 2] = blue
    return frames


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_every_frame_is_in_its_place(tmp_path: Path) -> None:
    rows = [Row(f"clip {n}", (counting(17, blue=50 * n), counting(17, blue=50 * n + 25))) for n in range(3)]
    contact_sheet(tmp_path / "sheet.png", rows)
    sheet = pixels(tmp_path / "sheet.png")
    pitch = (sheet.shape[0] - sheet_top(TITLES)) // 3
    for n in range(3):
        for column in range(2):
            for place, index in enumerate((0, 4, 8, 12, 16)):
                y = sheet_top(TITLES) + n * pitch + LINE + TILE // 2
                x = column_left(column) + place * (TILE + GAP) + TILE // 2
                assert tuple(sheet[y, x]) == (10 * index, 0, 50 * n + 25 * column)


def test_captions_and_titles_are_written(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", [Row("a red circle", (counting(5, 0), counting(5, 0)))])
    dark = np.all(pixels(tmp_path / "sheet.png") < 160, axis=-1)
    caption = slice(sheet_top(TITLES), sheet_top(TITLES) + LINE)
    assert dark[caption].sum() > 50
    for column in range(2):
        assert dark[: sheet_top(TITLES), column_left(column) :][:, :STRIP].sum() > 20


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (128, 96), (240, 426), (2, 200)])
def test_shapes_are_kept(tmp_path: Path, height: int, width: int) -> None:
    sample_sheet(tmp_path / "sheet.png", [("", counting(1, 200, height, width))])
    sheet = pixels(tmp_path / "sheet.png")
    found = np.argwhere((sheet == (0, 0, 200)).all(axis=-1))
    tall, wide = np.ptp(found, axis=0) + 1
    assert max(tall, wide) == TILE
    assert tall / TILE == pytest.approx(height / max(height, width), abs=0.6 / TILE)
    assert wide / TILE == pytest.approx(width / max(height, width), abs=0.6 / TILE)


def test_short_clips_show_each_frame_once() -> None:
    assert shown(1) == [0]
    assert shown(3) == [0, 1, 2]
    assert shown(17) == [0, 4, 8, 12, 16]
    assert len(shown(100)) == 5


def test_eight_clips_of_the_demo_fit_in_200_kb(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = []
    for which in range(8):
        clip = replace(design(tmp_path, which, which, rng), height=64, width=64, num_frames=17)
        source = draw(clip, rng)
        small = [Image.fromarray(frame).resize((24, 24)).resize((64, 64)) for frame in source]  # as lossy as a VAE
        rows.append(Row(clip.caption, (source, np.stack([np.asarray(frame) for frame in small]))))
    contact_sheet(tmp_path / "sheet.png", rows)
    assert (tmp_path / "sheet.png").stat().st_size < 200_000
    assert pixels(tmp_path / "sheet.png").shape[1] < 1000


def test_long_captions_are_cut_to_the_sheet(tmp_path: Path) -> None:
    sample_sheet(tmp_path / "sheet.png", [("a very long caption " * 40 + "\nof two lines", counting(2, 0))])
    assert (pixels(tmp_path / "sheet.png")[:, -10:] == PAPER).all()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        sample_sheet(tmp_path / f"{name}.png", [("one", counting(9, 30))])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    good = counting(3, 0)
    scaled: Any = good / 255
    for rows, message in (
        ([], "0 rows"),
        ([Row("x", (good,))], "1 strips for 2 titles"),
        ([Row("x", (good, good[:0]))], r"\(0, 64, 64, 3\)"),
        ([Row("x", (good, scaled))], "float64.*wanted uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            contact_sheet(tmp_path / "sheet.png", rows)
    with pytest.raises(ValueError, match="0 rows"):
        sample_sheet(tmp_path / "sheet.png", [])
    assert list(tmp_path.iterdir()) == []
