"""The three numbers of a look are what they say, whatever the picture's size."""

from dataclasses import astuple

import numpy as np
import pytest

from pipeline.look import DARK, STATIC, join_looks, look_at, sharpness, thinned_luma
from pipeline.records import Look


def flat(*levels: int, height: int = 90, width: int = 160) -> np.ndarray:
    """One grey frame per level, (T, H, W, 3)."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


@pytest.mark.parametrize(("level", "luminance"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_luminance_goes_from_black_to_white(level: int, luminance: float) -> None:
    assert astuple(look_at(flat(level, level))) == pytest.approx((luminance, 0.0, 0.0), abs=1e-5)


def test_green_is_brighter_than_red_and_red_than_blue() -> None:
    red, green, blue = (look_at(flat(255) * np.eye(3, dtype=np.uint8)[channel]).luminance for channel in range(3))
    assert (red, green, blue) == pytest.approx((0.299, 0.587, 0.114))


def test_motion_is_the_mean_change_from_frame_to_frame() -> None:
    assert look_at(flat(0, 255, 0, 255)).motion == pytest.approx(1.0)
    assert look_at(flat(100, 151, 151)).motion == pytest.approx(0.1)


def test_a_single_frame_does_not_move() -> None:
    assert look_at(flat(200)).motion == 0.0


def test_a_chessboard_is_as_sharp_as_can_be_and_blurring_it_is_less() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2
    frame = np.repeat((255 * board).astype(np.uint8)[..., None], 3, axis=2)
    assert sharpness(frame) == pytest.approx(1.0)
    blurred = frame // 2 + np.roll(frame, 1, axis=0) // 2  # each pixel with the one above
    assert sharpness(blurred) < 0.1


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (63, 2), (3, 3), (181, 321), (720, 1280)])
def test_every_size_has_a_look(size: tuple[int, int]) -> None:
    assert astuple(look_at(flat(51, 102, height=size[0], width=size[1]))) == pytest.approx((0.3, 0.2, 0.0), abs=1e-5)


def test_luminance_and_motion_hardly_change_with_the_resolution_and_sharpness_does() -> None:
    ramp = np.linspace(0, 20 * np.pi, 512)
    frames = [np.outer(np.sin(ramp + shift), np.cos(ramp)) * 100 + 128 for shift in (0.0, 0.3)]
    large = np.repeat(np.stack(frames).astype(np.uint8)[..., None], 3, axis=3)
    small = np.ascontiguousarray(large[:, ::4, ::4])
    one, other = look_at(large), look_at(small)
    assert (one.luminance, one.motion) == pytest.approx((other.luminance, other.motion), rel=0.02)
    assert other.sharpness > 2 * one.sharpness


@pytest.mark.parametrize(("height", "rows"), [(48, 48), (144, 72), (256, 64), (720, 66), (2160, 66)])
def test_large_frames_cost_no_more_than_small_ones(height: int, rows: int) -> None:
    assert thinned_luma(np.zeros((height, height, 3), np.uint8)).shape == (rows, rows)


def test_looks_of_parts_join_by_weight() -> None:
    joined = join_looks([Look(0.0, 0.1, 0.5), Look(1.0, 0.4, 0.2)], weights=[2, 1])
    assert astuple(joined) == pytest.approx((1 / 3, 0.2, 0.4))


def test_black_is_dark_and_a_still_with_noise_is_static_and_a_dim_pan_is_neither() -> None:
    noise = np.random.default_rng(0).integers(
        0, 2, (17, 64, 64, 3), dtype=np.uint8
    )  # the last bit, as a codec leaves it
    black, still = look_at(16 * (noise * 0 + 1) // 2 + noise), look_at(flat(*[120] * 17)[:, :64, :64] + noise)
    assert black.luminance < DARK and still.motion < STATIC < 0.01
    pan = np.stack([np.tile(np.arange(64, dtype=np.uint8) + 2 * step, (64, 1)) for step in range(17)])
    look = look_at(np.repeat(pan[..., None], 3, axis=3))
    assert look.luminance > DARK and look.motion > STATIC
