"""What the blocks promise about memory, compilation and the seam for sequence parallelism."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.dit.layers import MAX_ROWS, Block, CrossAttention, attend
from models.dit.positions import RotaryFrequencies


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation makes, by its elements; the rows and masks that attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.rows: list[int] = []
        self.masks: list[Tensor] = []  # added to the scores

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        if "scaled_dot_product" in str(func):
            self.rows.append(len(args[0]))
            self.masks += [mask for mask in [(kwargs or {}).get("attn_mask")] if mask is not None]
        return out


def tokens(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def awake_block(axis: Any, channels: int = 8, heads: int = 2) -> Block:
    torch.manual_seed(0)
    return Block(axis, channels, heads, mlp_ratio=2.0, qk_norm=True)


def test_spatial_attention_holds_no_scores() -> None:
    """Forward and backward over a frame of 3,600 tokens, as at 720p: nothing of a frame's square."""
    block, x = awake_block("space"), tokens(1, 1, 3600, 8).requires_grad_()
    with Sizes() as sizes:
        block(x, tokens(1, 1, 48), tokens(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)).square().mean().backward()
    assert len(sizes.rows) >= 2  # attention was seen
    assert sizes.largest <= 3600 * 3 * 8  # queries, keys and values; a matrix of scores would have 3600 * 3600


def test_captions_of_many_lengths_need_no_block_mask() -> None:
    """A mask of all tokens by all captions would have (4 * 256) * (4 * 32) elements."""
    torch.manual_seed(0)
    layer = CrossAttention(hidden_size=8, num_heads=2)
    mask = torch.arange(32) < torch.tensor([[32], [7], [1], [0]])
    with Sizes() as sizes:
        layer(tokens(4, 256, 8).requires_grad_(), tokens(4, 32, 8), mask).square().mean().backward()
    assert len(sizes.rows) >= 2
    assert sizes.largest <= 4 * 256 * 8  # the tokens themselves


@torch.no_grad()
def test_every_caption_has_a_key_to_look_at() -> None:
    """The empty one too: over no key at all, some kernels answer with NaN."""
    torch.manual_seed(0)
    layer = CrossAttention(hidden_size=8, num_heads=2)
    with Sizes() as sizes:
        layer(tokens(2, 3, 8), tokens(2, 4, 8), torch.tensor([[True, False, False, False], [False] * 4]))
    (mask,) = sizes.masks
    assert (mask == 0).sum(dim=-1).min() == 1 and (mask == -torch.inf).any()


def test_more_rows_than_a_kernel_takes_are_split() -> None:
    q, k, v = tokens(3, MAX_ROWS + 2, 1, 2, 2).unbind(0)
    with Sizes() as sizes:
        out = attend(q, k, v)
    assert sizes.rows == [MAX_ROWS, 2]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", ["space", "time"])
def test_a_block_compiles_without_graph_breaks(axis: str) -> None:
    block, rotation = awake_block(axis), RotaryFrequencies(4)(3) if axis == "time" else None
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = torch._dynamo.explain(block)(tokens(2, 3, 5, 8), tokens(2, 1, 48), tokens(2, 3, 8), mask, rotation)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@torch.no_grad()
def test_attention_can_be_replaced_from_outside() -> None:
    """Two ranks that each hold half of the patches exchange them for half of the heads, attend, and exchange back.

    Here both are in one process: what enters attention is cut by heads, what leaves it is put together again.
    """
    block, seen = awake_block("space", heads=4), []

    def by_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ranks = [attend(*heads) for heads in zip(q.chunk(2, dim=1), k.chunk(2, dim=1), v.chunk(2, dim=1))]
        seen.extend(tuple(out.shape) for out in ranks)
        return torch.cat(ranks, dim=1)

    given = tokens(2, 3, 6, 8), tokens(2, 1, 48), tokens(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    whole = block(*given)
    block.attn.attend = by_heads
    torch.testing.assert_close(block(*given), whole, atol=1e-6, rtol=0)
    assert seen == [(6, 2, 6, 2)] * 2  # (frames of the batch, heads, patches, channels of a head)


@torch.no_grad()
def test_all_but_attention_is_the_same_for_part_of_a_frame() -> None:
    """So a rank may hold some patches of every frame: with attention's answer given, a block treats each alone."""
    block = awake_block("space")
    x, conditions, text = tokens(2, 3, 6, 8), tokens(2, 1, 48), tokens(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    block.attn.attend = lambda q, k, v: v
    whole = block(x, conditions, text, mask)
    part = block(x[:, :, 2:5], conditions, text, mask)
    torch.testing.assert_close(part, whole[:, :, 2:5], atol=1e-6, rtol=0)
