"""STDiT3 against outputs recorded from Open-Sora v1.2 (float32, CPU, small random weights)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from models.diffusion.rectified_flow import add_noise, loss_per_sample
from models.dit import build_dit, load_dit
from models.dit.layers import FinalLayer, normalize
from models.dit.positions import RotaryFrequencies, position_scale, position_table, rotate
from models.dit.stdit3 import STDiT3, STDiT3Config
from models.weights import save_weights

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_v1_2.pt"
pytestmark = pytest.mark.skipif(not RECORDING.exists(), reason="recordings not here")
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}
SMALL = STDiT3Config(hidden_size=64, depth=2, num_heads=4, caption_channels=48, max_text_tokens=10)
CASES = ["even", "odd", "p240", "image"]


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return torch.load(RECORDING, weights_only=True)


@pytest.fixture
def model(recording: dict[str, Any]) -> STDiT3:
    model = STDiT3(SMALL)
    model.load_state_dict(recording["stdit3"]["state_dict"], strict=True)
    return model


def call(model: STDiT3, x: Tensor, timestep: Tensor, kwargs: dict[str, Tensor], **changes: Any) -> Tensor:
    """Open-Sora's inputs -> ours: captions lose their axis of one, masks become booleans."""
    given = {
        "text": rearrange(kwargs["y"], "b 1 l dim -> b l dim"),
        "text_mask": kwargs["mask"].bool(),
        **{name: kwargs[name] for name in ("fps", "height", "width")},
        **changes,
    }
    return model(x, timestep, given.pop("text"), given.pop("text_mask"), **given)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_size_gives_the_recorded_output(recording: dict[str, Any], model: STDiT3, case: str) -> None:
    recorded = recording["stdit3"]["cases"][case]
    inputs = recorded["inputs"]
    out = call(model, inputs["x"], inputs["timestep"], inputs)
    torch.testing.assert_close(out, recorded["out"], **CLOSE)

    all_tokens = torch.ones_like(inputs["mask"], dtype=torch.bool)
    out = call(model, inputs["x"], inputs["timestep"], inputs, text_mask=all_tokens)
    torch.testing.assert_close(out, recorded["out_no_text_mask"], **CLOSE)


@torch.no_grad()
def test_the_original_as_published_is_loaded(recording: dict[str, Any], tmp_path: Path) -> None:
    """Its config and weights, written as on the hub: `load_dit` alone, and the recorded output."""
    config = {"model_type": "STDiT3", "architectures": ["STDiT3"], **recording["stdit3"]["config"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(recording["stdit3"]["state_dict"], tmp_path / "model.safetensors")
    model, recorded = load_dit(tmp_path), recording["stdit3"]["cases"]["p240"]
    inputs = recorded["inputs"]
    torch.testing.assert_close(call(model, inputs["x"], inputs["timestep"], inputs), recorded["out"], **CLOSE)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_guided_batch_with_given_frames(recording: dict[str, Any], model: STDiT3, case: str) -> None:
    """The recording holds [caption, null caption] with an x_mask.

    The original's final layer puts given frames through norm and modulation twice, first at t and then at 0: it
    overwrites its input. Neither loss nor sampler reads a given frame, so ours modulates them once, at 0; the original
    is repeated here from our own tokens, so that what enters the final layer is checked for every frame.
    """
    recorded = recording["stdit3"]["cases"][case]
    inputs = recorded["inputs"]
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
    text = rearrange(doubled.pop("y"), "b 1 l dim -> b l dim")
    text = torch.cat([text[: len(text) // 2], repeat(model.null_text(10), "l dim -> b l dim", b=len(text) // 2)])
    seen: dict[str, Tensor] = {}
    model.final_layer.register_forward_hook(lambda module, args, out: seen.update(tokens=args[0]))
    x_mask = doubled["x_mask"]
    out = model(
        doubled["x"],
        doubled["timestep"],
        text,
        doubled["mask"].bool(),
        x_mask=x_mask,
        **{name: doubled[name] for name in ("fps", "height", "width")},
    )
    want = recorded["out_cfg_batch"]
    denoised = frames_of(x_mask, want)
    torch.testing.assert_close(out[denoised], want[denoised], **CLOSE)

    rate = model.fps_embedder(doubled["fps"], torch.float32)
    noisy = model.t_embedder(doubled["timestep"], torch.float32) + rate
    clean = model.t_embedder(torch.zeros_like(doubled["timestep"]), torch.float32) + rate
    twice = modulate(model.final_layer, modulate(model.final_layer, seen["tokens"], noisy), clean)
    patches = model.final_layer.linear(twice)
    rows, columns = recorded["grid"][1:]
    video = rearrange(
        patches, "b t (h w) (ph pw c) -> b c t (h ph) (w pw)", **{"h": rows, "w": columns, "ph": 2, "pw": 2}
    )[..., : want.shape[3], : want.shape[4]]
    torch.testing.assert_close(video[~denoised], want[~denoised], **CLOSE)


def frames_of(x_mask: Tensor, like: Tensor) -> Tensor:
    """(B, t) -> the elements of `like` (B, c, t, h, w) in its True frames."""
    return repeat(x_mask, "b t -> b c t h w", c=like.shape[1], h=like.shape[3], w=like.shape[4])


def modulate(layer: FinalLayer, x: Tensor, embedded: Tensor) -> Tensor:
    shift, scale = layer.scale_shift_table
    embedded = rearrange(embedded, "b c -> b 1 1 c")
    return normalize(x) * (1 + scale + embedded) + shift + embedded


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_module_gives_the_recorded_tokens(recording: dict[str, Any], model: STDiT3, case: str) -> None:
    """The traces were recorded with an x_mask, but the recorder's hook repeated the first timestep embedding as that
    of timestep 0. So they show the model at t for all frames, but for the final layer's given frames."""
    recorded = recording["stdit3"]["cases"][case]
    inputs, traces = recorded["inputs"], recorded["trace_x_mask"]
    ours: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, out, name=name: ours.update({name: out}))
    call(model, inputs["x"], inputs["timestep"], inputs)
    denoised = repeat(inputs["x_mask"], "b t -> b (t s)", s=recorded["pos_emb"].shape[1])
    for name, trace in traces.items():
        tokens = ours[name]
        if name == "t_block":
            tokens = rearrange(tokens, "b 1 c -> b c")
        elif name == "y_embedder":
            tokens = rearrange(tokens, "b l c -> b 1 l c")
        elif tokens.ndim == 4:
            tokens = rearrange(tokens, "b t s c -> b (t s) c")
        if name == "final_layer":
            tokens, trace = tokens[denoised], trace[denoised]
        torch.testing.assert_close(tokens, trace, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_without_qk_norm_and_sigma(recording: dict[str, Any]) -> None:
    plain = recording["stdit3"]["plain"]
    model = STDiT3(STDiT3Config(64, 1, 4, caption_channels=48, max_text_tokens=10, qk_norm=False, pred_sigma=False))
    model.load_state_dict(plain["state_dict"], strict=True)
    inputs = recording["stdit3"]["cases"]["odd"]["inputs"]
    out = call(model, inputs["x"], inputs["timestep"], inputs, x_mask=inputs["x_mask"])
    assert out.shape == plain["out"].shape
    denoised = frames_of(inputs["x_mask"], out)
    torch.testing.assert_close(out[denoised], plain["out"][denoised], **CLOSE)


@torch.no_grad()
def test_bf16_is_as_near_as_bf16_can_be(recording: dict[str, Any], model: STDiT3) -> None:
    """The original rounds the timestep to bf16 before its sinusoid; given the rounded one, ours agrees."""
    recorded, inputs = recording["stdit3"]["bf16"], recording["stdit3"]["cases"]["even"]["inputs"]
    model.bfloat16()
    denoised = frames_of(inputs["x_mask"], recorded["out"])
    rounded = inputs["timestep"].bfloat16()
    errors = [
        (call(model, inputs["x"], t, inputs, x_mask=inputs["x_mask"]) - recorded["out"])[denoised].abs().max()
        for t in (rounded, inputs["timestep"])
    ]
    assert errors[0] < 0.05 < errors[1]


def test_the_originals_bf16_tables_are_rounded_and_ours_are_not(recording: dict[str, Any], model: STDiT3) -> None:
    """How far they are apart: 4e-3 in the position table, 2e-2 in a rotated query of a few units."""
    rounded, even = recording["stdit3"]["bf16"], recording["stdit3"]["cases"]["even"]
    model.bfloat16()
    scale = position_scale(even["inputs"]["height"], even["inputs"]["width"], 512)
    table = rearrange(position_table(4, 6, 64, scale), "s c -> 1 s c")
    assert (table - even["pos_emb"]).abs().max() < 2e-6
    assert 3e-3 < (table - rounded["pos_emb"]).abs().max() < 5e-3
    rope = recording["stdit3"]["rope"]
    assert (rotate(rope["q"], model.rope(15)) - rope["out"]).abs().max() < 2e-6
    assert not torch.equal(model.rope.freqs.data, rounded["rope_freqs"].float())
    assert (rotate(rope["q"], model.rope(15)) - rounded["rope_out"]).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_position_tables(recording: dict[str, Any], case: str) -> None:
    recorded = recording["stdit3"]["cases"][case]
    inputs = recorded["inputs"]
    scale = position_scale(inputs["height"], inputs["width"], 512)
    assert scale.item() == pytest.approx(recorded["pos_scale"], rel=1e-6)
    table = position_table(recorded["grid"][1], recorded["grid"][2], 64, scale)
    torch.testing.assert_close(rearrange(table, "s c -> 1 s c"), recorded["pos_emb"], atol=2e-6, rtol=0)


def test_rotation(recording: dict[str, Any]) -> None:
    recorded = recording["stdit3"]["rope"]
    frequencies = RotaryFrequencies(16)
    torch.testing.assert_close(frequencies.freqs.data, recorded["freqs"], atol=1e-7, rtol=0)
    rotated = rotate(recorded["q"], frequencies(15))
    torch.testing.assert_close(rotated, recorded["out"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", ["even_mask", "even_plain", "odd_mask", "odd_plain"])
def test_training_losses_and_gradients(recording: dict[str, Any], model: STDiT3, case: str) -> None:
    recorded = recording["stdit3"]["training"][case]
    x0, noise, t, mask = recorded["x_start"], recorded["noise"], recorded["t"], recorded["mask"]
    x_mask = recorded["model_kwargs"].get("x_mask")
    out = call(model, add_noise(x0, noise, t, mask), t, recorded["model_kwargs"], x_mask=x_mask)
    loss = loss_per_sample(out, x0, noise, mask)
    torch.testing.assert_close(loss, recorded["loss"], **CLOSE)
    loss.mean().backward()
    parameters = dict(model.named_parameters())
    for name, gradient in recorded["grad"].items():
        torch.testing.assert_close(
            parameters[name].grad, gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_fresh_weights_are_spread_as_the_originals(recording: dict[str, Any]) -> None:
    state = STDiT3(SMALL).state_dict()
    recorded = recording["stdit3"]["fresh_mean_std"]
    assert recorded.keys() == state.keys()
    for name, (mean, std) in recorded.items():
        values = state[name]
        if std == 0:
            assert values.std() == 0 and values.mean() == mean, name
        else:
            noise = std / values.numel() ** 0.5
            assert values.mean().item() == pytest.approx(mean, abs=8 * noise), name
            assert values.std().item() == pytest.approx(std, abs=8 * noise), name


def test_trainable_parameters_are_the_originals(recording: dict[str, Any]) -> None:
    trainable = {name: parameter.requires_grad for name, parameter in STDiT3(SMALL).named_parameters()}
    trainable["rope.freqs"] = False  # a parameter there, and a buffer here
    assert trainable == recording["stdit3"]["fresh_requires_grad"]


def test_names_and_shapes_of_the_published_model(recording: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build_dit("stdit3-xl/2")
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == recording["names"]["stdit3_xl_2"]["shapes"]
