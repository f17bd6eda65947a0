"""Frames -> how they look, by three numbers that are cheap beside decoding them.

luminance   mean luma, 0 = black .. 1 = white: the grey value as stored and displayed, not linear light
motion      mean absolute change of luma from a frame to the next one, 0 = still .. 1 = black to white; 0 for one frame
sharpness   mean absolute difference of luma from the mean of its four neighbours, 0 = flat .. 1 = a chessboard

Luminance and motion hardly change with the resolution. Sharpness does: numbers of one bucket compare with each other,
not with those of another, nor with those of scenes, which are looked at small.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.records import Look

# Of 1: 13 grey levels, where a fade has ended and unlit night begins. Limited-range black with noise lies below it.
DARK = 0.05
# Of 1: half a grey level per pixel and frame, which is what rounding and a codec do to a picture that stands still.
STATIC = 0.002

ROWS = 64  # that luminance and motion are taken of, about: means of thousands of pixels need no more
LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255  # of R, G and B


def look_at(frames: np.ndarray) -> Look:
    """Frames (T, H, W, 3) uint8 -> Look. Frames that only repeat the last one lower the motion: leave them out."""
    small = thinned_luma(frames)
    motion = np.abs(np.diff(small, axis=0)).mean() if len(frames) > 1 else 0.0
    return Look(float(small.mean()), float(motion), sharpness(frames[len(frames) // 2]))


def join_looks(looks: Sequence[Look], weights: Sequence[float]) -> Look:
    """The looks of parts -> that of the whole: means by weight, such as the number of frames."""
    luminance, motion, sharp = np.average(
        [(look.luminance, look.motion, look.sharpness) for look in looks], axis=0, weights=weights
    ).tolist()
    return Look(luminance, motion, sharp)


def thinned_luma(frames: np.ndarray) -> np.ndarray:
    """Frames (..., H, W, 3) uint8 -> luma (..., h, w) float32 in 0..1, of every k-th row and column."""
    every = max(1, frames.shape[-3] // ROWS)
    return frames[..., ::every, ::every, :].astype(np.float32) @ LUMA


def sharpness(frame: np.ndarray) -> float:
    """One frame (H, W, 3) uint8 -> its sharpness, at full resolution; 0 where no pixel has four neighbours."""
    luma = frame.astype(np.float32) @ LUMA  # (H, W)
    if min(luma.shape) < 3:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.abs(luma[1:-1, 1:-1] - around / 4).mean())
