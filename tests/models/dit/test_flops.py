"""The arithmetic of an STDiT3, beside what torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.dit import DITS
from models.dit.flops import Shape, flops, grid, mfu, num_tokens, training_flops
from models.dit.stdit3 import STDiT3, STDiT3Config

CONFIG = STDiT3Config(hidden_size=32, depth=2, num_heads=2, caption_channels=12, max_text_tokens=20, mlp_ratio=3.0)
SHAPES = [(2, 4, 5, 8, 12), (1, 4, 6, 7, 9), (2, 4, 1, 16, 16), (1, 4, 2, 30, 53)]


def counted(latents: Shape, text_tokens: int, checkpoint_blocks: bool | None = None) -> int:
    """Torch's count of a forward pass, or with backward where `checkpoint_blocks` is given.

    By the attention that multiplies matrices: the counter does not know the CPU's fused one.
    """
    model, batch = STDiT3(CONFIG), latents[0]
    given = {name: torch.ones(batch) for name in ("timestep", "fps", "height", "width")}
    text, mask = torch.randn(batch, text_tokens, 12), torch.ones(batch, text_tokens, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if checkpoint_blocks is None:
            with torch.no_grad():
                model(torch.randn(latents), text=text, text_mask=mask, **given)
        else:
            model.checkpoint_blocks = checkpoint_blocks
            model(torch.randn(latents), text=text, text_mask=mask, **given).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("text_tokens", [0, 1, 20])
@pytest.mark.parametrize("latents", SHAPES)
def test_forward_is_what_torch_counts(latents: Shape, text_tokens: int) -> None:
    assert flops(CONFIG, latents, text_tokens) == counted(latents, text_tokens)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("latents", SHAPES)
def test_training_is_what_torch_counts(latents: Shape, checkpoint_blocks: bool) -> None:
    """Within 2 %: inputs have no gradient, so the first layers' backward pass is half of what is said."""
    found = training_flops(CONFIG, latents, 20, checkpoint_blocks=checkpoint_blocks)
    assert found == pytest.approx(counted(latents, 20, checkpoint_blocks), rel=0.02)


def test_tokens_are_whole_patches() -> None:
    config = DITS["stdit3-xl/2"]
    assert grid(config, (1, 4, 5, 30, 53)) == (5, 15 * 27)
    assert num_tokens(config, (2, 4, 5, 90, 160)) == 2 * 5 * 3600


def test_utilization_is_the_share_of_the_peak() -> None:
    assert mfu(flops=300, seconds=2.0, peak_flops=600) == pytest.approx(0.25)
