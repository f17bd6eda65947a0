"""`sd` and `pixart`: diffusers' own numbers, frame by frame, from folders as diffusers writes them."""

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.vae import describe_vae, load_vae
from models.vae.description import Asked
from models.vae.kl import IDLE, NORMALIZING, FrameVAE, KLConfig

SMALL: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
}
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = ("sd", "pixart")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def publish(folder: Path, **settings: Any) -> AutoencoderKL:
    """A small VAE with random weights, in `folder` as it would be on the hub."""
    torch.manual_seed(0)
    module = AutoencoderKL(**{**SMALL, **settings})
    module.save_pretrained(folder, safe_serialization=True)
    return module.eval().requires_grad_(False)


def edit(folder: Path, **settings: Any) -> None:
    """Change settings of a folder's config.json; those that become None are taken out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def load(family: str, folder: Path, **asked: Any) -> FrameVAE:
    vae = load_vae(family, folder, **asked)
    assert isinstance(vae, FrameVAE)
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    return folder


# The numbers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}], ids=["with-quant", "without"]
)
def test_a_video_is_its_frames_as_diffusers_encodes_and_decodes_them(
    tmp_path: Path, family: str, settings: dict[str, bool]
) -> None:
    theirs = publish(tmp_path, scaling_factor=0.7, **settings)
    ours, pixels = load(family, tmp_path), noise(2, 3, 3, 16, 24)
    mean, std = ours.moments(pixels)
    latents = noise(2, 4, 3, 2, 3, seed=1)
    decoded = ours.decode(latents, 3)
    assert ours.spec.latent_shape(3, 16, 24) == (4, 3, 2, 3)
    for frame in range(3):
        posterior = theirs.encode(pixels[:, :, frame]).latent_dist  # pyright: ignore
        torch.testing.assert_close(mean[:, :, frame], posterior.mean * 0.7, **CLOSE)
        torch.testing.assert_close(std[:, :, frame], posterior.std * 0.7, **CLOSE)
        expected = theirs.decode(latents[:, :, frame] / 0.7).sample  # pyright: ignore
        torch.testing.assert_close(decoded[:, :, frame], expected, **CLOSE)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_level_but_the_last_halves_a_frame(tmp_path: Path, levels: int) -> None:
    types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    publish(tmp_path, block_out_channels=(4,) * levels, **types)
    vae, stride = load("sd", tmp_path), 2 ** (levels - 1)
    assert vae.spec.stride == (1, stride, stride)
    latents = vae.encode(noise(1, 3, 2, 8, 16))
    assert latents.shape == (1, 4, 2, 8 // stride, 16 // stride)
    assert vae.decode(latents, 2).shape == (1, 3, 2, 8, 16)


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 18])
def test_there_are_as_many_latents_as_frames(folder: Path, frames: int) -> None:
    vae = load("sd", folder)
    latents = vae.encode(noise(1, 3, frames, 8, 16))
    assert latents.shape == (1, 4, frames, 1, 2)
    assert vae.decode(latents, frames).shape == (1, 3, frames, 8, 16)


def test_how_many_frames_go_together_is_a_matter_of_memory_and_changes_rounding_alone(folder: Path) -> None:
    vae, pixels, batches = load("sd", folder), noise(2, 3, 5, 16, 16), []
    for part in (vae.kl.module.encoder, vae.kl.module.decoder):
        part.register_forward_hook(lambda module, inputs, out: batches.append(len(inputs[0])))
    together = vae.moments(pixels)
    decoded = vae.decode(together[0], 5)
    assert batches == [10, 10]
    batches.clear()
    vae.memory_bytes = 4 * 16 * 16 * vae.kl.config.maps_per_pixel * 4  # of four frames, in float32
    in_fours = vae.moments(pixels)
    torch.testing.assert_close(vae.decode(together[0], 5), decoded, **CLOSE)
    assert batches == [4, 4, 2] * 2
    vae.memory_bytes = 1
    for one, two, three in zip(together, in_fours, vae.moments(pixels)):
        torch.testing.assert_close(one, two, **CLOSE)
        torch.testing.assert_close(one, three, **CLOSE)


def test_bf16_is_close_and_what_comes_out_is_float32(folder: Path) -> None:
    exact, rounded = load("sd", folder), load("sd", folder, dtype="bfloat16")
    assert rounded.spec.dtype == "bfloat16" and {tensor.dtype for tensor in rounded.parameters()} == {torch.bfloat16}
    pixels = noise(1, 3, 3, 32, 32)
    for one, other in zip(
        (*exact.moments(pixels), exact.encode(pixels, seeded(1)), exact.decode(exact.encode(pixels), 3)),
        (*rounded.moments(pixels), rounded.encode(pixels, seeded(1)), rounded.decode(exact.encode(pixels), 3)),
    ):
        assert other.dtype == torch.float32 and other.isfinite().all()
        assert 0 < (one - other).norm() < 0.05 * one.norm()


def test_a_sample_depends_on_its_own_generator_and_not_on_its_batch(folder: Path) -> None:
    vae, pixels = load("sd", folder), noise(2, 3, 20, 8, 8)
    both = vae.encode(pixels, seeded(1, 2))
    torch.testing.assert_close(vae.encode(pixels[1:], seeded(2)), both[1:], **CLOSE)
    mean, std = vae.moments(pixels)
    assert 0.8 < ((both - mean) / std).std() < 1.2


def test_the_loaded_vae_is_ready_to_use(folder: Path) -> None:
    vae = describe_vae("sd", folder).load()
    assert isinstance(vae, FrameVAE)
    tensors = [*vae.parameters(), *vae.buffers()]
    assert not vae.training and not any(tensor.requires_grad or tensor.is_meta for tensor in tensors)
    assert vae.modules_to_compile() == [vae.kl.module.encoder, vae.kl.module.decoder]


# Where it is


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_of_a_pipeline_has_it_in_vae(tmp_path: Path, folder: Path, family: str) -> None:
    publish(tmp_path / "vae")
    pixels = noise(1, 3, 1, 8, 8)
    expected = load(family, folder).encode(pixels)
    assert torch.equal(load(family, tmp_path).encode(pixels), expected)
    assert torch.equal(load(family, tmp_path / "vae" / WEIGHTS).encode(pixels), expected)
    assert describe_vae(family, tmp_path).spec == describe_vae(family, folder).spec


def test_files_with_the_attention_names_of_old_load_too(tmp_path: Path, folder: Path) -> None:
    publish(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        for part in ("encoder", "decoder"):
            for kind in ("weight", "bias"):
                prefix = f"{part}.mid_block.attentions.0"
                tensors[f"{prefix}.{name}.{kind}"] = tensors.pop(f"{prefix}.{new}.{kind}")
    save_file(tensors, tmp_path / WEIGHTS)
    pixels = noise(1, 3, 1, 16, 16)
    assert torch.equal(load("sd", tmp_path).encode(pixels), load("sd", folder).encode(pixels))


# Normalization


@pytest.mark.parametrize(("family", "usual"), [("sd", 0.18215), ("pixart", 0.13025)])
def test_the_scaling_factor_is_the_configs_or_else_the_familys(tmp_path: Path, family: str, usual: float) -> None:
    publish(tmp_path, scaling_factor=usual)
    found = describe_vae(family, tmp_path)
    assert found.spec.scaling_factor == usual and found.origins["scaling_factor"] == "config.json"

    edit(tmp_path, scaling_factor=0.5)
    found = describe_vae(family, tmp_path)
    assert found.spec.scaling_factor == 0.5
    assert found.origins["scaling_factor"] == f"config.json, where {family} has {usual}"

    edit(tmp_path, scaling_factor=None)
    found = describe_vae(family, tmp_path)
    assert found.spec.scaling_factor == usual
    assert found.origins["scaling_factor"] == f"that of {family}; none in config.json"

    found = describe_vae(family, tmp_path, Asked(scaling_factor=2.0))
    assert found.spec.scaling_factor == 2.0
    assert found.origins["scaling_factor"].startswith("set by the run")


@pytest.mark.parametrize("asked", [None, 2.0])
def test_a_shift_factor_comes_off_before_the_scaling_factor(tmp_path: Path, asked: float | None) -> None:
    theirs = publish(tmp_path, scaling_factor=0.36, shift_factor=0.12)
    vae, pixels = describe_vae("sd", tmp_path, Asked(scaling_factor=asked)).load(), noise(1, 3, 1, 16, 16)
    factor = asked or 0.36
    raw = theirs.encode(pixels[:, :, 0]).latent_dist  # pyright: ignore
    mean, std = vae.moments(pixels)
    torch.testing.assert_close(mean[:, :, 0], (raw.mean - 0.12) * factor, **CLOSE)
    torch.testing.assert_close(std[:, :, 0], raw.std * factor, **CLOSE)  # a std has no shift
    torch.testing.assert_close(vae.decode(mean, 1)[:, :, 0], theirs.decode(raw.mean).sample, **CLOSE)  # pyright: ignore


def test_statistics_of_every_channel_normalize_it(tmp_path: Path) -> None:
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 4.0, 0.5]
    theirs = publish(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    pixels = noise(1, 3, 1, 16, 16)
    raw = theirs.encode(pixels[:, :, 0]).latent_dist.mean  # pyright: ignore
    expected = (raw - torch.tensor(mean)[:, None, None]) * 0.5 / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(load("sd", tmp_path).encode(pixels)[:, :, 0], expected, **CLOSE)


def test_two_offsets_are_one_too_many(tmp_path: Path) -> None:
    publish(tmp_path, shift_factor=0.1, latents_mean=[0.0] * 4)
    with pytest.raises(ValueError, match="a shift_factor and latents_mean"):
        describe_vae("sd", tmp_path)


# Configs


def test_the_defaults_are_those_of_diffusers() -> None:
    theirs = {name: one.default for name, one in inspect.signature(AutoencoderKL).parameters.items()}
    assert asdict(KLConfig()) == {name: theirs[name] for name in theirs.keys() - NORMALIZING - IDLE}


def test_the_digest_of_a_config_is_that_of_its_arithmetic(tmp_path: Path) -> None:
    publish(tmp_path)
    before = describe_vae("sd", tmp_path).spec
    edit(tmp_path, mid_block_add_attention=None, act_fn=None, _diffusers_version="0.1", sample_size=512)
    edit(tmp_path, force_upcast=False, scaling_factor=0.5)
    assert describe_vae("sd", tmp_path).spec.config_sha256 == before.config_sha256
    assert describe_vae("sd", tmp_path).spec.weights_sha256 == before.weights_sha256
    edit(tmp_path, act_fn="gelu")
    assert describe_vae("sd", tmp_path).spec.config_sha256 != before.config_sha256


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm_type": "spatial"}, "no setting is called norm_type; there are: in_channels,"),
        ({"_class_name": "AutoencoderKLWan"}, "of an AutoencoderKLWan, sd wants an AutoencoderKL"),
        ({"in_channels": 1}, "a VAE of 1 channels in and 3 out"),
        ({"block_out_channels": [8, 16]}, "2 block_out_channels, 4 down_block_types and 4 up_block_types"),
        ({"block_out_channels": 8}, "config.json: .*len"),
    ],
)
def test_the_config_of_something_else_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    publish(tmp_path)
    edit(tmp_path, **settings)
    with pytest.raises(ValueError, match=reason):
        describe_vae("sd", tmp_path)


# What is refused


def test_weights_that_do_not_fit_the_config_are_listed(tmp_path: Path) -> None:
    publish(tmp_path)
    edit(tmp_path, latent_channels=8)
    with pytest.raises(ValueError, match=r"mis-shaped \(.*decoder\.conv_in\.weight \[16, 4, 3, 3\] instead of \[16, 8"):
        load("sd", tmp_path)


def test_missing_and_unexpected_names_are_listed(tmp_path: Path) -> None:
    publish(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["discriminator.weight"] = tensors.pop("quant_conv.bias")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing \(quant_conv\.bias\); 1 unexpected \(discriminator\.weight\)"):
        load("sd", tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    publish(tmp_path).save_pretrained(tmp_path, safe_serialization=False)
    assert describe_vae("sd", tmp_path).spec  # the safetensors beside it go first
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is pickled.*save_pretrained"):
        describe_vae("sd", tmp_path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="may have been cut off: fetch it again"):
        load("sd", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_is_needed_and_an_argument_is_not(folder: Path, family: str) -> None:
    with pytest.raises(ValueError, match=f"{family} needs its weights; give a folder or a hub id"):
        load_vae(family)
    with pytest.raises(ValueError, match=f"{family} takes no argument"):
        load_vae(f"{family}:ema", folder)


def test_a_folder_without_it_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"found readme\.txt; wanted diffusion_pytorch_model\.safetensors"):
        load_vae("sd", tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        load_vae("sd", tmp_path / "nothing")
    publish(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        load_vae("sd", tmp_path)


def test_a_hub_that_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing: no such folder here.*download it and give its folder"):
        load_vae("sd", "nobody/nothing")


def test_a_frame_that_is_no_whole_number_of_latents_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="height 20 is not a multiple of 8"):
        load("sd", folder).encode(noise(1, 3, 1, 20, 16))
