"""Attention within a frame, as Open-Sora-Plan meant it, and as its first release was trained by mistake."""

import warnings
from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.vae.causal_layers import CausalConv3d, group_norm


class AttnBlock3DFix(nn.Module):
    """Residual attention of one head among the places of each frame: (B, c, t, h, w) -> the same.

    The group norm pools over time all the same, so frames see each other's mean and variance, as they were trained to.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.proj_out(self.attend(self.q(normed), self.k(normed), self.v(normed)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values (B, c, t, h, w) -> what each place sees of its own frame, (B, c, t, h, w)."""
        _, _, t, h, _ = q.shape
        q, k, v = (rearrange(x, "b c t h w -> (b t) 1 (h w) c") for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "(b t) 1 (h w) c -> b c t h w", t=t, h=h)


class AttnBlock3D(AttnBlock3DFix):
    """The same weights with channels and time confused, for the v1.0.0 weights that were trained so.

    The original reads the memory of (B, c, t, h, w) as if it were (B, t, c, h, w), and back. So what passes for one
    frame of c channels is about c/t channels of all t frames, and frames attend to each other. With one frame the two
    orders are the same.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__(channels, norm)
        warnings.warn(
            "AttnBlock3D mixes time into channels, a known mistake (PKU-YuanGroup/Open-Sora-Plan issues #171 and "
            "#257); right for weights trained with it, as v1.0.0 was, while v1.1 and v1.2 name AttnBlock3DFix",
            stacklevel=2,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, c, t, h, w = q.shape
        # einops refuses to reorder axes in silence, so the mistake has to be spelled out: flatten in one order,
        # "c t h w", and take apart in another, "t c h w".
        flat = (rearrange(x, "b c t h w -> b (c t h w)") for x in (q, k, v))
        seen = super().attend(*(rearrange(x, "b (t c h w) -> b c t h w", c=c, t=t, h=h) for x in flat))
        return rearrange(rearrange(seen, "b c t h w -> b (t c h w)"), "b (c t h w) -> b c t h w", t=t, h=h, w=w)
