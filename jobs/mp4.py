"""Frames to an mp4 that anything plays: what `preview` and `sample` show, and what the demo feeds to `scan`."""

import math
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import Flags
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from pipeline.storage import publish

CRF = "14"  # x264's quality: 0 is lossless, 23 its default; 14 is visually lossless
# BT.601 and tagged so: readers that honour the tag and readers that ignore it (601 is their default) see the same.
BT601 = 6  # smpte170m, in the numbering of ITU-T H.273
X264 = {
    "crf": CRF,
    "preset": "medium",
    "x264-params": "mbtree=0",  # with it, the same 64x64 frames gave other bytes from one run to the next
}


def frames_per_second(fps: float | Fraction) -> Fraction:
    """An exact rate: 23.976023976 becomes 24000/1001. ValueError unless it is finite and positive."""
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps is {fps}; a video needs a finite number of frames per second above 0")
    rate = Fraction(fps).limit_denominator(1001)
    if rate == 0:
        raise ValueError(f"fps is {fps}; less than one frame in 1001 seconds cannot be written")
    return rate


def check_frames(frames: NDArray[np.uint8]) -> None:
    """ValueError unless `frames` is uint8 (T, H, W, 3) with T >= 1 and even H and W, all h264 yuv420p can hold."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; wanted uint8 (T, H, W, 3)")
    num_frames, height, width, _ = frames.shape
    if num_frames == 0 or height == 0 or width == 0:
        raise ValueError(f"frames are {frames.shape}: there is nothing to write; give at least one frame")
    if height % 2 or width % 2:
        raise ValueError(
            f"frames are {height}x{width}; h264 in yuv420p keeps one colour for 2x2 pixels, so both must be even; "
            f"crop or pad by one"
        )


def write_mp4(path: str | Path, frames: NDArray[np.uint8], fps: float | Fraction) -> None:
    """uint8 (T, H, W, 3) RGB becomes an h264 mp4 at `fps` frames per second, published whole.

    The same frames and rate give the same bytes with the same FFmpeg. Raises ValueError for frames or a rate that
    cannot be written.
    """
    check_frames(frames)
    rate = frames_per_second(fps)
    publish(Path(path), lambda file: encode_frames(file, frames, rate))


def encode_frames(file: BinaryIO, frames: NDArray[np.uint8], rate: Fraction) -> None:
    """Checked frames become an mp4 in an open, seekable file."""
    _, height, width, _ = frames.shape
    with av.open(file, "w", format="mp4") as container:
        container.flags |= Flags.bitexact.value  # no clock and no version in the file
        stream = container.add_stream("libx264", rate=rate, options=X264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1  # x264's choices depend on how many threads share a frame
        codec.time_base = 1 / rate
        codec.colorspace = codec.color_primaries = codec.color_trc = BT601
        codec.color_range = int(ColorRange.MPEG)
        for index, pixels in enumerate(frames):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            yuv = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
            yuv.pts, yuv.time_base = index, 1 / rate
            container.mux(stream.encode(yuv))
        container.mux(stream.encode(None))


def read_mp4(path: str | Path) -> NDArray[np.uint8]:
    """All frames of a small video: uint8 (T, H, W, 3) RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
