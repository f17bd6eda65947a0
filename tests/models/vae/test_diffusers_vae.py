"""A VAE of diffusers gives the numbers of its pipelines, whole chunks at a time, and is refused where it could not."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.latent_spec import LatentSpec
from models.vae import describe_vae, load_vae
from models.vae.description import Asked
from models.vae.diffusers_classes import CLASSES
from models.vae.diffusers_vae import DiffusersVAE, constructor_defaults

MEAN, STD = [0.1, -0.2, 0.3, 0.4], [0.5, 1.5, 2.0, 0.7]
LEVELS = [8, 8, 8, 8]
TINY: dict[str, dict[str, Any]] = {
    "AutoencoderKLWan": {
        **{"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        **{"latents_mean": MEAN, "latents_std": STD},
    },
    "AutoencoderKLHunyuanVideo": {
        **{"block_out_channels": LEVELS, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    },
    "AutoencoderKLCogVideoX": {
        **{"block_out_channels": LEVELS, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    },
    "AutoencoderKLLTXVideo": {
        **{"block_out_channels": LEVELS, "decoder_block_out_channels": LEVELS, "latent_channels": 4},
        **{"layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "scaling_factor": 0.7},
    },
    "AutoencoderKLMochi": {
        **{"encoder_block_out_channels": [32] * 4, "decoder_block_out_channels": [32] * 4, "layers_per_block": [1] * 5},
        **{"latent_channels": 4, "latents_mean": MEAN, "latents_std": STD, "scaling_factor": 1.3},
    },
}
WAN, HUNYUAN, COGVIDEOX, LTX, MOCHI = NAMES = list(TINY)
STRIDES = dict(zip(NAMES, [(4, 8, 8), (4, 8, 8), (4, 8, 8), (8, 32, 32), (6, 8, 8)]))
# A setting that another network has.
ANOTHER: dict[str, dict[str, Any]] = {
    WAN: {"num_res_blocks": 2},
    HUNYUAN: {"norm_num_groups": 2},
    COGVIDEOX: {"norm_eps": 1e-5},
    LTX: {"decoder_causal": True},
    MOCHI: {"act_fn": "gelu"},
}
LTX_095: dict[str, Any] = {  # its layout since version 0.9.5
    "block_out_channels": [8, 8, 16, 32, 32],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_block_out_channels": [8, 16, 32],
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "decoder_layers_per_block": [1] * 4,
    "upsample_residual": [True] * 3,
    "upsample_factor": [2] * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}

# What the pipelines do to raw latents, and undo before decoding: mean m, standard deviation s, scaling factor f.
Formula = Callable[[Tensor, Tensor, Tensor, float], Tensor]
NORMALIZED: dict[str, Formula] = {
    WAN: lambda raw, m, s, f: (raw - m) * (1 / s),
    HUNYUAN: lambda raw, m, s, f: raw * f,
    COGVIDEOX: lambda raw, m, s, f: f * raw,
    LTX: lambda raw, m, s, f: (raw - m) * f / s,
    MOCHI: lambda raw, m, s, f: (raw - m) * f / s,
}
DENORMALIZED: dict[str, Formula] = {
    WAN: lambda latents, m, s, f: latents / (1 / s) + m,
    HUNYUAN: lambda latents, m, s, f: latents / f,
    COGVIDEOX: lambda latents, m, s, f: 1 / f * latents,
    LTX: lambda latents, m, s, f: latents * s / f + m,
    MOCHI: lambda latents, m, s, f: latents * s / f + m,
}
NORMALIZED_STD: dict[str, Formula] = {
    WAN: lambda std, m, s, f: std / s,
    HUNYUAN: lambda std, m, s, f: std * f,
    COGVIDEOX: lambda std, m, s, f: std * f,
    LTX: lambda std, m, s, f: std * f / s,
    MOCHI: lambda std, m, s, f: std * f / s,
}


Published = Callable[[str], Path]  # the name of a class -> the folder that diffusers saved one of it to
Loaded = Callable[[str], DiffusersVAE]
Edited = Callable[..., Path]  # the name of a class and changes -> a folder of its own, with those


def original(name: str, **settings: Any) -> Any:
    """diffusers' own module, with the tiny settings and random weights."""
    import diffusers

    torch.manual_seed(0)
    module = getattr(diffusers, name)(**TINY[name] | settings).eval().requires_grad_(False)
    module.use_framewise_encoding = module.use_framewise_decoding = False
    if name == LTX:
        module.latents_mean.copy_(torch.tensor(MEAN))
        module.latents_std.copy_(torch.tensor(STD))
    return module


def normalize(formulas: dict[str, Formula], name: str, tensor: Tensor, module: Any) -> Tensor:
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1 1") for values in (MEAN, STD))
    return formulas[name](tensor, mean, std, module.config.get("scaling_factor", 1.0))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Each class is saved once."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("published") / name
        original(name).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def loaded(published: Published) -> Loaded:
    """Each class is loaded once."""
    return cache(lambda name: load(published(name)))


@pytest.fixture
def edited(published: Published, tmp_path: Path) -> Edited:
    """A copy of a published folder whose config has other settings, or is `without` some."""

    def edit(name: str, without: Sequence[str] = (), **settings: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(published(name), folder)
        config = json.loads((folder / "config.json").read_text()) | settings
        kept = {key: value for key, value in config.items() if key not in without}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return edit


def load(folder: Path, **wishes: Any) -> DiffusersVAE:
    vae = load_vae(f"diffusers:{folder}", **wishes)
    assert isinstance(vae, DiffusersVAE)
    return vae


def noise(spec: LatentSpec, frames: int, batch: int = 1) -> Tensor:
    """Random pixels of 2 by 3 latents."""
    _, height, width = spec.stride
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, 2 * height, 3 * width, generator=generator) * 2 - 1


# The numbers of the pipelines


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_that_of_diffusers_normalized_as_its_pipeline_does(loaded: Loaded, name: str):
    vae, module = loaded(name), original(name)
    pixels = noise(vae.spec, vae.spec.chunk_frames, batch=2)
    raw = module.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(vae.encode(pixels), normalize(NORMALIZED, name, raw, module), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_std_is_scaled_and_not_shifted(loaded: Loaded, name: str):
    vae, module = loaded(name), original(name)
    pixels = noise(vae.spec, vae.spec.chunk_frames)
    raw = module.encode(pixels).latent_dist.std
    assert raw.std() > 0.01
    torch.testing.assert_close(vae.moments(pixels)[1], normalize(NORMALIZED_STD, name, raw, module), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_what_diffusers_decodes_denormalized_latents_to(loaded: Loaded, name: str):
    vae, module = loaded(name), original(name)
    shape = vae.spec.latent_shape(vae.spec.chunk_frames, *(2 * stride for stride in vae.spec.stride[1:]))
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    expected = module.decode(normalize(DENORMALIZED, name, latents, module)).sample
    torch.testing.assert_close(vae.decode(latents, vae.spec.chunk_frames), expected, **CLOSE)


@pytest.mark.parametrize("name", [WAN, HUNYUAN, COGVIDEOX, LTX])
def test_bfloat16_is_near_and_gives_float32(published: Published, loaded: Loaded, name: str):
    exact, half = loaded(name), load(published(name), dtype="bfloat16")
    assert half.spec.dtype == "bfloat16"
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    pixels = noise(exact.spec, 17)
    latents = exact.encode(pixels)
    found, pixels_found = half.encode(pixels), half.decode(latents, 17)
    assert found.dtype == pixels_found.dtype == torch.float32
    assert 0 < (found - latents).abs().max() < 0.1 * latents.std()


def test_mochi_is_computed_in_float32_whatever_is_asked(published: Published, loaded: Loaded):
    """Pixels that bfloat16 has rounded are other pixels to it: it sees them through a sine 128 waves fine."""
    exact, half = loaded(MOCHI), load(published(MOCHI), dtype="bfloat16")
    assert half.spec == exact.spec and half.spec.dtype == "float32"
    assert "dtype" in describe_vae(f"diffusers:{published(MOCHI)}").origins
    pixels = noise(exact.spec, 19)
    latents = exact.encode(pixels)
    assert torch.equal(half.encode(pixels), latents)
    assert (exact.encode(pixels.bfloat16().float()) - latents).std() > 0.3 * latents.std()


# Frames


@pytest.mark.parametrize(
    ("name", "frames", "latents"), [(WAN, 17, 5), (HUNYUAN, 17, 5), (COGVIDEOX, 17, 5), (LTX, 17, 3), (MOCHI, 19, 4)]
)
def test_two_chunks_are_encoded_and_decoded_independently(loaded: Loaded, name: str, frames: int, latents: int):
    vae = loaded(name)
    assert (vae.spec.stride, vae.spec.chunk_frames, vae.spec.chunk_latents) == (STRIDES[name], frames, latents)
    pixels = noise(vae.spec, 2 * frames)
    together = vae.encode(pixels)
    assert together.shape == (1, 4, 2 * latents, 2, 3)
    torch.testing.assert_close(together[:, :, latents:], vae.encode(pixels[:, :, frames:]), **CLOSE)
    decoded = vae.decode(together, 2 * frames)
    assert decoded.shape == pixels.shape
    alone = vae.decode(together[:, :, latents:], frames)
    torch.testing.assert_close(decoded[:, :, frames:], alone, atol=1e-4, rtol=0)  # a batch of two rounds otherwise


@pytest.mark.parametrize("name", NAMES)
def test_images_and_every_shorter_chunk_that_fits_come_back(loaded: Loaded, name: str):
    vae = loaded(name)
    step = STRIDES[name][0] * (2 if name == COGVIDEOX else 1)
    for frames in range(1, vae.spec.chunk_frames, step):
        pixels = noise(vae.spec, frames)
        latents = vae.encode(pixels)
        assert latents.shape[2] == 1 + (frames - 1) // STRIDES[name][0]
        assert vae.decode(latents, frames).shape == pixels.shape


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_counts(loaded: Loaded, name: str):
    vae = loaded(name)
    pixels = noise(vae.spec, vae.spec.chunk_frames).requires_grad_()
    vae.encode(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().amax(dim=(0, 1, 3, 4)).min() > 1e-5


@pytest.mark.parametrize("frames", [5, 13, 17 + 5, 34 + 13])
def test_cogvideox_is_not_given_frames_that_it_could_not_decode(loaded: Loaded, frames: int):
    """Of an even number of latents it makes frames for all alike, though the first is of a lone frame."""
    vae = loaded(COGVIDEOX)
    last = frames % 17
    assert original(COGVIDEOX).decode(torch.zeros(1, 4, 1 + last // 4, 2, 3)).sample.shape[2] == last + 3
    with pytest.raises(ValueError, match=rf"{frames} frames: {last} are left .* takes 1\+8n, "):
        vae.encode(noise(vae.spec, frames))
    with pytest.raises(ValueError, match=rf"{frames} frames: {last} are left"):
        vae.decode(torch.zeros(1, 4, vae.spec.latent_frames(frames), 2, 3), frames)


@pytest.mark.parametrize(("name", "frames"), [(WAN, 33), (WAN, 81), (COGVIDEOX, 49), (LTX, 9), (MOCHI, 31)])
def test_chunks_may_be_longer_or_shorter(published: Published, name: str, frames: int):
    description = describe_vae(f"diffusers:{published(name)}", asked=Asked(chunk_frames=frames))
    assert description.spec.chunk_latents == 1 + (frames - 1) // STRIDES[name][0]


def test_a_longer_chunk_is_encoded_as_one(published: Published):
    vae, module = load(published(HUNYUAN), chunk_frames=33), original(HUNYUAN)
    pixels = noise(vae.spec, 33)
    raw = module.quant_conv(module.encoder(pixels))[:, :4]
    torch.testing.assert_close(vae.encode(pixels), raw * module.config.scaling_factor, **CLOSE)
    decoded = module.decoder(module.post_quant_conv(raw))
    torch.testing.assert_close(vae.decode(raw * module.config.scaling_factor, 33), decoded, **CLOSE)


@pytest.mark.parametrize(
    ("name", "frames"), [(WAN, 16), (WAN, 18), (HUNYUAN, 16), (LTX, 13), (MOCHI, 17), (COGVIDEOX, 18)]
)
def test_chunks_that_its_stride_does_not_divide_are_refused(published: Published, name: str, frames: int):
    with pytest.raises(ValueError, match=rf"{frames} frames do not fit diffusers:{name}: .*1\+{STRIDES[name][0]}n"):
        load(published(name), chunk_frames=frames)


@pytest.mark.parametrize("frames", [5, 13, 21])
def test_chunks_that_cogvideox_could_not_decode_are_refused(published: Published, frames: int):
    with pytest.raises(
        ValueError, match=rf"{frames} frames do not fit .*1\+8n frames.*; use {frames - 4} or {frames + 4}"
    ):
        load(published(COGVIDEOX), chunk_frames=frames)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_its_stride_does_not_divide_are_refused(loaded: Loaded, name: str):
    vae = loaded(name)
    with pytest.raises(ValueError, match=rf"width {STRIDES[name][2] + 4} is not a multiple of {STRIDES[name][2]}"):
        vae.encode(torch.zeros(1, 3, 1, STRIDES[name][1], STRIDES[name][2] + 4))


# What is between calls


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_of_an_earlier_call(loaded: Loaded, name: str):
    vae = loaded(name)
    pixels = noise(vae.spec, vae.spec.chunk_frames)
    first = vae.encode(pixels)
    vae.decode(first, vae.spec.chunk_frames)
    vae.encode(pixels[:, :, :1].neg())
    assert torch.equal(vae.encode(pixels), first)


def test_nothing_is_left_of_a_call_that_failed(loaded: Loaded):
    vae = loaded(WAN)
    pixels = noise(vae.spec, 17)
    latents = vae.encode(pixels)
    frames = vae.decode(latents, 17)
    for layers in (vae.module.encoder, vae.module.decoder):
        calls: list[None] = []

        def fail_late(*_: object, calls: list[None] = calls) -> None:
            calls.append(None)
            if len(calls) == 3:
                raise MemoryError

        hook = layers.register_forward_hook(fail_late)
        with pytest.raises(MemoryError):
            vae.decode(vae.encode(pixels), 17)
        hook.remove()
        assert torch.equal(vae.encode(pixels), latents)
        assert torch.equal(vae.decode(latents, 17), frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_vae_is_ready_to_use(published: Published, name: str):
    vae = describe_vae(f"diffusers:{published(name)}").load()
    assert isinstance(vae, DiffusersVAE)
    assert not any(module.training for module in vae.modules())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert not vae.module.use_tiling and not vae.module.use_slicing
    compiled = vae.modules_to_compile()
    assert compiled == ([] if name in (WAN, COGVIDEOX) else [vae.module.encoder, vae.module.decoder])


# What the folder says


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_names_the_class_and_not_the_place(published: Published, tmp_path: Path, name: str):
    pipeline = tmp_path / "elsewhere"
    shutil.copytree(published(name), pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    here, there = (describe_vae(f"diffusers:{folder}").spec for folder in (published(name), pipeline))
    assert here == there and here.vae == f"diffusers:{name}"
    assert here.fingerprint() == there.fingerprint() == describe_vae("diffusers", published(name)).spec.fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_one_weight_changes_the_fingerprint(edited: Edited, name: str):
    folder = edited(name)
    before = describe_vae(f"diffusers:{folder}").spec
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    weight = next(iter(tensors.values()))
    weight[(0,) * weight.ndim] += 1
    save_file(tensors, file)
    after = describe_vae(f"diffusers:{folder}").spec
    assert after.fingerprint() != before.fingerprint()
    assert after.config_sha256 == before.config_sha256


@pytest.mark.parametrize("name", NAMES)
def test_a_default_may_be_spelled_out_or_not(edited: Edited, name: str):
    defaults = constructor_defaults(name)
    silent = [key for key, value in defaults.items() if key not in TINY[name]]
    one, other = describe_vae(f"diffusers:{edited(name)}"), describe_vae(f"diffusers:{edited(name, silent)}")
    assert one.spec == other.spec
    assert one.spec.config_sha256 != describe_vae(f"diffusers:{edited(name, **ANOTHER[name])}").spec.config_sha256


def test_origins_say_config_default_or_weights(edited: Edited):
    def origins(folder: Path) -> list[str]:
        return [describe_vae(f"diffusers:{folder}").origins[key] for key in ("scaling_factor", "shift", "scale")]

    assert origins(edited(MOCHI)) == ["config.json", "latents_mean, config.json", "latents_std, config.json"]
    assert origins(edited(HUNYUAN, ["scaling_factor"]))[0] == f"default of {HUNYUAN}"
    assert origins(edited(LTX))[1:] == ["latents_mean in the weights", "latents_std in the weights"]


def test_a_class_has_its_own_statistics_where_the_config_has_none(tmp_path: Path):
    """Those of Wan 2.1, as published; its first and last are checked here."""
    original(WAN, z_dim=16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["latents_mean"], config["latents_std"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    description = describe_vae(f"diffusers:{tmp_path}")
    assert (description.spec.shift[0], description.spec.shift[-1]) == (-0.7571, -0.2921)
    assert (description.spec.scale[0], description.spec.scale[-1]) == (2.8184, 1.9160)
    assert description.origins["shift"] == f"latents_mean, default of {WAN}"


def test_the_run_may_set_the_normalization(published: Published):
    asked = Asked(scaling_factor=2.0, scale=(1.0, 2.0, 3.0, 4.0))
    spec = describe_vae(f"diffusers:{published(MOCHI)}", asked=asked).spec
    assert (spec.scaling_factor, spec.scale) == (2.0, asked.scale)
    assert spec.shift == pytest.approx([2 * mean for mean in MEAN])  # still the mean, now as often as the latents
    assert describe_vae(f"diffusers:{published(MOCHI)}", asked=Asked(shift=(1.0,) * 4)).spec.shift == (1.0,) * 4


@pytest.mark.parametrize(
    ("name", "settings", "stride"),
    [
        (WAN, {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True}, (4, 16, 16)),  # as Wan 2.2
        (HUNYUAN, {"spatial_compression_ratio": 4}, (4, 4, 4)),
        (COGVIDEOX, {"temporal_compression_ratio": 2}, (2, 8, 8)),
        (MOCHI, {"temporal_expansions": [1, 2, 2]}, (4, 8, 8)),
    ],
)
def test_the_stride_is_that_of_the_layers(
    tmp_path: Path, name: str, settings: dict[str, Any], stride: tuple[int, int, int]
):
    original(name, **settings).save_pretrained(tmp_path)
    vae = load(tmp_path)
    assert vae.spec.stride == stride
    pixels = noise(vae.spec, vae.spec.chunk_frames)
    assert vae.decode(vae.encode(pixels), vae.spec.chunk_frames).shape == pixels.shape


def test_a_later_ltx_is_decoded_at_timestep_zero(tmp_path: Path):
    module = original(LTX, **LTX_095)
    module.save_pretrained(tmp_path)
    vae = load(tmp_path)
    assert vae.spec.stride == (8, 32, 32)
    latents = torch.randn(2, 4, 3, 1, 2, generator=torch.Generator().manual_seed(3))
    raw = normalize(DENORMALIZED, LTX, latents, module)
    torch.testing.assert_close(vae.decode(latents, 17), module.decode(raw, torch.zeros(2)).sample, **CLOSE)
    assert not torch.allclose(vae.decode(latents, 17), module.decode(raw, torch.ones(2)).sample, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "stride", "width"),
    [(WAN, (4, 8), 96), (HUNYUAN, (4, 8), 128), (COGVIDEOX, (4, 8), 128), (LTX, (8, 32), 8), (MOCHI, (6, 8), 128)],
)
def test_the_defaults_are_the_published_sizes(name: str, stride: tuple[int, int], width: int):
    known, settings = CLASSES[name], constructor_defaults(name)
    assert (known.time_stride(settings), known.space_stride(settings), known.width(settings)) == (*stride, width)


# What is refused


def test_a_folder_is_given_once(published: Published):
    for name, path in (("diffusers", None), (f"diffusers:{published(WAN)}", published(WAN))):
        with pytest.raises(ValueError, match="wants one folder or hub id"):
            load_vae(name, path)


def test_other_classes_are_refused_with_those_that_are_known(edited: Edited):
    with pytest.raises(ValueError, match=rf"AutoencoderKLAllegro, wanted one of {', '.join(NAMES)}$"):
        load(edited(WAN, _class_name="AutoencoderKLAllegro"))
    with pytest.raises(ValueError, match="the class is None, wanted one of"):
        load(edited(WAN, ["_class_name"]))


def test_an_image_vae_is_sent_to_its_families(edited: Edited):
    with pytest.raises(ValueError, match="encodes single frames: load it as sd or pixart"):
        load(edited(WAN, _class_name="AutoencoderKL"))


def test_settings_that_the_class_does_not_have_are_refused(edited: Edited):
    with pytest.raises(ValueError, match="has no setting base_dims, zdim, and would ignore it"):
        load(edited(WAN, base_dims=8, zdim=4, _comment="fine"))


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        (WAN, {"z_dim": 16}, r"latents_mean is 4 numbers for 16 channels \(z_dim\), wanted one number per channel"),
        (WAN, {"latents_std": STD[:3]}, "latents_std is 3 numbers for 4 channels"),
        (WAN, {"latents_mean": None}, "latents_mean is None for 4 channels"),
        (MOCHI, {"latents_std": ["1"] * 4}, r"latents_std is \['1', '1', '1', '1'\] for 4 channels"),
        (MOCHI, {"latents_std": [0.0] * 4}, "must be above 0"),
        (HUNYUAN, {"scaling_factor": None}, "scaling_factor is None, wanted a number"),
        (COGVIDEOX, {"shift_factor": 0.1}, "shift_factor is 0.1, but its pipelines leave it out"),
        (COGVIDEOX, {"latents_mean": MEAN}, "latents_mean is .*, but its pipelines leave it out"),
        (LTX, {"decoder_inject_noise": [False, True, False, False, False]}, "no two decodings agree"),
        (WAN, {"dim_mult": None}, "no AutoencoderKLWan can be built of it"),
        (HUNYUAN, {"temporal_compression_ratio": 3}, "no AutoencoderKLHunyuanVideo can be built of it"),
        (HUNYUAN, {"in_channels": 4}, "encodes and decodes nothing"),
        (LTX, {"patch_size_t": 2}, "encodes and decodes nothing"),
        (
            WAN,
            {"temperal_downsample": [False, False, True]},
            r"latents \(4, 1, 1, 1\), .* promise latents \(4, 2, 1, 1\)",
        ),
        (LTX, {"temporal_compression_ratio": 4}, r"promise latents \(4, 2, 1, 1\)"),
        (LTX, {"decoder_spatio_temporal_scaling": [True, True, False, False]}, r"and of those pixels \(3, 5, 16, 16\)"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(edited: Edited, name: str, settings: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        describe_vae(f"diffusers:{edited(name, **settings)}")


def test_settings_of_other_uses_are_not_refused(published: Published, edited: Edited):
    """`invert_scale_latents` is about the image a video starts from; zero shift is no shift."""
    same = edited(COGVIDEOX, invert_scale_latents=True, sample_height=768, shift_factor=0.0)
    assert describe_vae(f"diffusers:{same}").spec == describe_vae(f"diffusers:{published(COGVIDEOX)}").spec


def test_a_setting_that_wan_2_2_is_published_with_and_the_class_has_lost_is_not_refused(
    published: Published, edited: Edited
):
    outdated = edited(WAN, clip_output=False)
    assert describe_vae(f"diffusers:{outdated}").spec == describe_vae(f"diffusers:{published(WAN)}").spec


def test_statistics_that_the_weights_do_not_have_are_missed(edited: Edited):
    folder = edited(LTX)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "latents_std"}, file)
    with pytest.raises(ValueError, match=r"safetensors: latents_std is None for 4 channels"):
        load(folder)


def test_weights_of_another_shape_are_refused(edited: Edited):
    with pytest.raises(ValueError, match="does not fit AutoencoderKLHunyuanVideo: .* mis-shaped"):
        load(edited(HUNYUAN, block_out_channels=[16] * 4))


def test_weights_that_are_missing_are_named(edited: Edited):
    folder = edited(COGVIDEOX)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "decoder.conv_in.conv.bias"}, file)
    with pytest.raises(ValueError, match=r"1 missing \(decoder\.conv_in\.conv\.bias\)"):
        load(folder)


def test_a_pickle_is_refused_before_it_is_read(edited: Edited):
    folder = edited(WAN)
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), folder / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is not a safetensors file; pickled"):
        describe_vae(f"diffusers:{folder}")


def test_half_a_file_is_refused(edited: Edited):
    folder = edited(WAN)
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="may have been cut off: fetch it again"):
        describe_vae(f"diffusers:{folder}")


def test_a_folder_without_config_or_weights_says_what_it_wants(edited: Edited):
    folder = edited(WAN)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not found; give the folder as it was published"):
        load(folder)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"found model\.safetensors; wanted diffusion_pytorch_model\.safetensors"):
        load(folder)
