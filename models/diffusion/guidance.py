"""Classifier-free guidance: away from what the model would do without the caption."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor


def guided(
    model: Callable[..., Tensor],
    latents: Tensor,
    timestep: Tensor,
    *,
    text: Tensor,
    text_mask: Tensor,
    null_text: Tensor,
    scale: float,
    **conditions: Tensor,
) -> Tensor:
    """Latents (B, c, t, h, w), timesteps (B,) -> velocity (B, c, t, h, w): v = v_null + scale * (v_text - v_null).

    `text` (B, L, dim), `text_mask` (B, L), `null_text` (L or more, dim); `conditions`, such as fps, start with B.
    One call with the batch doubled: half the calls of a pair, twice their activations. A scale of 1 is the caption's
    velocity exactly, from one call with the batch as it is.

    Both halves use the caption's mask, so the null caption is as long as the prompt it stands against: so was the
    model trained, whose dropped captions kept their mask.
    """
    channels = latents.shape[1]
    if scale == 1:
        return model(latents, timestep, text, text_mask, **conditions)[:, :channels]
    null = repeat(null_text[: text.shape[1]].to(text), "l dim -> b l dim", b=text.shape[0])
    doubled = {name: repeat(value, "b ... -> (two b) ...", two=2) for name, value in conditions.items()}
    both = model(
        repeat(latents, "b ... -> (two b) ...", two=2),
        repeat(timestep, "b -> (two b)", two=2),
        torch.cat([text, null]),
        repeat(text_mask, "b l -> (two b) l", two=2),
        **doubled,
    )[:, :channels]
    with_text, without = rearrange(both, "(two b) c t h w -> two b c t h w", two=2).unbind(0)
    return without + scale * (with_text - without)
