"""Classifier-free guidance: away from what the model would do without the caption, or with a negative prompt.

The half without the caption reads `null_text`. Alone, that is the null caption (L or more, dim), cut to the prompt's
length and mask: so was the model trained, whose dropped captions kept their mask. With a `null_mask` it is read as it
is: a negative prompt with its own length and mask, or the whole null caption with a mask of ones.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
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
    null_mask: Tensor | None = None,
    **conditions: Tensor,
) -> Tensor:
    """Latents (B, c, t, h, w), timesteps (B,) -> velocity (B, c, t, h, w): v = v_null + scale * (v_text - v_null).

    `text` (B, L, dim), `text_mask` (B, L); `null_text` (L or more, dim), or with a `null_mask` (M,) or (B, M) it is
    (M, dim) or (B, M, dim); `conditions`, such as fps, start with B.
    One call with the batch doubled: half the calls of a pair, twice their activations. A scale of 1 is the caption's
    velocity exactly, from one call with the batch as it is.
    """
    channels = latents.shape[1]
    if scale == 1:
        return model(latents, timestep, text, text_mask, **conditions)[:, :channels]
    with_text, without = _both(model, latents, timestep, text, text_mask, null_text, null_mask, conditions)
    return (without + scale * (with_text - without))[:, :channels]


def guided_with_variance(
    model: Callable[..., Tensor],
    latents: Tensor,
    timestep: Tensor,
    *,
    text: Tensor,
    text_mask: Tensor,
    null_text: Tensor,
    scale: float,
    null_mask: Tensor | None = None,
    guided_channels: int | None = None,
    **conditions: Tensor,
) -> Tensor:
    """As `guided`, for IDDPM: -> all channels of the model, (B, 2c, t, h, w), the first `guided_channels` guided.

    The others, the variance among them, are the caption's. Without a number all c channels of noise are guided;
    Open-Sora v1.1 guided 3 of 4.
    """
    if scale == 1:
        return model(latents, timestep, text, text_mask, **conditions)
    with_text, without = _both(model, latents, timestep, text, text_mask, null_text, null_mask, conditions)
    first = slice(latents.shape[1] if guided_channels is None else guided_channels)
    noise = without[:, first] + scale * (with_text[:, first] - without[:, first])
    return torch.cat([noise, with_text[:, first.stop :]], dim=1)


def _both(
    model: Callable[..., Tensor],
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor,
    null_text: Tensor,
    null_mask: Tensor | None,
    conditions: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """-> all channels of the model with the caption and without it, each (B, ..., t, h, w)."""
    null, null_mask = _null_half(text, text_mask, null_text, null_mask)
    length = max(text.shape[1], null.shape[1])
    both = model(
        repeat(latents, "b ... -> (two b) ...", two=2),
        repeat(timestep, "b -> (two b)", two=2),
        torch.cat([F.pad(one, (0, 0, 0, length - one.shape[1])) for one in (text, null)]),
        torch.cat([F.pad(one, (0, length - one.shape[1])) for one in (text_mask, null_mask)]),  # padded with False
        **{name: repeat(value, "b ... -> (two b) ...", two=2) for name, value in conditions.items()},
    )
    with_text, without = rearrange(both, "(two b) c t h w -> two b c t h w", two=2)
    return with_text, without


def _null_half(text: Tensor, text_mask: Tensor, null_text: Tensor, null_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """-> what the half without the caption reads, (B, M, dim), and its mask, (B, M)."""
    batch, length, _ = text.shape
    if null_mask is None:
        if null_text.ndim != 2 or len(null_text) < length:
            raise ValueError(
                f"null_text {tuple(null_text.shape)} for prompts of {length} tokens; give a null caption of as many or "
                f"more, or with a negative prompt its null_mask"
            )
        return repeat(null_text[:length].to(text), "l dim -> b l dim", b=batch), text_mask
    if null_text.ndim == 2:
        null_text = repeat(null_text, "l dim -> b l dim", b=batch)
    if null_mask.ndim == 1:
        null_mask = repeat(null_mask, "l -> b l", b=batch)
    return null_text.to(text), null_mask.to(text_mask)
