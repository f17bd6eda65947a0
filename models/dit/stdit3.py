"""STDiT3, the video diffusion transformer of Open-Sora v1.2: same state-dict names, shapes and numbers.

Spatial and temporal blocks alternate; every block has its own text attention and MLP, and one shared projection of the
timestep (adaLN-single) modulates them all. Published safetensors load as they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.dit.layers import Block, CaptionEmbedder, FinalLayer, ScalarEmbedder
from models.dit.positions import RotaryFrequencies, position_scale, position_table


@dataclass(frozen=True)
class STDiT3Config:
    """The shape of an STDiT3; everything its weights depend on."""

    hidden_size: int
    depth: int  # pairs of one spatial and one temporal block
    num_heads: int
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)  # latents per token in (frames, height, width)
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    max_text_tokens: int = 300
    qk_norm: bool = True
    pred_sigma: bool = True  # twice the channels out; rectified flow uses the first half
    input_sq_size: int = 512  # pixels: the side of a square whose positions are not rescaled

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads) or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} with {self.num_heads} heads: it must be a multiple of 4 (two axes of "
                f"sines and cosines) and of twice the heads (rotation turns pairs of channels)"
            )

    @property
    def out_channels(self) -> int:
        return 2 * self.in_channels if self.pred_sigma else self.in_channels


class PatchEmbed(nn.Module):
    """Latents (B, c, t, h, w) -> tokens (B, t', s, C), zero-padded at the end of each axis to whole patches."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        t, h, w = (-size % patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True))
        return rearrange(self.proj(F.pad(latents, (0, w, 0, h, 0, t))), "b c t h w -> b t (h w) c")


class STDiT3(nn.Module):
    """Noisy latents, timestep and caption -> velocity (and an unused half where `pred_sigma`)."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False  # recompute each block in the backward pass: less memory, a third more time
        size, heads = config.hidden_size, config.num_heads
        block = (size, heads, config.mlp_ratio, config.qk_norm)
        pt, ph, pw = config.patch_size

        self.rope = RotaryFrequencies(size // heads)
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, size)
        self.t_embedder = ScalarEmbedder(size)
        self.fps_embedder = ScalarEmbedder(size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(size, 6 * size))
        self.y_embedder = CaptionEmbedder(config.caption_channels, size, config.max_text_tokens)
        self.spatial_blocks = nn.ModuleList(Block("space", *block) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block("time", *block) for _ in range(config.depth))
        self.final_layer = FinalLayer(size, pt * ph * pw * config.out_channels)
        self._initialize()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor,
        *,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        x_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, c, t, h, w) at timesteps (B,) in 0..1000 -> (B, out_channels, t, h, w) float32.

        `text` (B, L, caption_channels), `text_mask` (B, L) bool, True where a token is real; all False is the empty
        caption. `fps`, and `height`, `width` in pixels, are (B,); a batch is of one size. `x_mask` (B, t) bool: True
        for a frame being denoised, False for a given one, which is modulated as timestep 0.
        """
        self._check(latents, text, text_mask, x_mask)
        dtype = self.x_embedder.proj.weight.dtype
        _, _, t, h, w = latents.shape
        pt, ph, pw = self.config.patch_size
        rows, columns = -(-h // ph), -(-w // pw)

        scale = position_scale(height, width, self.config.input_sq_size)
        places = position_table(rows, columns, self.config.hidden_size, scale)  # (s, C) float32
        x = (self.x_embedder(latents.to(dtype)) + places).to(dtype)  # (B, t', s, C)

        embedded = self._embed_time(timestep, fps, x_mask, dtype)  # (B, t' or 1, C)
        conditions = self.t_block(embedded)  # (B, t' or 1, 6C)
        caption = self.y_embedder(text.to(dtype))  # (B, L, C)
        rotation = self.rope(x.shape[1])  # 2 x (t', head_dim) float32

        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = self._run(spatial, x, conditions, caption, text_mask, None)
            x = self._run(temporal, x, conditions, caption, text_mask, rotation)

        patches = self.final_layer(x, embedded)  # (B, t', s, pt * ph * pw * out)
        video = rearrange(
            patches,
            "b t (h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
            **{"h": rows, "w": columns, "pt": pt, "ph": ph, "pw": pw},
        )
        return video[:, :, :t, :h, :w].float()

    def null_text(self, num_tokens: int) -> Tensor:
        """The null caption's first tokens -> (num_tokens, caption_channels).

        Whoever calls the model decides which captions to drop: the model itself draws nothing.
        """
        known = self.config.max_text_tokens
        if not 0 <= num_tokens <= known:
            raise ValueError(f"the null caption has {known} tokens, not {num_tokens}; raise max_text_tokens")
        return self.y_embedder.y_embedding[:num_tokens]

    def _embed_time(self, timestep: Tensor, fps: Tensor, x_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Timesteps (B,), fps (B,), mask (B, t) -> (B, t, C), or (B, 1, C) where all frames are being denoised."""
        rate = self.fps_embedder(fps, dtype)
        noisy = rearrange(self.t_embedder(timestep, dtype) + rate, "b c -> b 1 c")
        if x_mask is None:
            return noisy
        clean = rearrange(self.t_embedder(torch.zeros_like(timestep), dtype) + rate, "b c -> b 1 c")
        return torch.where(rearrange(x_mask, "b t -> b t 1"), noisy, clean)

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if not (self.checkpoint_blocks and torch.is_grad_enabled()):
            return block(*inputs)
        # Blocks draw no random numbers, so there is no generator state to keep.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    def _check(self, latents: Tensor, text: Tensor, text_mask: Tensor, x_mask: Tensor | None) -> None:
        """Refuse what would otherwise be broadcast, or read as numbers instead of as a choice."""
        batch, channels, frames = latents.shape[:3]
        tokens, dim = text.shape[1:]
        wants: list[tuple[str, Any, Any]] = [
            ("latent channels", channels, self.config.in_channels),
            ("captions and their channels", (len(text), dim), (batch, self.config.caption_channels)),
            ("text_mask", (tuple(text_mask.shape), text_mask.dtype), ((batch, tokens), torch.bool)),
        ]
        if x_mask is not None:
            wants.append(("x_mask", (tuple(x_mask.shape), x_mask.dtype), ((batch, frames), torch.bool)))
            wants.append(("latent frames per patch with x_mask", self.config.patch_size[0], 1))
        for name, found, wanted in wants:
            if found != wanted:
                raise ValueError(f"{name}: found {found}, the model wants {wanted}")

    @torch.no_grad()
    def _initialize(self) -> None:
        """Xavier for every linear layer; fps and the temporal blocks start without any effect.

        So a model whose spatial half comes from an image model starts as that image model, frame by frame.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        first, _, last = self.fps_embedder.mlp
        nn.init.normal_(first.weight, std=0.02)  # pyright: ignore
        nn.init.zeros_(last.weight)  # pyright: ignore
        for block in self.temporal_blocks:
            for layer in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):  # pyright: ignore
                nn.init.zeros_(layer.weight)  # pyright: ignore
