"""`open-sora-v1.2` with small random weights: chunks, chance, normalization, names, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.vae import describe_vae, load_vae
from models.vae.description import Asked
from models.vae.interface import per_channel
from models.vae.kl import FrameAutoencoder
from models.vae.open_sora import BETWEEN, SDXL, OpenSoraVAE
from models.vae.temporal import CausalConv3d, TemporalConfig, TemporalVAE, channels_to_frames

NAME = "open-sora-v1.2"
SPATIAL = replace(SDXL, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2)
TEMPORAL = TemporalConfig(filters=4, num_res_blocks=1, num_groups=2)
SHIFT, SCALE = (-0.1, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)
CONFIG: dict[str, Any] = {  # as it is published, and the sizes of a small one
    "architectures": ["VideoAutoencoderPipeline"],
    "model_type": "VideoAutoencoderPipeline",
    "micro_frame_size": 17,
    "shift": SHIFT,
    "scale": SCALE,
    "vae_2d": {"type": "VideoAutoencoderKL", "subfolder": "vae", "micro_batch_size": 4},
    "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None},
    "spatial": asdict(SPATIAL),
    "temporal": asdict(TEMPORAL),
}
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
ROUNDED: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}  # pixels after another number of rows: norms of few channels


class Parts(nn.Module):
    """Only the names and the weights of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial_vae = FrameAutoencoder(SPATIAL)
        self.temporal_vae = TemporalVAE(TEMPORAL)


def publish(folder: Path, **settings: Any) -> Path:
    """A small VAE with random weights, in `folder` as it would be on the hub; settings of None are left out."""
    torch.manual_seed(0)
    values = {"shift": SHIFT, "scale": SCALE}
    numbers = {name: torch.tensor(value)[None, :, None, None, None] for name, value in values.items()}
    save_file({**Parts().state_dict(), **numbers}, folder / "model.safetensors")
    config = {name: value for name, value in {**CONFIG, **settings}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, **asked: Any) -> OpenSoraVAE:
    vae = load_vae(NAME, folder, **asked)
    assert isinstance(vae, OpenSoraVAE)
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def vae(folder: Path) -> OpenSoraVAE:
    return load(folder)


# Time


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (3, 1), (4, 1), (5, 2), (17, 5), (18, 6), (20, 6), (34, 10)])
def test_any_number_of_frames_comes_back(vae: OpenSoraVAE, frames: int, latents: int) -> None:
    pixels = noise(2, 3, frames, 16, 24)
    found = vae.encode(pixels)
    assert found.shape == (2, *vae.spec.latent_shape(frames, 16, 24)) == (2, 4, latents, 2, 3)
    assert vae.decode(found, frames).shape == pixels.shape


def test_chunks_are_independent(vae: OpenSoraVAE) -> None:
    pixels = noise(1, 3, 34, 16, 16)
    together = vae.encode(pixels)
    torch.testing.assert_close(together[:, :, :5], vae.encode(pixels[:, :, :17]), **CLOSE)
    torch.testing.assert_close(together[:, :, 5:], vae.encode(pixels[:, :, 17:]), **CLOSE)
    torch.testing.assert_close(vae.decode(together, 34)[:, :, 17:], vae.decode(together[:, :, 5:], 17), **ROUNDED)


def test_a_chunk_is_one_unit(vae: OpenSoraVAE) -> None:
    pixels = noise(1, 3, 17, 16, 16)
    changed = pixels.clone()
    changed[:, :, 16] = 1  # the last frame: no convolution of an earlier latent sees it, but the norms do
    difference = (vae.encode(pixels) - vae.encode(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert (difference > 1e-5).all()


def test_convolutions_look_back_only(vae: OpenSoraVAE) -> None:
    for module in vae.temporal_vae.modules():  # with the norms gone, whatever still looks ahead is a convolution
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    frames = noise(1, 4, 20, 3, 3)
    for late in range(20):
        changed = frames.clone()
        changed[:, :, late] += 1
        same = vae.temporal_vae.encode(frames)[0] == vae.temporal_vae.encode(changed)[0]
        assert same[:, :, : late // 4].all() and not same[:, :, late // 4].any()


@pytest.mark.parametrize(("stride", "expected"), [(1, [9, 18, 27, 27]), (2, [18, 27])])
def test_zeros_stand_before_the_first_frame(stride: int, expected: list[int]) -> None:
    conv = CausalConv3d(1, 1, 3, stride=stride, bias=False)
    nn.init.ones_(conv.conv.weight)  # so that it counts what it sees: nine ones of a frame, or of zeros
    assert conv(torch.ones(1, 1, 4, 3, 3))[0, 0, :, 1, 1].tolist() == expected


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_zeros_of_the_2d_latent_fill_up_in_front(vae: OpenSoraVAE, frames: int) -> None:
    latents = noise(2, 4, frames, 3, 5)
    filled = torch.cat([torch.zeros(2, 4, -frames % 4, 3, 5), latents], dim=2)
    for one, other in zip(vae.temporal_vae.encode(latents), vae.temporal_vae.encode(filled), strict=True):
        assert torch.equal(one, other)
    whole = vae.temporal_vae.decode(latents[:, :, :1], 4)
    assert torch.equal(vae.temporal_vae.decode(latents[:, :, :1], 3), whole[:, :, 1:])


def test_pairs_of_channels_become_frames() -> None:
    channels = torch.stack([torch.full((3, 1, 1), 10.0 * channel) for channel in range(4)])  # (4, t, h, w)
    frames = channels_to_frames((channels + torch.arange(3.0)[:, None, None])[None])  # channel 2 of frame 1 is 21
    assert frames[0, :, :, 0, 0].tolist() == [[0, 10, 1, 11, 2, 12], [20, 30, 21, 31, 22, 32]]


def test_the_parts_stand_in_this_order_with_the_factor_between_them(vae: OpenSoraVAE) -> None:
    pixels = noise(1, 3, 17, 16, 16)
    frames, _ = vae.spatial_vae.encode(pixels, vae.memory)
    mean, logvar = vae.temporal_vae.encode(frames * 0.18215)
    found, std = vae.raw_moments(pixels)
    assert torch.equal(found, mean) and torch.equal(std, (0.5 * logvar).exp())
    frames = vae.temporal_vae.decode(mean, 17) / 0.18215
    torch.testing.assert_close(vae.raw_decode(mean, 17), vae.spatial_vae.decode(frames, vae.memory), **CLOSE)
    assert BETWEEN == 0.18215 and vae.spec.scaling_factor == 1


# Chance


def test_a_sample_depends_on_its_generator_and_pixels_alone(vae: OpenSoraVAE) -> None:
    pixels = noise(2, 3, 37, 16, 16)
    both = vae.encode(pixels, seeded(1, 2))
    torch.testing.assert_close(vae.encode(pixels[1:], seeded(2)), both[1:], **CLOSE)
    assert not torch.allclose(vae.encode(pixels[1:], seeded(3)), both[1:], atol=1e-2)
    vae.memory_bytes = 1  # each chunk by itself, each frame by itself
    torch.testing.assert_close(vae.encode(pixels, seeded(1, 2)), both, **CLOSE)


def test_noise_is_drawn_of_the_frames_and_then_of_the_latents(vae: OpenSoraVAE) -> None:
    pixels, spec = noise(1, 3, 17, 16, 24), vae.spec
    (generator,) = seeded(1)
    spatial, temporal = (torch.randn(1, *shape, generator=generator) for shape in ((4, 17, 2, 3), (4, 5, 2, 3)))
    mean, std = vae.spatial_vae.encode(pixels, vae.memory)
    mean, logvar = vae.temporal_vae.encode((mean + std * spatial) * BETWEEN)
    raw = mean + (0.5 * logvar).exp() * temporal
    torch.testing.assert_close(vae.sample_with(pixels, spatial, temporal), raw, **CLOSE)
    expected = (raw - per_channel(raw, spec.shift)) / per_channel(raw, spec.scale)
    torch.testing.assert_close(vae.encode(pixels, seeded(1)), expected, **CLOSE)


def test_the_moments_do_not_depend_on_chance(vae: OpenSoraVAE) -> None:
    pixels = noise(1, 3, 5, 16, 16)
    one, other = vae.moments(pixels), vae.moments(pixels)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


# Normalization, memory, precision


def test_latents_are_normalized_by_the_files_shift_and_scale(vae: OpenSoraVAE) -> None:
    pixels = noise(1, 3, 17, 16, 16)
    assert (vae.spec.shift, vae.spec.scale) == (SHIFT, SCALE)
    raw, raw_std = vae.raw_moments(pixels)
    mean, std = vae.moments(pixels)
    shift, scale = torch.tensor(SHIFT)[:, None, None, None], torch.tensor(SCALE)[:, None, None, None]
    torch.testing.assert_close(mean, (raw - shift) / scale, **CLOSE)
    torch.testing.assert_close(std, raw_std / scale, **CLOSE)
    torch.testing.assert_close(vae.decode(mean, 17), vae.raw_decode(raw, 17), **CLOSE)


def test_memory_changes_rounding_alone(vae: OpenSoraVAE) -> None:
    pixels = noise(2, 3, 34, 16, 16)
    latents, seen = vae.encode(pixels), []
    decoded = vae.decode(latents, 34)
    for part in (vae.temporal_vae.encoder, vae.temporal_vae.decoder):
        part.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    vae.memory_bytes = 2 * vae.bytes_per_pixel * 17 * 16 * 16  # of two chunks
    torch.testing.assert_close(vae.encode(pixels), latents, **CLOSE)
    torch.testing.assert_close(vae.decode(latents, 34), decoded, **ROUNDED)
    assert seen == [2, 2] * 2


def test_bf16_is_close_and_what_comes_out_is_float32(folder: Path, vae: OpenSoraVAE) -> None:
    rounded = load(folder, dtype="bfloat16")
    assert {tensor.dtype for tensor in rounded.parameters()} == {torch.bfloat16}
    assert rounded.bytes_per_pixel < vae.bytes_per_pixel
    pixels, latents = noise(1, 3, 17, 32, 32), noise(1, 4, 5, 4, 4)
    for one, other in zip(
        (*vae.moments(pixels), vae.encode(pixels, seeded(1)), vae.decode(latents, 17)),
        (*rounded.moments(pixels), rounded.encode(pixels, seeded(1)), rounded.decode(latents, 17)),
    ):
        assert other.dtype == torch.float32 and other.isfinite().all()
        assert 0 < (one - other).norm() < 0.1 * one.norm()


# The checkpoint


def test_the_loaded_vae_is_ready_to_use(folder: Path) -> None:
    vae = describe_vae(NAME, folder).load()
    tensors = [*vae.parameters(), *vae.buffers()]
    assert not vae.training and not any(tensor.requires_grad or tensor.is_meta for tensor in tensors)
    called = {id(module) for module in vae.modules_to_compile()}
    for module in vae.modules_to_compile():
        module.register_forward_hook(lambda module, inputs, out: called.discard(id(module)))
    vae.decode(vae.encode(noise(1, 3, 1, 8, 8)), 1)
    assert not called


def test_every_weight_is_the_files(folder: Path, vae: OpenSoraVAE) -> None:
    tensors = load_file(folder / "model.safetensors")
    state = vae.state_dict()
    assert state.keys() == tensors.keys() - {"shift", "scale"}
    assert all(torch.equal(value, tensors[name]) for name, value in state.items())


def test_the_published_model_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        parts = FrameAutoencoder(SDXL), TemporalVAE(TemporalConfig())
    found = [(len(part.state_dict()), sum(one.numel() for one in part.parameters())) for part in parts]
    assert found == [(248, 83_653_863), (267, 309_687_144)]
    assert {part.eps for part in parts[0].modules() if isinstance(part, nn.GroupNorm)} == {1e-6}
    assert {part.eps for part in parts[1].modules() if isinstance(part, nn.GroupNorm)} == {1e-5}


def test_without_a_config_it_has_the_published_sizes(tmp_path: Path) -> None:
    publish(tmp_path)
    small = describe_vae(NAME, tmp_path).spec
    (tmp_path / "config.json").unlink()
    published = describe_vae(NAME, tmp_path).spec
    assert published.config_sha256 != small.config_sha256
    assert (published.stride, published.chunk_frames, published.channels) == ((4, 8, 8), 17, 4)
    with pytest.raises(ValueError, match="missing.*mis-shaped"):
        load_vae(NAME, tmp_path)


def test_where_the_numbers_come_from_is_said(tmp_path: Path) -> None:
    publish(tmp_path, micro_frame_size=None)
    origins = describe_vae(NAME, tmp_path).origins
    assert origins == {
        "scaling_factor": "none of its own; 0.18215 between its parts, as trained",
        "shift": "model.safetensors",
        "scale": "model.safetensors",
        "chunk_frames": "as it was trained",
    }
    publish(tmp_path, scale=[1.0] * 4, micro_frame_size=33)
    found = describe_vae(NAME, tmp_path)
    assert found.spec.chunk_frames == 33 and found.spec.scale == SCALE
    assert found.origins["chunk_frames"] == "config.json: micro_frame_size"
    assert found.origins["scale"] == "model.safetensors, where config.json has [1.0, 1.0, 1.0, 1.0]"
    found = describe_vae(NAME, tmp_path, Asked(chunk_frames=17, shift=(0.0,) * 4))
    assert found.spec.chunk_frames == 17 and found.spec.shift == (0, 0, 0, 0)
    assert found.origins["chunk_frames"] == "set by the run; config.json: micro_frame_size: 33"
    assert found.origins["shift"].startswith("set by the run; model.safetensors")


# What is refused


@pytest.mark.parametrize("frames", [16, 18])
def test_sixteen_frames_are_no_chunk(tmp_path: Path, frames: int) -> None:
    publish(tmp_path)
    with pytest.raises(ValueError, match=f"{frames} frames do not fit {NAME}"):
        load_vae(NAME, tmp_path, chunk_frames=frames)
    publish(tmp_path, micro_frame_size=frames)
    with pytest.raises(ValueError, match=f"{frames} frames do not fit {NAME}"):
        load_vae(NAME, tmp_path)


def test_a_frame_that_is_no_whole_number_of_latents_is_refused(vae: OpenSoraVAE) -> None:
    with pytest.raises(ValueError, match="width 44 is not a multiple of 8"):
        vae.encode(noise(1, 3, 17, 32, 44))


def test_a_path_is_needed_and_an_argument_is_not(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"{NAME} needs its weights; .*hpcai-tech/OpenSora-VAE-v1.2"):
        load_vae(NAME)
    with pytest.raises(ValueError, match=f"{NAME} takes no argument"):
        load_vae(f"{NAME}:17", folder)


def test_a_hub_that_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing: no such folder here.*download it and give its folder"):
        load_vae(NAME, "nobody/nothing")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temporal_vae.quant_conv.conv.bias": None}, r"1 missing \(temporal_vae\.quant_conv\.conv\.bias\)"),
        ({"discriminator.bias": torch.ones(1)}, r"1 unexpected \(discriminator\.bias\)"),
        ({"temporal_vae.quant_conv.conv.bias": torch.ones(4)}, r"1 mis-shaped .*quant_conv\.conv\.bias \[4\] instead"),
        ({"shift": None}, r"shift: found none, wanted \[1, 4, 1, 1, 1\]"),
        ({"scale": torch.ones(1, 3, 1, 1, 1)}, r"scale: found \[1, 3, 1, 1, 1\], wanted \[1, 4, 1, 1, 1\]"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change: dict[str, Tensor | None], reason: str) -> None:
    path = publish(tmp_path) / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=reason):
        load_vae(NAME, tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "AutoencoderKL"}, "of a AutoencoderKL, .* has a VideoAutoencoderPipeline"),
        ({"vae_temporal": {"type": "VAE_Temporal_XL"}}, "of a VAE_Temporal_XL, .* has a VAE_Temporal_SD"),
        ({"temporal": {"widths": [4]}}, "temporal: no setting is called widths; there are: channels, filters"),
        ({"temporal": {"channel_multipliers": [1, 2]}}, "2 channel_multipliers and 3 temporal_downsample"),
        ({"temporal": {"channels": 8}}, "4 channels in space, 8 in time"),
    ],
)
def test_the_config_of_something_else_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    publish(tmp_path, **settings)
    with pytest.raises(ValueError, match=reason):
        load_vae(NAME, tmp_path)


def test_pickled_and_torn_files_are_refused(tmp_path: Path) -> None:
    path = publish(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="may have been cut off: fetch it again"):
        load_vae(NAME, tmp_path)
    torch.save({"shift": torch.ones(4)}, path)
    with pytest.raises(ValueError, match="pickled checkpoints are refused"):
        load_vae(NAME, tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found config\.json, pytorch_model\.bin; wanted model\.safetensors"):
        load_vae(NAME, tmp_path)
