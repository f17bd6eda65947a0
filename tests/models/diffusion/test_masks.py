"""Masks: every one of them, at every length, leaves something to denoise."""

import ast
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.diffusion.masks import (
    NAMES,
    OPEN_SORA_V1_2_STAGE_3,
    OPEN_SORA_V1_2_STAGES_1_AND_2,
    check_mixture,
    choose,
    draw_mask,
    leave_padding_out,
    mask_from,
    masked_mean,
)

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_v1_2.pt"
THEIR_NAMES = {"interpolate": "intepolate"}


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    if not RECORDING.exists():
        pytest.skip("recordings not here")
    return torch.load(RECORDING, weights_only=True)


def draws(name: str, frames: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [draw_mask(generator, frames, {name: 1.0}) for _ in range(count)]


def spans(mask: Tensor) -> list[tuple[int, int]]:
    """The runs of given frames, as (start, count)."""
    text = "".join("01"[int(value)] for value in mask)
    starts = [at for at, value in enumerate(text) if value == "0" and (at == 0 or text[at - 1] == "1")]
    return [(at, len(text[at:].split("1")[0])) for at in starts]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 10, 15])
def test_something_is_always_denoised(name: str, frames: int) -> None:
    for mask in draws(name, frames, 60):
        assert mask.shape == (frames,) and mask.dtype == torch.bool
        assert mask.any()
        if frames == 1:
            assert mask.all()  # an image is never given


def test_without_padding_masks_stay_as_they_are() -> None:
    filled, mask = torch.ones(2, 5, dtype=torch.bool), torch.tensor([[False, True, True, True, True]] * 2)
    assert leave_padding_out(None, filled) == (None, None)
    assert all(one is mask for one in leave_padding_out(mask, filled))


def test_padding_is_denoised_and_does_not_count() -> None:
    filled = torch.tensor([[True, True, False], [True, True, True]])
    denoised, counted = leave_padding_out(None, filled)
    assert denoised is None and counted is not None and torch.equal(counted, filled)
    given_first = torch.tensor([[False, True, True], [False, True, True]])
    denoised, counted = leave_padding_out(given_first, filled)
    assert denoised is not None and torch.equal(denoised, given_first)
    assert counted is not None and counted.tolist() == [[False, True, False], [False, True, True]]


def test_a_sample_whose_mask_gives_all_but_padding_is_denoised_whole() -> None:
    filled = torch.tensor([[True, False, False], [True, True, False]])
    mask = torch.tensor([[False, True, True], [False, True, True]])
    denoised, counted = leave_padding_out(mask, filled)
    assert denoised is not None and denoised.tolist() == [[True, True, True], [False, True, True]]
    assert counted is not None and counted.tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize(("frames", "longest"), [(2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (8, 2), (15, 3), (30, 7)])
def test_a_quarter_is_one_to_a_quarter_of_the_frames(frames: int, longest: int) -> None:
    counts = set(range(1, longest + 1))
    assert {tuple(spans(mask)) for mask in draws("quarter_head", frames, 200)} == {((0, n),) for n in counts}
    tails = {((frames - n, n),) for n in counts}
    assert {tuple(spans(mask)) for mask in draws("quarter_tail", frames, 200)} == tails
    places = {((start, n),) for n in counts for start in range(frames - n + 1)}
    assert {tuple(spans(mask)) for mask in draws("quarter_random", frames, 4000)} == places
    if frames > 2:  # of two frames both would be given
        both = {((0, n), (frames - n, n)) for n in counts}
        assert {tuple(spans(mask)) for mask in draws("quarter_head_tail", frames, 200)} == both


def test_images_are_single_frames() -> None:
    assert {tuple(spans(mask)) for mask in draws("image_head", 6, 20)} == {((0, 1),)}
    assert {tuple(spans(mask)) for mask in draws("image_tail", 6, 20)} == {((5, 1),)}
    assert {tuple(spans(mask)) for mask in draws("image_head_tail", 6, 20)} == {((0, 1), (5, 1))}
    assert {tuple(spans(mask)) for mask in draws("image_random", 6, 200)} == {((at, 1),) for at in range(6)}


def test_interpolation_gives_every_other_frame() -> None:
    drawn = Counter("".join("01"[int(value)] for value in mask) for mask in draws("interpolate", 5, 400))
    assert drawn.keys() == {"10101", "01010"} and min(drawn.values()) > 150


def test_random_frames_are_given_with_a_probability_of_one_to_nine_tenths() -> None:
    shares = torch.stack([mask.float().mean() for mask in draws("random", 2000, 500)])
    assert 0.08 < shares.min() < 0.13 and 0.87 < shares.max() < 0.92
    assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
    assert shares.std().item() == pytest.approx(0.8 / 12**0.5, abs=0.03)  # uniform between


def test_masks_are_drawn_as_often_as_their_shares() -> None:
    mixture = {"image_head": 0.2, "image_tail": 0.0, "interpolate": 0.3}
    generator = torch.Generator().manual_seed(3)
    drawn = Counter(tuple(draw_mask(generator, 6, mixture).tolist()) for _ in range(4000))
    share = {mask: count / 4000 for mask, count in drawn.items()}
    assert share.pop((True,) * 6) == pytest.approx(0.5, abs=0.03)
    assert share.pop((False,) + (True,) * 5) == pytest.approx(0.2, abs=0.03)
    assert sorted(share) == [(False, True) * 3, (True, False) * 3]
    assert sum(share.values()) == pytest.approx(0.3, abs=0.03)
    assert all(draw_mask(generator, 6, {}).all() for _ in range(20))


def test_a_mask_belongs_to_its_generator_and_moves_no_later_draw() -> None:
    torch.manual_seed(1)
    state, left = torch.get_rng_state(), []
    for mixture in ({}, {"random": 1.0}, OPEN_SORA_V1_2_STAGE_3):
        generator = torch.Generator().manual_seed(5)
        first = draw_mask(generator, 7, mixture)
        left.append(torch.rand(3, generator=generator))
        assert torch.equal(draw_mask(torch.Generator().manual_seed(5), 7, mixture), first)
    assert torch.equal(left[0], left[1]) and torch.equal(left[0], left[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"intepolate": 0.1}, "masks intepolate: not known; known are identity, random, interpolate"),
        ({"quarter_middle": 0.1}, "quarter_middle: not known"),
        ({"random": 0.7, "image_head": 0.4}, "sum at most 1"),
        ({"random": -0.1}, "at least 0"),
    ],
)
def test_mixtures_that_are_none(mixture: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mixture(mixture)
    with pytest.raises(ValueError, match=message):
        draw_mask(torch.Generator(), 5, mixture)


def test_mixtures_are_the_published_ones(recording: dict[str, Any]) -> None:
    configs = recording["data"]["configs"]
    ours = (OPEN_SORA_V1_2_STAGES_1_AND_2, OPEN_SORA_V1_2_STAGES_1_AND_2, OPEN_SORA_V1_2_STAGE_3)
    for stage, mixture in zip(("stage1", "stage2", "stage3"), ours, strict=True):
        check_mixture(mixture)
        published = ast.literal_eval(configs[stage]["mask_ratios"])
        assert {THEIR_NAMES.get(name, name): share for name, share in mixture.items()} == published


@pytest.mark.parametrize("name", ["mixed", *NAMES])
@pytest.mark.parametrize("frames", [1, 5, 15, 30])
def test_the_originals_random_numbers_give_the_recorded_masks(
    recording: dict[str, Any], name: str, frames: int
) -> None:
    """The original draws from Python's generator and torch's, seeded once for all 16 masks of a recording."""
    random.seed(1234)
    per_frame = torch.Generator().manual_seed(1234)
    for recorded in recording["data"]["masks"][f"{THEIR_NAMES.get(name, name)}/{frames}"]:
        number = random.random()
        chosen = choose(OPEN_SORA_V1_2_STAGES_1_AND_2, number) if name == "mixed" else name
        size, place = their_numbers(chosen, frames)
        drawn = torch.rand(frames, generator=per_frame) if chosen == "random" else torch.empty(frames)
        assert torch.equal(mask_from(chosen, size, place, drawn), recorded)


def their_numbers(name: str, frames: int) -> tuple[float, float]:
    """What the original draws for a mask, as numbers in 0..1: a whole number k of n becomes (k + 1/2) / n."""
    size = place = 0.0
    count = 1
    if frames == 1:
        return size, place
    if name == "random":
        size = random.random()
    if name == "interpolate":
        place = (random.randrange(2) + 0.5) / 2
    if name.startswith("quarter"):
        count = random.randint(1, frames // 4)
        size = (count - 0.5) / (frames // 4)
    if name.endswith("_random"):
        place = (random.randint(0, frames - count) + 0.5) / (frames - count + 1)
    return size, place


def test_recorded_masked_means(recording: dict[str, Any]) -> None:
    recorded = recording["rflow"]["mean_flat"]
    torch.testing.assert_close(masked_mean(recorded["x"], None), recorded["plain"], atol=1e-6, rtol=0)
    torch.testing.assert_close(masked_mean(recorded["x"], recorded["mask"]), recorded["masked"], atol=1e-6, rtol=0)
