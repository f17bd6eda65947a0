"""What STDiT3 promises, without any recording."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.dit import build_dit, load_dit, save_dit
from models.dit.positions import RotaryFrequencies, position_scale, position_table, rotate, sinusoid
from models.dit.stdit3 import STDiT3, STDiT3Config

CONFIG = STDiT3Config(hidden_size=32, depth=2, num_heads=2, caption_channels=12, max_text_tokens=7)


def awake(config: STDiT3Config = CONFIG) -> STDiT3:
    """A model in which nothing is zero, so that what should not matter could."""
    torch.manual_seed(0)
    model = STDiT3(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch: int = 2, size: tuple[int, int, int] = (3, 4, 6), tokens: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(tokens) < torch.tensor([[tokens - 2], [1]])[:batch]
    return {
        "latents": torch.randn(batch, 4, *size, generator=generator),
        "timestep": torch.tensor([900.0, 20.0])[:batch],
        "text": torch.randn(batch, tokens, 12, generator=generator),
        "text_mask": mask,
        "fps": torch.full((batch,), 24.0),
        "height": torch.full((batch,), size[1] * 8.0),
        "width": torch.full((batch,), size[2] * 8.0),
    }


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = build_dit("stdit3-xl/2")
    numbers = sum(parameter.numel() for parameter in model.parameters()) + model.rope.freqs.numel()
    assert numbers == 1_207_643_972
    assert len(model.state_dict()) == 973


def test_the_tiny_size() -> None:
    model = build_dit("stdit3-tiny")
    assert 2.3e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.5e6


def test_the_same_seed_builds_the_same_model() -> None:
    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return STDiT3(CONFIG).state_dict()

    first, again, other = built(3), built(3), built(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["t_block.1.weight"], other["t_block.1.weight"])


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (4, 7, 9)])
@torch.no_grad()
def test_odd_latent_sizes_come_back_whole(size: tuple[int, int, int]) -> None:
    out = awake()(**inputs(size=size))
    assert out.shape == (2, 8, *size) and out.dtype == torch.float32 and out.isfinite().all()


@torch.no_grad()
def test_padding_is_at_the_end_and_zero() -> None:
    """Without padding to hide, cells that exist anyway may be given as explicit zeros."""
    model, given = awake(), inputs(size=(2, 5, 3))
    padded = {**given, "latents": nn.functional.pad(given["latents"], (0, 1, 0, 1))}
    assert torch.equal(model(**given), model(**padded)[..., :5, :3])


def test_doubling_the_training_size_halves_the_scale() -> None:
    height, width = torch.tensor([240.0, 7.0]), torch.tensor([426.0, 7.0])
    scale = position_scale(height, width, 512)
    assert scale.item() == pytest.approx((240 * 426) ** 0.5 / 512)
    assert position_scale(height, width, 1024).item() == pytest.approx(scale.item() / 2)


def test_the_width_half_of_a_position_comes_first() -> None:
    table = position_table(2, 3, 16, torch.tensor(1.0))  # tokens: row 0 has 0, 1, 2, row 1 has 3, 4, 5
    assert torch.equal(table[0, :8], table[3, :8]) and not torch.equal(table[0, :8], table[1, :8])
    assert torch.equal(table[0, 8:], table[1, 8:]) and not torch.equal(table[0, 8:], table[3, 8:])


def test_rotation_turns_neighbouring_channels() -> None:
    """Frame t turns channels (2i, 2i + 1) by t times the frequency of pair i: for 4 channels 1 and 1/100."""
    turned = rotate(torch.tensor([[1.0, 0.0, 2.0, 0.0]] * 4), RotaryFrequencies(4)(4))
    want = [[math.cos(t), math.sin(t), 2 * math.cos(t / 100), 2 * math.sin(t / 100)] for t in range(4)]
    torch.testing.assert_close(turned, torch.tensor(want))


def block_inputs(model: STDiT3, size: tuple[int, int] = (3, 5)) -> tuple[Tensor, Callable[[Any, Tensor], Tensor]]:
    """Tokens (1, 3, 5, C), and a way to run a block on them."""
    generator = torch.Generator().manual_seed(2)
    channels = model.config.hidden_size
    x = torch.randn(1, *size, channels, generator=generator)
    conditions = torch.randn(1, 1, 6 * channels, generator=generator)
    text, mask = torch.randn(1, 4, channels, generator=generator), torch.ones(1, 4, dtype=torch.bool)
    rotation = model.rope(size[0])
    return x, lambda block, x: block(x, conditions, text, mask, rotation if block.axis == "time" else None)


@pytest.mark.parametrize("axis", ["space", "time"])
@torch.no_grad()
def test_attention_stays_in_its_sequence(axis: str) -> None:
    """Moving any one token moves its whole frame, or its place in all frames, and nothing else."""
    model = awake()
    x, run = block_inputs(model)
    block = (model.spatial_blocks if axis == "space" else model.temporal_blocks)[0]
    still = run(block, x)
    for frame, place in product(range(3), range(5)):
        moved = x.clone()
        moved[0, frame, place] += torch.randn(x.shape[-1])  # not a constant, which layer norm would take away
        changes = (run(block, moved) - still).abs().amax(-1)[0]  # (t, s)
        expected = torch.zeros(3, 5, dtype=torch.bool)
        expected[(frame, slice(None)) if axis == "space" else (slice(None), place)] = True
        assert torch.equal(changes > 1e-4, expected), (frame, place)
        assert changes[~expected].max() < 1e-6


@torch.no_grad()
def test_temporal_blocks_know_the_order_and_spatial_blocks_do_not() -> None:
    model = awake()
    x, run = block_inputs(model)
    spatial, temporal = model.spatial_blocks[0], model.temporal_blocks[0]
    torch.testing.assert_close(run(spatial, x.flip(2)).flip(2), run(spatial, x), atol=1e-5, rtol=0)
    assert (run(temporal, x.flip(1)).flip(1) - run(temporal, x)).abs().max() > 1e-2


@torch.no_grad()
def test_temporal_blocks_start_as_identity_and_spatial_ones_do_not() -> None:
    torch.manual_seed(0)
    model = STDiT3(CONFIG)
    x, run = block_inputs(model)
    assert all(torch.equal(run(block, x), x) for block in model.temporal_blocks)
    assert not any(torch.equal(run(block, x), x) for block in model.spatial_blocks)


@torch.no_grad()
def test_a_fresh_model_does_not_see_the_frame_rate() -> None:
    torch.manual_seed(0)
    model, given = STDiT3(CONFIG), inputs()
    other = {**given, "fps": given["fps"] / 3}
    assert torch.equal(model(**given), model(**other))
    assert (awake()(**given) - awake()(**other)).abs().max() > 1e-3


@torch.no_grad()
def test_given_frames_behave_as_timestep_zero() -> None:
    model, given = awake(), inputs()
    at_zero = model(**{**given, "timestep": torch.zeros(2)})
    none = torch.zeros(2, 3, dtype=torch.bool)
    torch.testing.assert_close(model(**given, x_mask=none), at_zero, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(**given, x_mask=~none), model(**given), atol=1e-5, rtol=0)
    mixed = none.clone()
    mixed[:, 1:] = True
    later = {**given, "timestep": given["timestep"] + 50}
    tokens: dict[float, Tensor] = {}
    for call in (given, later):
        handle = model.spatial_blocks[0].register_forward_hook(
            lambda module, args, out, t=float(call["timestep"][0]): tokens.update({t: out})
        )
        model(**call, x_mask=mixed)
        handle.remove()
    before, after = tokens[900.0], tokens[950.0]  # (B, t, s, C) of the first block, where frames are still apart
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.equal(before[:, 1], after[:, 1])


@torch.no_grad()
def test_an_empty_caption_is_finite_and_reads_no_text() -> None:
    model, given = awake(), inputs()
    given["text_mask"] = torch.tensor([[True] * 5, [False] * 5])
    out = model(**given)
    other = model(**{**given, "text": given["text"] + 3.0})
    assert out.isfinite().all()
    assert torch.equal(out[1], other[1]) and not torch.equal(out[0], other[0])
    no_tokens = {**given, "text": given["text"][:, :0], "text_mask": given["text_mask"][:, :0]}
    torch.testing.assert_close(model(**no_tokens)[1], out[1], atol=1e-5, rtol=0)


def test_an_empty_caption_has_finite_gradients() -> None:
    model, given = awake(), inputs()
    given["text_mask"] = torch.tensor([[True] * 5, [False] * 5])
    given["text"].requires_grad_()
    model(**given).square().mean().backward()
    gradient = given["text"].grad
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0


@torch.no_grad()
def test_padding_of_the_text_does_not_matter() -> None:
    model, given = awake(), inputs()
    out = model(**given)
    noisy = given["text"].masked_fill(~given["text_mask"][..., None], 100.0)
    torch.testing.assert_close(model(**{**given, "text": noisy}), out, atol=1e-6, rtol=0)
    longer = {
        "text": nn.functional.pad(noisy, (0, 0, 0, 2), value=-9.0),
        "text_mask": nn.functional.pad(given["text_mask"], (0, 2)),
    }
    torch.testing.assert_close(model(**{**given, **longer}), out, atol=1e-5, rtol=0)


@torch.no_grad()
def test_samples_do_not_see_each_other() -> None:
    model, given = awake(), inputs()
    second = model(**{name: value[1:] for name, value in given.items()})
    torch.testing.assert_close(model(**given)[1:], second, atol=1e-5, rtol=0)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model, given = awake(), inputs()
    runs = []
    calls: list[str] = []
    model.spatial_blocks[0].register_forward_pre_hook(lambda *_: calls.append("block"))
    for model.checkpoint_blocks in (False, True):
        model.zero_grad()
        calls.clear()
        model(**given).square().mean().backward()
        runs.append((len(calls), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (plain_calls, plain), (again_calls, again) = runs
    assert (plain_calls, again_calls) == (1, 2)  # the second time in the backward pass
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)


@torch.no_grad()
def test_a_bf16_model_keeps_float32_tables() -> None:
    model, given = awake(), inputs()
    freqs, exact = model.rope.freqs.clone(), model(**given)
    model.to(torch.bfloat16)
    assert model.t_block[1].weight.dtype == torch.bfloat16
    assert model.rope.freqs.dtype == torch.float32 and torch.equal(model.rope.freqs, freqs)
    assert not model.rope.freqs.requires_grad
    tables: dict[str, Any] = {}
    model.rope.register_forward_hook(lambda module, args, out: tables.update(rope=out))
    model.t_embedder.mlp.register_forward_hook(lambda module, args, out: tables.update(time=args[0]))
    side = torch.tensor([64.0]).bfloat16()
    out = model(**{**given, "timestep": torch.tensor([999.0, 1000.0])})
    assert tables["rope"][0].dtype == torch.float32
    assert not torch.equal(tables["time"][0], tables["time"][1])  # bf16 would make both 1000
    assert torch.equal(tables["time"], sinusoid(torch.tensor([999.0, 1000.0]), 256).bfloat16())
    assert position_table(2, 2, 8, position_scale(side, side, 512)).dtype == torch.float32
    assert out.dtype == torch.float32
    assert (model(**given) - exact).abs().mean() < 0.02 * exact.abs().mean()


@torch.no_grad()
def test_positions_inside_a_bf16_model_are_rounded_once() -> None:
    """They are added in float32; what is rounded is the sum. A table made, or rounded, in bf16 would be another one."""
    model, given = awake().bfloat16(), inputs()
    seen: dict[str, Any] = {}
    model.x_embedder.register_forward_hook(lambda module, args, out: seen.update(patches=out))
    model.spatial_blocks[0].register_forward_pre_hook(lambda module, args: seen.update(tokens=args[0]))
    model(**given)
    table = position_table(2, 3, 32, position_scale(given["height"], given["width"], 512))
    assert seen["patches"].dtype == torch.bfloat16
    assert torch.equal(seen["tokens"], (seen["patches"].float() + table).bfloat16())
    assert not torch.equal(seen["tokens"], seen["patches"] + table.bfloat16())


def test_the_null_caption_has_the_length_asked_for() -> None:
    model = STDiT3(CONFIG)
    assert torch.equal(model.null_text(3), model.state_dict()["y_embedder.y_embedding"][:3])
    with pytest.raises(ValueError, match="7 tokens, not 8"):
        model.null_text(8)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("latent channels", {"latents": torch.zeros(2, 3, 3, 4, 6)}),
        ("captions", {"text": torch.zeros(2, 5, 11)}),
        ("text_mask", {"text_mask": torch.ones(2, 5, dtype=torch.int64)}),  # would be added to the attention scores
        ("text_mask", {"text_mask": torch.ones(1, 5, dtype=torch.bool)}),  # would be broadcast
        ("x_mask", {"x_mask": torch.ones(2, 1, dtype=torch.bool)}),
    ],
)
def test_wrong_inputs_are_named(name: str, wrong: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=f"{name}.*found .* wants"):
        STDiT3(CONFIG)(**{**inputs(), **wrong})


def test_unknown_names_and_fields_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'stdit9'.*stdit3-xl/2, stdit3-3b/2, stdit3-tiny"):
        build_dit("stdit9")
    with pytest.raises(ValueError, match=r"no field layers; known are .*depth"):
        build_dit("stdit3-tiny", layers=2)
    with pytest.raises(ValueError, match="hidden_size 30 with 4 heads"):
        build_dit("stdit3-tiny", hidden_size=30)


def test_overrides_change_the_preset() -> None:
    model = build_dit("stdit3-tiny", depth=1, in_channels=4)
    assert (model.config.depth, model.config.in_channels, model.config.hidden_size) == (1, 4, 128)
    assert len(model.spatial_blocks) == 1 and model.x_embedder.proj.in_channels == 4


@torch.no_grad()
def test_a_saved_model_comes_back(tmp_path: Any) -> None:
    model, given = awake(), inputs()
    model.rope.freqs.mul_(0.99)  # loaded, not computed again
    save_dit(model, tmp_path / "dit")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = load_dit(tmp_path / "dit")
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.config == model.config
    assert not again.rope.freqs.requires_grad and again.t_block[1].weight.requires_grad
    assert torch.equal(again(**given), model(**given))
    assert sorted(path.name for path in (tmp_path / "dit").iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_saved_in_bf16_comes_back_in_float32(tmp_path: Any) -> None:
    model = STDiT3(CONFIG).bfloat16()
    save_dit(model, tmp_path)
    again = load_dit(tmp_path)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in model.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path: Any) -> None:
    save_dit(STDiT3(CONFIG), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(ValueError, match=r"missing \(spatial_blocks\.2\."):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"depth"', '"layers"'))
    with pytest.raises(ValueError, match=r"config\.json: unknown field layers"):
        load_dit(tmp_path)
