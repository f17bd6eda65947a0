"""PNGs to look at: what the cache holds beside what went in, what the model draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.errors import Refused
from pipeline.storage import publish

TILE = 88  # pixels, the longer side of a frame on a sheet
TILES = 5  # frames shown of each clip
GAP = 2  # pixels between the frames of a strip
MARGIN = 12  # pixels around the sheet, between strips and between rows
LINE = 18  # pixels of height for a line of text
TEXT_SIZE = 13  # pixels
STRIP = TILES * TILE + (TILES - 1) * GAP  # pixels, the width of a strip
PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (120, 120, 124)


def read_picture(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """An image -> (height, width, 3) uint8, RGB, as large as covers that and cropped around its centre.

    Refused where there is none, or nothing that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise Refused(f"{path}: cannot be read as an image ({error}); give a png or jpeg") from error
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Row:
    """A clip on a sheet: its caption above one strip per column, each strip uint8 (T, H, W, 3)."""

    caption: str
    strips: tuple[NDArray[np.uint8], ...]


def contact_sheet(path: str | Path, rows: Sequence[Row], titles: Sequence[str] = ("source", "from the cache")) -> None:
    """A PNG with `TILES` evenly spaced frames of every strip; `titles` name the columns. Published whole.

    Raises ValueError when there is nothing to show, or a row has not one strip per title.
    """
    if not rows or not titles:
        raise ValueError(f"{path}: {len(rows)} rows and {len(titles)} titles; a sheet needs at least one of each")
    for row in rows:
        check_row(row, len(titles))
    heights = [max(tile_size(strip)[1] for strip in row.strips) for row in rows]
    width = MARGIN + len(titles) * (STRIP + MARGIN)
    sheet = Image.new("RGB", (width, sheet_top(titles) + sum(LINE + height + MARGIN for height in heights)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for column, title in enumerate(titles):
        pen.text((column_left(column), MARGIN), title, FAINT, font)
    top = sheet_top(titles)
    for row, height in zip(rows, heights):
        pen.text((MARGIN, top), fitting(row.caption, font, width - 2 * MARGIN), INK, font)
        for column, strip in enumerate(row.strips):
            paste_strip(sheet, strip, column_left(column), top + LINE)
        top += LINE + height + MARGIN
    publish(Path(path), lambda file: sheet.save(file, format="png", optimize=True))


def sample_sheet(path: str | Path, samples: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    """A PNG of (caption, frames uint8 (T, H, W, 3)): what the model drew for each caption. As `contact_sheet`."""
    contact_sheet(path, [Row(caption, (frames,)) for caption, frames in samples], titles=("",))


def check_row(row: Row, num_columns: int) -> None:
    """ValueError unless the row has `num_columns` strips that can be shown."""
    if len(row.strips) != num_columns:
        raise ValueError(f"{row.caption!r} has {len(row.strips)} strips for {num_columns} titles; give one for each")
    for strip in row.strips:
        if strip.dtype != np.uint8 or strip.ndim != 4 or strip.shape[-1] != 3 or 0 in strip.shape:
            raise ValueError(f"{row.caption!r}: frames are {strip.dtype} {strip.shape}; wanted uint8 (T, H, W, 3)")


def sheet_top(titles: Sequence[str]) -> int:
    """Where the first row starts: below the titles, if there are any to read."""
    return MARGIN + (LINE + MARGIN // 2 if any(titles) else 0)


def column_left(column: int) -> int:
    """Where a column of strips starts."""
    return MARGIN + column * (STRIP + MARGIN)


def tile_size(frames: NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) in pixels of a frame of (T, H, W, 3) on the sheet: its shape kept, its longer side `TILE`."""
    _, height, width, _ = frames.shape
    scale = TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def shown(num_frames: int) -> list[int]:
    """Which frames a strip shows: first, last and evenly between; all of them when there are no more than `TILES`."""
    return sorted({round(k) for k in np.linspace(0, num_frames - 1, TILES).tolist()})


def paste_strip(sheet: Image.Image, frames: NDArray[np.uint8], left: int, top: int) -> None:
    """Paste the shown frames side by side, one every TILE + GAP pixels or, where they are narrower, at their width."""
    width, height = tile_size(frames)
    for place, index in enumerate(shown(len(frames))):
        tile = Image.fromarray(frames[index]).resize((width, height), Image.Resampling.BILINEAR)
        sheet.paste(tile, (left + place * (width + GAP), top))


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
