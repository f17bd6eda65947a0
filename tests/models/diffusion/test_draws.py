"""Random numbers belong to (seed, step, position), so that they do not change with the number of ranks."""

import pytest
import torch

from models.diffusion.draws import Draws, draw, posterior_sample

SHAPE = (2, 5, 3, 4)


def parts(drawn: Draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn.noise, drawn.timesteps, drawn.drop_caption


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2], [3, 4, 5]], [[0], [1, 2, 3, 4], [5]]])
def test_any_split_over_ranks_draws_the_same(shares: list[list[int]]) -> None:
    whole = parts(draw(7, 11, list(range(6)), SHAPE, 0.5))
    split = [parts(draw(7, 11, share, SHAPE, 0.5)) for share in shares]
    for name, wanted in enumerate(whole):
        assert torch.equal(torch.cat([share[name] for share in split]), wanted)


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
