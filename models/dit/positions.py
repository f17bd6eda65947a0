"""Where a token is, in space, in time and on the noise scale: tables that are always computed in float32.

A model in bf16 still gets float32 tables; only the finished sine, or what it is added to, is rounded. Open-Sora v1.2
works them out in the model's own type instead: in bf16, with 8 bits, it cannot tell timestep 999 from 1000 (above 512
it knows multiples of 4), and its position table is off by up to 4e-3. In float32 both agree.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

PERIOD = 10000.0  # the longest wavelength of all three encodings, over 2 pi


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Scalars (n,) -> (n, width) float32: cosines, then sines, of value * 10000^(-2k / width)."""
    steps = torch.arange(width // 2, device=values.device, dtype=torch.float32)
    frequencies = torch.exp(steps * (-math.log(PERIOD) / (width // 2)))
    angles = rearrange(values.float(), "n -> n 1") * frequencies  # (n, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_scale(height: Tensor, width: Tensor, input_sq_size: int) -> Tensor:
    """Pixels (B,), (B,) -> scalar float32: sqrt(height * width) / input_sq_size of the first sample.

    One bucket per batch, so the first sample speaks for all. It stays a tensor: reading it would wait for the device.
    """
    return (height[0].float() * width[0].float()).sqrt() / input_sq_size


def position_table(rows: int, columns: int, hidden_size: int, scale: Tensor) -> Tensor:
    """A grid of patches -> (rows * columns, hidden_size) float32, row-major; Open-Sora v1.2's resolution-aware table.

    Positions run as if the picture were a square of the training size, so a patch at the same relative place gets
    about the same code at any resolution. The width half comes first, unlike in most such tables.
    """
    base = round((rows * columns) ** 0.5)
    quarter = torch.arange(0, hidden_size // 2, 2, device=scale.device, dtype=torch.float32)
    frequencies = 1.0 / PERIOD ** (quarter / (hidden_size // 2))  # (hidden_size / 4,)

    def codes(count: int) -> Tensor:
        places = torch.arange(count, device=scale.device, dtype=torch.float32) / scale * base / count
        angles = rearrange(places, "n -> n 1") * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (count, hidden_size / 2)

    across = repeat(codes(columns), "w c -> h w c", h=rows)
    down = repeat(codes(rows), "h c -> h w c", w=columns)
    return rearrange(torch.cat([across, down], dim=-1), "h w c -> (h w) c")


class RotaryFrequencies(nn.Module):
    """The rotation of each latent frame. `freqs` is read from the checkpoint: published models may hold rounded ones.

    A buffer, because trainers round parameters to 16 bits, those without gradient too, and leave buffers alone.
    """

    freqs: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float32)
        self.register_buffer("freqs", 1.0 / PERIOD ** (pairs / head_dim))  # (head_dim / 2,)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Latent frames -> cosines and sines, each (num_frames, head_dim) float32, equal within an interleaved pair."""
        frames = torch.arange(num_frames, device=self.freqs.device, dtype=torch.float32)
        angles = repeat(rearrange(frames, "t -> t 1") * self.freqs.float(), "t pairs -> t (pairs two)", two=2)
        return angles.cos(), angles.sin()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Follow the model to another device, never to another dtype."""
        before = self.freqs
        super()._apply(fn, recurse)
        if not before.is_meta:  # `to_empty` on a model without storage has no values to keep
            self.freqs = before.to(self.freqs.device)
        return self


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(..., t, head_dim) -> the same, each pair of neighbouring channels turned by its frame's angle, in float32."""
    cos, sin = rotation  # (t, head_dim)
    even, odd = rearrange(x.float(), "... (pairs two) -> two ... pairs", two=2).unbind(0)
    turned = rearrange([-odd, even], "two ... pairs -> ... (pairs two)")
    return (x.float() * cos + turned * sin).to(x.dtype)
