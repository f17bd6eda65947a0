"""Written videos are read back by both decoders: as many frames, as fast, in the same colours."""

import errno
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.mp4 import frames_per_second, write_mp4
from pipeline.errors import Refused

SATURATED = [(235, 40, 40), (40, 205, 60), (45, 75, 240), (240, 220, 40), (225, 45, 215), (40, 215, 225)]


def flat(colour: tuple[int, int, int], num_frames: int = 5, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    return np.full((num_frames, height, width, 3), colour, dtype=np.uint8)


def read_with_av(path: Path) -> tuple[NDArray[np.uint8], list[float]]:
    """(T, H, W, 3) and the presentation time of every frame in seconds."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in decoded]), [float(f.time or 0) for f in decoded]


def read_with_decord(path: Path) -> NDArray[np.uint8]:
    """(T, H, W, 3); not for widths such as 48, 96 and 144, whose padded rows decord2 3.4 takes for more channels."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return np.stack([reader[i].asnumpy() for i in range(len(reader))])


@pytest.mark.parametrize("colour", SATURATED)
def test_colours_survive_in_both_readers(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = flat(colour)
    write_mp4(tmp_path / "flat.mp4", frames, 8)
    for read in (read_with_av(tmp_path / "flat.mp4")[0], read_with_decord(tmp_path / "flat.mp4")):
        assert read.shape == frames.shape
        assert np.abs(read.astype(int) - frames).max() <= 8


def test_a_moving_gradient_survives(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    frames = np.stack([np.broadcast_to(np.roll(ramp, 3 * t)[None, :, None], (64, 96, 3)) for t in range(20)])
    write_mp4(tmp_path / "ramp.mp4", frames, 24)
    read, _ = read_with_av(tmp_path / "ramp.mp4")
    assert np.abs(read.astype(int) - frames).mean() < 2


@pytest.mark.parametrize("fps", [8, 12.5, 30, Fraction(24000, 1001), 24000 / 1001])
def test_frames_are_shown_when_they_should_be(tmp_path: Path, fps: float | Fraction) -> None:
    write_mp4(tmp_path / "clip.mp4", flat(SATURATED[0], num_frames=19), fps)
    _, times = read_with_av(tmp_path / "clip.mp4")
    assert times == pytest.approx([k / float(fps) for k in range(19)], abs=1e-4)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == frames_per_second(fps)
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_an_ntsc_rate_given_as_a_float_is_exact() -> None:
    assert frames_per_second(30000 / 1001) == Fraction(30000, 1001)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, frames, 12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_one_frame_is_a_video_too(tmp_path: Path) -> None:
    write_mp4(tmp_path / "deep" / "one.mp4", flat(SATURATED[2], num_frames=1), 8)
    assert len(read_with_av(tmp_path / "deep" / "one.mp4")[0]) == 1


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (flat((1, 2, 3), height=63), 8, "63x64.*even"),
        (flat((1, 2, 3), width=95), 8, "48x95.*even"),
        (flat((1, 2, 3), num_frames=0), 8, "nothing to write"),
        (flat((1, 2, 3)).astype(np.float32), 8, "float32.*wanted uint8"),
        (flat((1, 2, 3))[0], 8, "wanted uint8"),
        (flat((1, 2, 3)), 0, "fps is 0"),
        (flat((1, 2, 3)), float("nan"), "fps is nan"),
        (flat((1, 2, 3)), 1e-9, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, frames: NDArray[np.uint8], fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "no.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, flat(SATURATED[0]), 8)
    before = path.read_bytes()

    def torn(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", torn)
    with pytest.raises(Refused, match="disk full"):
        write_mp4(path, flat(SATURATED[1]), 8)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
