"""Classifier-free guidance on a small transformer."""

from typing import Any

import pytest
import torch
from einops import repeat
from torch import Tensor

from models.diffusion.guidance import guided, guided_with_variance
from models.dit.stdit3 import STDiT3, STDiT3Config


def small() -> tuple[STDiT3, dict[str, Any]]:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(hidden_size=32, depth=1, num_heads=2, caption_channels=12, max_text_tokens=7))
    given = {
        "latents": torch.randn(2, 4, 3, 4, 6),
        "timestep": torch.tensor([900.0, 20.0]),
        "text": torch.randn(2, 5, 12),
        "text_mask": torch.tensor([[True] * 5, [True] * 2 + [False] * 3]),
        "fps": torch.tensor([24.0, 8.0]),
        "height": torch.full((2,), 32.0),
        "width": torch.full((2,), 48.0),
        "x_mask": torch.tensor([[True] * 3, [False, True, True]]),
    }
    return model.eval(), given


@torch.no_grad()
def test_scale_one_is_the_caption_alone_in_one_single_call() -> None:
    model, given = small()
    batches: list[int] = []
    model.register_forward_hook(lambda module, args, out: batches.append(len(out)))
    velocity = guided(model, **given, null_text=model.null_text(7), scale=1.0)
    assert batches == [2]
    assert torch.equal(velocity, model(**given)[:, :4])


@torch.no_grad()
def test_other_scales_are_the_formula_in_one_doubled_call() -> None:
    model, given = small()
    with_text = model(**given)[:, :4]
    without = model(**{**given, "text": repeat(model.null_text(5), "l dim -> b l dim", b=2)})[:, :4]
    assert (with_text - without).abs().max() > 1e-2
    batches: list[int] = []
    model.register_forward_hook(lambda module, args, out: batches.append(len(out)))
    for scale in (0.0, 2.0, 7.0):
        velocity = guided(model, **given, null_text=model.null_text(7), scale=scale)
        torch.testing.assert_close(velocity, without + scale * (with_text - without), atol=2e-5, rtol=0)
    assert batches == [4, 4, 4]


@torch.no_grad()
def test_the_null_caption_is_as_long_as_the_prompt() -> None:
    model, given = small()
    null = model.null_text(7).clone()
    velocity = guided(model, **given, null_text=null, scale=3.0)

    def changed(row: int) -> Tensor:
        other = null.clone()
        other[row] += 5.0
        return (guided(model, **given, null_text=other, scale=3.0) - velocity).abs().amax((1, 2, 3, 4)) > 1e-4

    assert changed(1).tolist() == [True, True]
    assert changed(3).tolist() == [True, False]  # the second prompt has two tokens
    assert changed(6).tolist() == [False, False]


def negative(lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Negative prompts of two samples, with their mask."""
    mask = torch.zeros(2, max(lengths), dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, :length] = True
    return torch.randn(2, max(lengths), 12), mask


@pytest.mark.parametrize("lengths", [(3, 1), (7, 4), (5, 5)])
@torch.no_grad()
def test_negative_prompts_have_their_own_length_and_mask(lengths: tuple[int, int]) -> None:
    model, given = small()
    text, mask = negative(lengths)
    with_text = model(**given)[:, :4]
    without = model(**{**given, "text": text, "text_mask": mask})[:, :4]
    velocity = guided(model, **given, null_text=text, null_mask=mask, scale=3.0)
    torch.testing.assert_close(velocity, without + 3 * (with_text - without), atol=2e-5, rtol=0)
    assert torch.equal(guided(model, **given, null_text=text, null_mask=mask, scale=1.0), with_text)


@torch.no_grad()
def test_the_whole_null_caption_is_an_option() -> None:
    model, given = small()
    null, mask = model.null_text(7), torch.ones(7, dtype=torch.bool)
    repeated = {"text": repeat(null, "l dim -> b l dim", b=2), "text_mask": repeat(mask, "l -> b l", b=2)}
    with_text, without = model(**given)[:, :4], model(**{**given, **repeated})[:, :4]
    velocity = guided(model, **given, null_text=null, null_mask=mask, scale=3.0)
    torch.testing.assert_close(velocity, without + 3 * (with_text - without), atol=2e-5, rtol=0)
    assert (velocity - guided(model, **given, null_text=null, scale=3.0)).abs().max() > 1e-3


def test_a_negative_prompt_needs_its_mask_and_a_null_caption_enough_tokens() -> None:
    model, given = small()
    for null, shape in ((torch.randn(6, 3, 12), r"\(6, 3, 12\)"), (model.null_text(4), r"\(4, 12\)")):
        with pytest.raises(
            ValueError, match=f"null_text {shape} for prompts of 5 tokens.*negative prompt its null_mask"
        ):
            guided(model, **given, null_text=null, scale=3.0)


@torch.no_grad()
def test_the_variance_is_the_captions() -> None:
    model, given = small()
    null = model.null_text(7)
    plain = model(**given)
    without = model(**{**given, "text": repeat(null[:5], "l dim -> b l dim", b=2)})
    for channels, count in ((None, 4), (3, 3)):
        out = guided_with_variance(model, **given, null_text=null, scale=3.0, guided_channels=channels)
        wanted = torch.cat([(without + 3 * (plain - without))[:, :count], plain[:, count:]], dim=1)
        torch.testing.assert_close(out, wanted, atol=2e-5, rtol=0)
    assert torch.equal(guided_with_variance(model, **given, null_text=null, scale=1.0), plain)
