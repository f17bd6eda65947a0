"""How much arithmetic an STDiT3 takes, from shapes alone; a multiplication and an addition count as two.

Only matrix products count (linear layers, attention, patches): the convention of model FLOPs utilization, and what
torch's FlopCounterMode counts.
"""

from models.dit.layers import SINUSOID_WIDTH
from models.dit.stdit3 import STDiT3Config

Shape = tuple[int, int, int, int, int]  # of latents: (B, c, t, h, w)


def grid(config: STDiT3Config, latents: Shape) -> tuple[int, int]:
    """Latents -> (frames, patches of a frame), padded to whole patches."""
    frames, rows, columns = (-(-size // patch) for size, patch in zip(latents[2:], config.patch_size, strict=True))
    return frames, rows * columns


def num_tokens(config: STDiT3Config, latents: Shape) -> int:
    """Latents -> tokens of the whole batch."""
    frames, patches = grid(config, latents)
    return latents[0] * frames * patches


def flops(config: STDiT3Config, latents: Shape, text_tokens: int) -> int:
    """One forward pass; `text_tokens` is the length captions are padded to."""
    return _block_flops(config, latents, text_tokens) + _other_flops(config, latents, text_tokens)


def training_flops(config: STDiT3Config, latents: Shape, text_tokens: int, *, checkpoint_blocks: bool = False) -> int:
    """Forward and backward: three times the forward pass, as every product has two in its gradient.

    With `checkpoint_blocks`, the blocks' forward pass once more. MFU leaves that out: it is work the machine does, not
    the model.
    """
    again = _block_flops(config, latents, text_tokens) if checkpoint_blocks else 0
    return 3 * flops(config, latents, text_tokens) + again


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilization, 0..1: work done in a time, over what the machine could do at `peak_flops` a second."""
    return flops / (seconds * peak_flops)


def _block_flops(config: STDiT3Config, latents: Shape, text_tokens: int) -> int:
    """All spatial and temporal blocks."""
    width, tokens = config.hidden_size, num_tokens(config, latents)
    hidden = int(width * config.mlp_ratio)
    linear = 2 * tokens * width * (3 * width + width + width + width + 2 * hidden)  # qkv, proj; q_linear, proj; MLP
    text = 2 * latents[0] * text_tokens * width * 2 * width + 4 * tokens * text_tokens * width  # kv_linear, attention
    frames, patches = grid(config, latents)
    attention = 4 * tokens * width * (patches + frames)  # within a frame in one block, along time in the other
    return config.depth * (2 * (linear + text) + attention)


def _other_flops(config: STDiT3Config, latents: Shape, text_tokens: int) -> int:
    """What surrounds the blocks: patches in and out, timestep, frame rate and caption."""
    width, tokens, batch = config.hidden_size, num_tokens(config, latents), latents[0]
    frames, rows, columns = config.patch_size
    patch = frames * rows * columns
    patches = 2 * tokens * width * patch * (config.in_channels + config.out_channels)
    time = 2 * batch * width * (2 * (SINUSOID_WIDTH + width) + 6 * width)  # two embedders, t_block
    text = 2 * batch * text_tokens * width * (config.caption_channels + width)
    return patches + time + text
