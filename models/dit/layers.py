"""The pieces of STDiT3: attention within a frame, along time and to the text, each modulated by the timestep.

Tokens are (B, t, s, C) throughout: t latent frames of s patches. Attribute names are Open-Sora v1.2's state-dict names.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.dit.positions import rotate, sinusoid

SINUSOID_WIDTH = 256
NORM_EPS = 1e-6
MAX_ROWS = 65_535  # of one attention call: some CUDA kernels count rows in 16 bits
Rotation = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values -> values, each (b, heads, n, d)

# Which tokens a block's self-attention puts in one sequence.
SEQUENCES = {"space": "(b t) s c", "time": "(b s) t c"}


class Mlp(nn.Module):
    """Two linear layers around a tanh-GELU: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ScalarEmbedder(nn.Module):
    """Scalars, as timesteps of 0..1000 or frames per second -> embeddings: (n,) -> (n, C)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        # The scalar itself is never rounded to bf16, only its sinusoid.
        return self.mlp(sinusoid(values, SINUSOID_WIDTH).to(dtype))


class CaptionEmbedder(nn.Module):
    """Text states (B, L, caption_channels) -> tokens (B, L, C), and the caption that stands for no caption."""

    y_embedding: Tensor

    def __init__(self, caption_channels: int, hidden_size: int, max_text_tokens: int) -> None:
        super().__init__()
        null = torch.randn(max_text_tokens, caption_channels) / caption_channels**0.5
        self.register_buffer("y_embedding", null)  # (max_text_tokens, caption_channels)
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size)

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class RMSNorm(nn.Module):
    """Root-mean-square norm of (..., d) in float32, rounded to its dtype before the weight, as it was trained."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        return self.weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each (b, heads, n, d) -> (b, heads, n, d): softmax attention within each row, without a matrix of scores."""
    if len(q) > MAX_ROWS:  # temporal attention in a batch of images: every patch of every image is a row
        return torch.cat([attend(*rows) for rows in zip(*(each.split(MAX_ROWS) for each in (q, k, v)), strict=True)])
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Attention within each sequence of (b, n, C); queries and keys are normalized first and rotated second.

    `attend` may be replaced from outside. Where ranks hold parts of each frame, the spatial blocks' one exchanges
    patches for heads over its process group, attends, and exchanges back; all else in a block is the same per token.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend: Attend = attend
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = RMSNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        qkv = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        q, k, v = qkv.unbind(0)  # each (b, heads, n, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(rearrange(self.attend(q, k, v), "b heads n d -> b n (heads d)"))


class CrossAttention(nn.Module):
    """Tokens (B, n, C) look at the text (B, L, C) where `text_mask` (B, L) is True.

    Open-Sora packs all captions of a batch into one row behind a block-diagonal mask; padded text behind a key mask is
    the same sum in another layout, and its mask is (B, 1, 1, L) instead of tokens by tokens.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        q = rearrange(self.q_linear(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        kv = rearrange(self.kv_linear(text), "b l (two heads d) -> two b heads l d", two=2, heads=self.num_heads)
        k, v = kv.unbind(0)  # each (B, heads, L, d)
        # A softmax over masked keys alone is 0/0, and kernels differ in what they make of it. So an empty caption looks
        # at its padding, where it finds zeros.
        empty = ~text_mask.any(dim=1, keepdim=True)  # (B, 1)
        keys = rearrange(text_mask | empty, "b l -> b 1 1 l")
        v = v.masked_fill(rearrange(empty, "b 1 -> b 1 1 1"), 0.0)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)  # (B, heads, n, d)
        return self.proj(rearrange(seen, "b heads n d -> b n (heads d)"))


def normalize(x: Tensor) -> Tensor:
    """Layer norm over channels without weights: the modulation that follows is its scale and shift."""
    return F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)


def modulation(table: Tensor, conditions: Tensor) -> tuple[Tensor, ...]:
    """Table (k, C) + conditions (B, f, k * C) -> k tensors (B, f, 1, C), where f is t, or 1 for all frames alike."""
    rows = rearrange(conditions, "b f (k c) -> k b f 1 c", k=table.shape[0])
    return (rearrange(table, "k c -> k 1 1 1 c") + rows).unbind(0)


class Block(nn.Module):
    """Self-attention along one axis, cross-attention to the text, MLP; (B, t, s, C) -> the same.

    The timestep shifts, scales and gates the first and the last; cross-attention has neither norm nor gate.
    """

    def __init__(
        self, axis: Literal["space", "time"], hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool
    ) -> None:
        super().__init__()
        self.axis = axis
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), hidden_size)

    def forward(
        self, x: Tensor, conditions: Tensor, text: Tensor, text_mask: Tensor, rotation: Rotation | None = None
    ) -> Tensor:
        """`conditions` (B, t or 1, 6C) from the timestep, `text` (B, L, C), `text_mask` (B, L), `rotation` in time."""
        sequences, frames = SEQUENCES[self.axis], x.shape[1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(self.scale_shift_table, conditions)

        attended = rearrange(normalize(x) * (1 + scale) + shift, f"b t s c -> {sequences}")
        attended = self.attn(attended, rotation)
        x = x + gate * rearrange(attended, f"{sequences} -> b t s c", b=x.shape[0])

        seen = self.cross_attn(rearrange(x, "b t s c -> b (t s) c"), text, text_mask)
        x = x + rearrange(seen, "b (t s) c -> b t s c", t=frames)

        return x + mlp_gate * self.mlp(normalize(x) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    """Tokens (B, t, s, C) -> patches (B, t, s, outputs), modulated by the embedded timestep (B, t or 1, C).

    Open-Sora puts given frames (x_mask False) through norm and modulation twice here, at t and then at 0. Neither the
    loss nor a sampler reads a given frame's output, so this is the one place where ours differs: once, at 0.
    """

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.linear = nn.Linear(hidden_size, outputs)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        both = rearrange([embedded, embedded], "two b f c -> b f (two c)")
        shift, scale = modulation(self.scale_shift_table, both)
        return self.linear(normalize(x) * (1 + scale) + shift)
