"""Frames read by decord, where it says the same as the container and its decoder complains of nothing."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import decord
import numpy as np
from einops import rearrange

from pipeline.container import GIVING_LENGTHS, Clock
from pipeline.errors import BadVideo
from pipeline.records import Video
from pipeline.scratch import open_memory

decord.logging.set_level(decord.logging.QUIET)

# Where decord was seen to be right. From MPEG-TS it returns some frames twice; the damage of other codecs it hides.
CONTAINERS = GIVING_LENGTHS
CODECS = {"h264", "vp8", "vp9", "av1"}
CLOCK_TOLERANCE_S = 5e-3  # decord tells times in float32: 0.25 ms apart after an hour
MANY = 0.75  # of the frames: decord resizes all it passes, so that PyAV is faster where fewer are wanted
COMPLAINT = re.compile(rb"^\[(?!in @|swscaler @)\w[^\n]* @ 0x[0-9a-f]+\] *([^\n]*)", re.MULTILINE)


def suits_decord(video: Video, clock: Clock, wanted: np.ndarray) -> bool:
    """Whether decord is asked: for many frames, of a kind of file on which it is trusted."""
    trusted = clock.stamped and clock.container in CONTAINERS and video.codec in CODECS
    return trusted and len(wanted) >= MANY * (wanted[-1] + 1)


def read_decord(
    path: Path, size: tuple[int, int], clock: Clock, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, frame (H, W, 3) uint8 of `size`) for each wanted index, ascending; BadVideo where another reader should.

    One by one from the beginning: seeking by frame number is wrong on real files, and even `skip_frames` on some.
    """
    height, width = size
    chosen = set(wanted.tolist())
    with _own_stderr() as log:
        try:
            reader = decord.VideoReader(str(path), ctx=decord.cpu(0), height=height, width=width, num_threads=1)
            _check_clock(reader, clock)
            for index in range(max(chosen) + 1):
                frame = reader.next()
                _check_log(log)
                if index in chosen:
                    yield index, _unpadded(frame.asnumpy(), height, width)
        except (decord.DECORDError, RuntimeError, StopIteration) as error:
            _check_log(log)
            raise BadVideo(str(error).strip().splitlines()[0] if str(error) else "ends early") from error


def _check_clock(reader: decord.VideoReader, clock: Clock) -> None:
    if len(reader) != len(clock.times_s):
        raise BadVideo(f"{len(reader)} frames where the container has {len(clock.times_s)}")
    shown_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    if np.abs(shown_s - clock.times_s).max() > CLOCK_TOLERANCE_S:
        raise BadVideo("other timestamps than the container's")


def _unpadded(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """decord 3 hands out rows with their padding, as a fourth "channel", where the padding is as wide as the frame."""
    if frame.shape[2] == 3:
        return frame
    rows = rearrange(frame, "h w c -> h (w c)")
    return rearrange(rows[:, : 3 * width], "h (w c) -> h w c", c=3)


@contextmanager
def _own_stderr() -> Iterator[BinaryIO]:
    """What is written to stderr meanwhile, in a file, and on stderr afterwards.

    decord conceals damage as FFmpeg does and tells of it only there, from threads of its own, whoever runs then.
    """
    with os.fdopen(open_memory(), "r+b") as log:  # a sandbox may write no other file
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        decord.logging.set_level(decord.logging.INFO)  # at which it tells that it conceals
        try:
            yield log
        finally:
            decord.logging.set_level(decord.logging.QUIET)
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            others = [line for line in log.read().splitlines(keepends=True) if not line.startswith(b"[in @")]
            os.write(2, b"".join(others))


def _check_log(log: BinaryIO) -> None:
    if os.fstat(log.fileno()).st_size:
        complaint = COMPLAINT.search(os.pread(log.fileno(), 1 << 16, 0))
        if complaint:
            raise BadVideo(complaint[1].decode(errors="replace"))
