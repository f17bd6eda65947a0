"""Random numbers belong to (seed, step, position), so that they do not change with the number of ranks."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from models.diffusion.draws import Draws, draw, drop_captions, posterior_sample
from models.diffusion.rectified_flow import TimestepMethod
from pipeline.lengths import Bucket, whole
from pipeline.schedule import Rows, Schedule, rank_slots

SHAPE = (2, 5, 3, 4)


def parts(drawn: Draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn.noise, drawn.timesteps, drawn.drop_caption


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform", "discrete"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
def test_any_number_of_ranks_draws_the_same(num_ranks: int, timesteps: TimestepMethod) -> None:
    def all_of(positions: list[int]) -> Draws:
        return draw(7, 11, positions, SHAPE, 0.5, posterior=True, masks={"random": 0.5}, timesteps=timesteps)

    rows = Rows(np.array([20]), (Bucket(64, 64, 17, 1),), np.zeros(20, np.uint16))
    batch = Schedule(rows, lambda kind: whole(kind, 6), seed=7).batch(1, 2)
    shares = [[slot.position for slot in rank_slots(batch, rank, num_ranks)] for rank in range(num_ranks)]
    together, split = all_of(list(range(6))), [all_of(share) for share in shares]
    for field in fields(Draws):
        found = torch.cat([getattr(share, field.name) for share in split])
        assert torch.equal(found[:6], getattr(together, field.name))  # fillers are last


def test_positions_are_drawn_by_number_not_by_order() -> None:
    forward, backward = draw(7, 11, [2, 9], SHAPE, 0.5), draw(7, 11, [9, 2], SHAPE, 0.5)
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(parts(forward), parts(backward), strict=True))


def test_seeds_steps_and_positions_all_count() -> None:
    drawn = [draw(*where, SHAPE, 0.5) for where in ((1, 2, [3]), (2, 2, [3]), (1, 3, [3]), (1, 2, [4]), (2, 1, [3]))]
    # Written one behind the other these are the same digits.
    drawn += [draw(12, 3, [4], SHAPE, 0.5), draw(1, 23, [4], SHAPE, 0.5), draw(1, 2, [34], SHAPE, 0.5)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not torch.equal(one.noise, other.noise)
            assert not torch.equal(one.timesteps, other.timesteps)


def test_shapes_and_types() -> None:
    drawn = draw(0, 0, [0, 1, 2], SHAPE, 0.1)
    assert drawn.noise.shape == (3, *SHAPE) and drawn.noise.dtype == torch.float32
    assert drawn.timesteps.shape == (3,) and drawn.timesteps.dtype == torch.float32
    assert drawn.drop_caption.shape == (3,) and drawn.drop_caption.dtype == torch.bool


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(0, 0, [0], SHAPE, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw(0, 0, [0], SHAPE, 0.5).noise, first.noise)


def test_captions_are_dropped_as_often_as_asked() -> None:
    positions = list(range(4000))
    assert not draw(3, 0, positions, (1,), 0.0).drop_caption.any()
    assert draw(3, 0, positions, (1,), 1.0).drop_caption.all()
    assert draw(3, 0, positions, (1,), 0.2).drop_caption.float().mean() == pytest.approx(0.2, abs=0.025)


def test_dropping_captions_moves_nothing_else() -> None:
    never, always = draw(3, 5, [0, 1], SHAPE, 0.0), draw(3, 5, [0, 1], SHAPE, 1.0)
    assert torch.equal(never.noise, always.noise) and torch.equal(never.timesteps, always.timesteps)


def test_noise_is_standard_normal_within_and_across_samples() -> None:
    noise = draw(0, 0, list(range(500)), (200,), 0.0).noise.double()
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**4).mean() == pytest.approx(3, abs=0.15)
    assert noise[:, 0].mean() == pytest.approx(0, abs=0.2) and noise[:, 0].std() == pytest.approx(1, abs=0.15)
    assert abs(torch.corrcoef(noise)[0, 1:]).max() < 0.35


def test_timesteps_are_logit_normal() -> None:
    drawn = draw(0, 0, list(range(3000)), (1,), 0.0)
    assert (drawn.timesteps > 0).all() and (drawn.timesteps < 1000).all()
    normal = torch.logit(drawn.timesteps.double() / 1000)
    assert normal.mean() == pytest.approx(0, abs=0.08) and normal.std() == pytest.approx(1, abs=0.06)


def test_what_is_drawn_for_a_sample_is_independent() -> None:
    drawn = draw(0, 0, list(range(3000)), (1,), 0.5)
    together = torch.stack([drawn.noise[:, 0], torch.logit(drawn.timesteps / 1000), drawn.drop_caption.float()])
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.08


def test_posterior_noise_is_drawn_last_and_only_when_asked() -> None:
    without, with_it = draw(3, 5, [0, 4], SHAPE, 0.5), draw(3, 5, [0, 4], SHAPE, 0.5, posterior=True)
    assert without.posterior_noise is None and with_it.posterior_noise is not None
    assert all(torch.equal(a, b) for a, b in zip(parts(without), parts(with_it)))
    assert with_it.posterior_noise.shape == (2, *SHAPE)
    assert not torch.equal(with_it.posterior_noise, with_it.noise)
    again = draw(3, 6, [0], SHAPE, 0.5, posterior=True).posterior_noise
    assert again is not None and not torch.equal(again[0], with_it.posterior_noise[0])  # another one each step


def test_cached_moments_give_another_sample_each_time() -> None:
    mean, std = torch.randn(2, *SHAPE).half(), torch.rand(2, *SHAPE).half()
    first, second = (draw(0, step, [0, 1], SHAPE, 0.0, posterior=True).posterior_noise for step in (0, 1))
    assert first is not None and second is not None
    sample = posterior_sample(mean, std, first)
    torch.testing.assert_close(sample, mean.float() + std.float() * first)
    assert sample.dtype == torch.float32 and not torch.equal(sample, posterior_sample(mean, std, second))
    assert torch.equal(posterior_sample(mean, None, None), mean.float())


def test_masks_are_drawn_last_and_only_when_asked() -> None:
    without, with_them = draw(3, 5, [0, 4], SHAPE, 0.5), draw(3, 5, [0, 4], SHAPE, 0.5, masks={"image_head": 1.0})
    assert without.mask is None and with_them.mask is not None
    assert all(torch.equal(a, b) for a, b in zip(parts(without), parts(with_them)))
    assert with_them.mask.tolist() == [[False, *[True] * (SHAPE[1] - 1)]] * 2


def test_timesteps_are_drawn_as_asked() -> None:
    discrete = draw(3, 5, list(range(50)), SHAPE, 0.5, timesteps="discrete").timesteps
    assert torch.equal(discrete, discrete.round()) and discrete.max() < 1000


TEXT = torch.arange(1.0, 25).unflatten(0, (2, 4, 3))  # (B, L, dim)
TEXT_MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.mark.parametrize("num_tokens", [0, 1, 4, 6])
def test_a_dropped_caption_becomes_the_null_caption_with_its_own_mask(num_tokens: int) -> None:
    null, mask = -torch.ones(num_tokens, 3, dtype=torch.float16), torch.ones(num_tokens, dtype=torch.bool)
    text, text_mask = drop_captions(TEXT, TEXT_MASK, torch.tensor([False, True]), null, mask)
    assert text.dtype == TEXT.dtype and text.shape == (2, max(4, num_tokens), 3)
    assert torch.equal(text[0, :4], TEXT[0]) and torch.equal(text_mask[0, :4], TEXT_MASK[0])
    assert not text[0, 4:].any() and not text_mask[0, 4:].any()
    assert (text[1, :num_tokens] == -1).all() and not text[1, num_tokens:].any()
    assert text_mask[1].tolist() == [place < num_tokens for place in range(max(4, num_tokens))]


def test_a_null_caption_without_a_mask_keeps_that_of_the_caption() -> None:
    null = -torch.arange(1.0, 19).unflatten(0, (6, 3))
    text, text_mask = drop_captions(TEXT, TEXT_MASK, torch.tensor([True, False]), null)
    assert torch.equal(text, torch.stack([null[:4], TEXT[1]])) and torch.equal(text_mask, TEXT_MASK)
    with pytest.raises(ValueError, match="the null caption has 3 tokens, captions 4: raise max_text_tokens"):
        drop_captions(TEXT, TEXT_MASK, torch.tensor([True, False]), null[:3])


def test_captions_that_are_not_dropped_stay_as_they_are() -> None:
    text, text_mask = drop_captions(
        TEXT, TEXT_MASK, torch.zeros(2, dtype=torch.bool), torch.ones(1, 3), torch.ones(1) > 0
    )
    assert torch.equal(text, TEXT) and torch.equal(text_mask, TEXT_MASK)
