"""Measure the coefficient table of `models/vae/dct.py` on real clips, and how well it reconstructs them.

    PYTHONPATH=. python tests/benchmarks/measure_dct.py DIR [DIR...]

Prints the table ready to paste (clips weigh as in `CLIPS`), the share of the energy that C channels capture, and the
PSNR per clip of the table that `dct.py` holds now: paste, then run again.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import av
import numpy as np
import torch
from einops import einsum, rearrange, reduce
from PIL import Image
from torch import Tensor

from models.vae import load_vae
from models.vae.dct import COLOURS, MAX_CHANNELS, Coefficient, basis, group_blocks
from models.vae.interface import VideoVAE

# File -> weight. The last two are saturated colour bars. At full weight most of the chroma measured would be theirs;
# without them the quiet colours of four clips would be all there is, and flat saturated shapes be far out of range.
CLIPS = {
    "arm_wrestling.mp4": 1.0,
    "pancake.mkv": 1.0,
    "nasa.mp4": 1.0,
    "mm_test.avi": 1.0,
    "av1_video.mkv": 0.1,
    "h265_10bits.mp4": 0.1,
}
SIZES = (128, 256)
FPS = 24.0
CHUNK_FRAMES = 17


def read_chunks(path: Path, size: int, max_chunks: int) -> Tensor:
    """The first chunks of a video at 24 fps, cropped to size x size: (n, 3, 17, size, size) in [-1, 1]."""
    frames: list[np.ndarray] = []
    with av.open(str(path)) as container:
        start = None
        for frame in container.decode(video=0):
            if frame.time is None:
                continue
            start = frame.time if start is None else start
            if frame.time - start < len(frames) / FPS - 0.5 / FPS:
                continue
            frames.append(cover(frame.to_image(), size))
            if len(frames) == max_chunks * CHUNK_FRAMES:
                break
    whole = len(frames) // CHUNK_FRAMES * CHUNK_FRAMES
    if not whole:
        raise SystemExit(f"{path}: {len(frames)} frames at {FPS:g} fps, a chunk needs {CHUNK_FRAMES}; leave it out")
    pixels = torch.from_numpy(np.stack(frames[:whole]))
    return rearrange(pixels, "(n f) h w c -> n c f h w", f=CHUNK_FRAMES).float() / 127.5 - 1


def cover(image: Image.Image, size: int) -> np.ndarray:
    """Resize so that the image covers size x size, crop the centre: (size, size, 3) uint8."""
    ratio = size / min(image.size)
    width, height = (max(size, round(side * ratio)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(
        image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    )


def all_coefficients(frames: int) -> tuple[Coefficient, ...]:
    """Every coefficient of a block of `frames` frames, in no particular order."""
    return tuple(Coefficient(*key, 0.0, 1.0) for key in product(COLOURS, range(frames), range(8), range(8)))


def measure(clips: list[Tensor], weights: list[float]) -> tuple[tuple[Coefficient, ...], tuple[Coefficient, ...]]:
    """Clips (n, 3, 17, H, W) -> every coefficient, of a group and of a lone frame, as it was measured."""
    measured = []
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    for frames, part in ((4, slice(1, None)), (1, slice(0, 1))):
        rows = all_coefficients(frames)
        matrix = basis(rows, frames).float()
        moments = torch.stack([clip_moments(clip[:, :, part], matrix, frames) for clip in clips])  # (clips, 2, C)
        mean, square = einsum(share, moments, "n, n m c -> m c")
        std = (square - mean**2).sqrt()
        measured.append(tuple(row._replace(shift=float(m), scale=float(s)) for row, m, s in zip(rows, mean, std)))
    return measured[0], measured[1]


def clip_moments(pixels: Tensor, matrix: Tensor, frames: int) -> Tensor:
    """First and second moment of every coefficient over the blocks of one clip: (2, C), float64."""
    total, count = torch.zeros(2, len(matrix), dtype=torch.float64), 0
    for chunk in pixels.split(1):
        found = rearrange(group_blocks(chunk, frames), "b t h w d -> (b t h w) d") @ matrix.T  # (blocks, C)
        total += torch.stack([reduce(found.double() ** power, "n c -> c", "sum") for power in (1, 2)])
        count += len(found)
    return total / count


def order(rows: tuple[Coefficient, ...]) -> list[Coefficient]:
    """The table: 64 channels by energy, then enough motionless rows for the lone frames of any number of channels."""
    ranked = sorted(rows, key=lambda row: -row.scale)
    channels, rest = ranked[:MAX_CHANNELS], ranked[MAX_CHANNELS:]
    missing = sum(row.t > 0 for row in channels)
    return channels + [row for row in rest if row.t == 0][:missing]


def table_text(rows: list[Coefficient]) -> Iterator[str]:
    """Five entries a line; only the averages have a shift, any other mean is chance."""
    entries = []
    for row in rows:
        shift = row.shift if (row.t, row.y, row.x) == (0, 0, 0) else 0.0
        entries.append(f"{row.colour}{row.t}{row.y}{row.x} {shift:.3g} {row.scale:.3g}")
    for start in range(0, len(entries), 5):
        yield ", ".join(entries[start : start + 5])


def psnr(clip: Tensor, vae: VideoVAE) -> float:
    """dB between pixels and what is decoded, peak to peak 2."""
    errors = []
    for chunk in clip.split(1):
        decoded = vae.decode(vae.encode(chunk), chunk.shape[2]).clamp(-1, 1)
        errors.append((decoded - chunk).square().mean().item())
    return 10 * math.log10(4 / (sum(errors) / len(errors)))


def main() -> None:
    """Read, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that hold the clips")
    parser.add_argument("--max-chunks", type=int, default=6, help="17-frame chunks per clip and size")
    options = parser.parse_args()

    paths = [folder / name for name in CLIPS for folder in options.folders if (folder / name).is_file()]
    if absent := set(CLIPS) - {path.name for path in paths}:
        raise SystemExit(
            f"{', '.join(sorted(absent))} not in {', '.join(map(str, options.folders))}; name their folder"
        )
    clips = {(path.name, size): read_chunks(path, size, options.max_chunks) for path in paths for size in SIZES}

    groups, frames = measure(list(clips.values()), [CLIPS[name] for name, _ in clips])
    print("\n".join(table_text(order(groups))))
    for name, found in (("groups", groups), ("first frames", frames)):
        energies = sorted((row.scale**2 for row in found), reverse=True)
        shares = ", ".join(f"C={c} {sum(energies[:c]) / sum(energies):.2%}" for c in (4, 8, 16, 32, 64))
        print(f"variance captured, {name}: {shares}")
    print("\nPSNR in dB    " + "".join(f"{f'{size} px, C={c}':>16}" for size in SIZES for c in (16, 32)))
    for path in paths:
        results = [psnr(clips[path.name, size], load_vae(f"dct:{c}")) for size in SIZES for c in (16, 32)]
        print(
            f"{path.name:18}"
            + "".join(f"{result:12.2f}    " for result in results)
            + f"{len(clips[path.name, 128])} chunks"
        )


if __name__ == "__main__":
    main()
