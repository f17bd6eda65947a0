"""The Haar transforms of WF-VAE: sums and differences of neighbours, each band of them at half the size.

Channels of coefficients are ordered by band, then colour. The filters are constants with the originals' numbers, which
the networks were trained with.
"""

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from models.vae.causal_layers import each_frame, repeat_first

BANDS_3D = 8
BANDS_2D = 4
EIGHTH_ROOT = 0.3536  # the originals' 1 / sqrt(8), cut off there: the inverse gives back 1.0003 of a video


def filters_3d(like: Tensor) -> Tensor:
    """Bands x kernel, (8, 1, 2, 2, 2): sum or difference along t, h and w, w turning fastest."""
    pair = like.new_tensor([[1.0, 1.0], [1.0, -1.0]])
    products = einsum(pair, pair, pair, "i t, j h, k w -> i j k t h w")
    return EIGHTH_ROOT * rearrange(products, "i j k t h w -> (i j k) 1 t h w")


def filters_2d(like: Tensor) -> Tensor:
    """Bands x kernel, (4, 1, 2, 2): sum or difference along h and w, here h turning fastest."""
    pair = like.new_tensor([[1.0, 1.0], [1.0, -1.0]])
    return 0.5 * rearrange(einsum(pair, pair, "j h, k w -> k j h w"), "k j h w -> (k j) 1 h w")


def haar_3d(x: Tensor) -> Tensor:
    """(B, c, t, h, w) -> (B, 8c, (t + 1) // 2, h // 2, w // 2): the first frame pairs with itself, so t is odd."""
    clips = rearrange(repeat_first(x, 1), "b c t h w -> (b c) 1 t h w")
    return rearrange(F.conv3d(clips, filters_3d(x), stride=2), "(b c) n t h w -> b (n c) t h w", b=len(x))


def inverse_haar_3d(coefficients: Tensor) -> Tensor:
    """(B, 8c, t, h, w) -> (B, c, 2t - 1, 2h, 2w), without the frame that was paired with itself."""
    bands = rearrange(coefficients, "b (n c) t h w -> (b c) n t h w", n=BANDS_3D)
    clips = F.conv_transpose3d(bands, filters_3d(coefficients), stride=2)[:, :, 1:]
    return rearrange(clips, "(b c) 1 t h w -> b c t h w", b=len(coefficients))


def haar_2d(x: Tensor) -> Tensor:
    """(B, c, t, h, w) -> (B, 4c, t, h // 2, w // 2), every frame by itself."""

    def transform(frames: Tensor) -> Tensor:
        planes = rearrange(frames, "b c h w -> (b c) 1 h w")
        return rearrange(F.conv2d(planes, filters_2d(x), stride=2), "(b c) n h w -> b (n c) h w", b=len(frames))

    return each_frame(transform, x)


def inverse_haar_2d(coefficients: Tensor) -> Tensor:
    """(B, 4c, t, h, w) -> (B, c, t, 2h, 2w)."""

    def transform(frames: Tensor) -> Tensor:
        bands = rearrange(frames, "b (n c) h w -> (b c) n h w", n=BANDS_2D)
        planes = F.conv_transpose2d(bands, filters_2d(coefficients), stride=2)
        return rearrange(planes, "(b c) 1 h w -> b c h w", b=len(frames))

    return each_frame(transform, coefficients)
