"""A PixArt-Sigma checkpoint as the start of an STDiT3, beside PixArt-Sigma itself written in its own names."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors.torch import save_file
from torch import Tensor

from models.dit.pixart import init_from_pixart
from models.dit.positions import position_scale, position_table, sinusoid
from models.dit.stdit3 import STDiT3, STDiT3Config

HEADS, TEXT_TOKENS = 2, 6
CONFIG = STDiT3Config(32, depth=2, num_heads=HEADS, caption_channels=12, max_text_tokens=TEXT_TOKENS, qk_norm=False)


def checkpoint(tokens: int = TEXT_TOKENS) -> dict[str, Tensor]:
    """Random weights under the names PixArt-Sigma was published with, as wide as `CONFIG`."""
    linears = {
        **{"t_embedder.mlp.0": (256, 32), "t_embedder.mlp.2": (32, 32), "t_block.1": (32, 192)},
        **{"y_embedder.y_proj.fc1": (12, 32), "y_embedder.y_proj.fc2": (32, 32), "final_layer.linear": (32, 32)},
    }
    shapes = {
        "pos_embed": (1, 16, 32),
        "x_embedder.proj.weight": (32, 4, 2, 2),
        "x_embedder.proj.bias": (32,),
        "y_embedder.y_embedding": (tokens, 12),
        "final_layer.scale_shift_table": (2, 32),
    }
    for block in ("blocks.0", "blocks.1"):
        shapes[f"{block}.scale_shift_table"] = (6, 32)
        linears |= {f"{block}.attn.qkv": (32, 96), f"{block}.attn.proj": (32, 32)}
        linears |= {f"{block}.cross_attn.{name}": (32, 32) for name in ("q_linear", "proj")}
        linears |= {f"{block}.cross_attn.kv_linear": (32, 64), f"{block}.mlp.fc1": (32, 128)}
        linears |= {f"{block}.mlp.fc2": (128, 32)}
    for name, (inputs, outputs) in linears.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pixart(weights: dict[str, Tensor], image: Tensor, timestep: Tensor, text: Tensor, positions: Tensor) -> Tensor:
    """PixArt-Sigma on one image: (1, 4, h, w), (1,), (1, L, 12), (s, 32) -> (1, 8, h, w)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return rearrange(x, "1 n (heads d) -> heads n d", heads=HEADS)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = heads(q) @ heads(k).mT / heads(q).shape[-1] ** 0.5
        return rearrange(scores.softmax(-1) @ heads(v), "heads n d -> 1 n (heads d)")

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, (32,), eps=1e-6) * (1 + scale) + shift

    x = F.conv2d(image, weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"], stride=2)
    x = rearrange(x, "1 c h w -> 1 (h w) c") + positions
    t = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", sinusoid(timestep, 256))))  # (1, 32)
    six = rearrange(linear("t_block.1", F.silu(t)), "1 (six c) -> six 1 c", six=6)
    y = linear("y_embedder.y_proj.fc2", F.gelu(linear("y_embedder.y_proj.fc1", text), approximate="tanh"))
    for block in ("blocks.0", "blocks.1"):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            six[:, 0] + weights[f"{block}.scale_shift_table"]
        ).unbind()
        q, k, v = linear(f"{block}.attn.qkv", norm(x, shift, scale)).chunk(3, dim=-1)
        x = x + gate * linear(f"{block}.attn.proj", attention(q, k, v))
        k, v = linear(f"{block}.cross_attn.kv_linear", y).chunk(2, dim=-1)
        x = x + linear(f"{block}.cross_attn.proj", attention(linear(f"{block}.cross_attn.q_linear", x), k, v))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(x, mlp_shift, mlp_scale)), approximate="tanh")
        x = x + mlp_gate * linear(f"{block}.mlp.fc2", hidden)
    shift, scale = (weights["final_layer.scale_shift_table"] + t).unbind()
    patches = linear("final_layer.linear", norm(x, shift, scale))
    return rearrange(patches, "1 (h w) (ph pw c) -> 1 c (h ph) (w pw)", h=image.shape[2] // 2, ph=2, pw=2)


def fresh(config: STDiT3Config = CONFIG) -> STDiT3:
    torch.manual_seed(1)
    return STDiT3(config).eval()


def published(folder: Path, weights: dict[str, Tensor]) -> Path:
    """A .pth as PixArt-Sigma's."""
    torch.save({"state_dict": weights, "epoch": 3}, folder / "PixArt-Sigma.pth")
    return folder / "PixArt-Sigma.pth"


def inputs(frames: int) -> dict[str, Any]:
    """One image, as often as there are frames."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(1, 4, 6, 10, generator=generator)
    return {
        "latents": repeat(image, "1 c h w -> 1 c t h w", t=frames),
        "timestep": torch.tensor([700.0]),
        "text": torch.randn(1, 5, 12, generator=generator),
        "text_mask": torch.ones(1, 5, dtype=torch.bool),
        **{"fps": torch.tensor([24.0]), "height": torch.tensor([48.0]), "width": torch.tensor([80.0])},
    }


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_a_video_model_starts_as_the_image_model_on_every_frame(tmp_path: Path, frames: int) -> None:
    model, given, weights = fresh(), inputs(frames), checkpoint()
    init_from_pixart(model, published(tmp_path, weights))
    positions = position_table(3, 5, 32, position_scale(given["height"], given["width"], 512))
    want = pixart(weights, given["latents"][:, :, 0], given["timestep"], given["text"], positions)
    out = model(**given)
    for frame in range(frames):
        torch.testing.assert_close(out[:, :, frame], want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_temporal_blocks_are_left_at_identity(tmp_path: Path) -> None:
    model = fresh()
    init_from_pixart(model, published(tmp_path, checkpoint()))
    x = torch.randn(1, 3, 15, 32)
    given = torch.randn(1, 1, 192), torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool)
    assert all(torch.equal(block(x, *given, model.rope(3)), x) for block in model.temporal_blocks)
    assert not any(torch.equal(block(x, *given), x) for block in model.spatial_blocks)


def test_the_report_names_every_tensor(tmp_path: Path) -> None:
    config = STDiT3Config(32, depth=2, num_heads=HEADS, caption_channels=12, max_text_tokens=TEXT_TOKENS)
    model, weights = fresh(config), checkpoint()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = init_from_pixart(model, published(tmp_path, weights))
    after = model.state_dict()
    assert report.loaded.keys() | report.fresh.keys() == after.keys()
    assert not report.loaded.keys() & report.fresh.keys()
    assert list(report.dropped) == ["pos_embed"]
    assert len(report.loaded) == len(weights) - 1 == 46
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert torch.equal(after["spatial_blocks.1.mlp.fc1.weight"], weights["blocks.1.mlp.fc1.weight"])
    assert {name.split(".")[0] for name in report.fresh} == {
        "rope",
        "fps_embedder",
        "temporal_blocks",
        "spatial_blocks",
    }
    assert sum(name.startswith("spatial_blocks") for name in report.fresh) == 4  # norms of queries and keys
    lines = str(report).splitlines()
    assert lines[0].endswith("PixArt-Sigma.pth: 46 loaded, 43 kept fresh, 1 dropped")
    assert "      loaded    30: blocks. -> spatial_blocks." in lines
    assert any(line.endswith("dropped     1: computed for each size") for line in lines)


@pytest.mark.parametrize("tokens", [3, TEXT_TOKENS, 9])
def test_the_null_caption_gets_the_models_length(tmp_path: Path, tokens: int) -> None:
    model, weights = fresh(), checkpoint(tokens)
    init_from_pixart(model, published(tmp_path, weights))
    theirs, ours = weights["y_embedder.y_embedding"], model.y_embedder.y_embedding
    for place in range(TEXT_TOKENS):
        assert torch.equal(ours[place], theirs[min(place, tokens - 1)])


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / "model.safetensors")
    first, again = fresh(), fresh()
    init_from_pixart(first, tmp_path / "model.safetensors")
    init_from_pixart(again, published(tmp_path, checkpoint()))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())


def renamed(old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in checkpoint().items()}


def without(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in checkpoint().items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (checkpoint() | {"ar_embedder.mlp.0.bias": torch.ones(8)}, r"PixArt-Sigma has no ar_embedder\.mlp\.0\.bias"),
        (checkpoint() | {"pos_embed.proj.bias": torch.ones(8)}, r"PixArt-Sigma has no pos_embed\.proj\.bias"),
        (renamed("blocks.", "spatial_blocks."), r"PixArt-Sigma has no spatial_blocks\.0\.scale_shift_table"),
        (checkpoint() | {"blocks.0.attn.sr.weight": torch.ones(8)}, r"1 unexpected \(spatial_blocks\.0\.attn\.sr"),
        (without("blocks.1."), r"15 missing \(spatial_blocks\.1\."),
        (without("t_block."), r"2 missing \(t_block\.1\.bias, t_block\.1\.weight\)"),
        (renamed("blocks.0.attn.qkv", "transformer_blocks.0.attn1.to_q"), r"diffusers' layout.*original checkpoint"),
        (
            checkpoint() | {"x_embedder.proj.weight": torch.ones(32, 16, 2, 2)},
            r"mis-shaped \(x_embedder\.proj\.weight \[32, 16, 1, 2, 2\] instead of \[32, 4, 1, 2, 2\]",
        ),
    ],
)
def test_what_the_map_does_not_explain_is_refused(tmp_path: Path, weights: dict[str, Tensor], message: str) -> None:
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        init_from_pixart(model, published(tmp_path, weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("code of a pickle ran",)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "PixArt.pth"
    with pytest.raises(ValueError, match="no such file"):
        init_from_pixart(fresh(), path)
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(ValueError, match="not a whole checkpoint of plain tensors"):
        init_from_pixart(fresh(), path)
    assert "code of a pickle ran" not in capsys.readouterr().out
    path.write_bytes(published(tmp_path, checkpoint()).read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        init_from_pixart(fresh(), path)
    torch.save(checkpoint(), path)
    with pytest.raises(ValueError, match="found entries pos_embed.*entry 'state_dict'"):
        init_from_pixart(fresh(), path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="found no dict"):
        init_from_pixart(fresh(), path)
