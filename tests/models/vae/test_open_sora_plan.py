"""Open-Sora-Plan's VAE: config.json decides what is computed, and its files load whole or not at all."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.vae import describe_vae, load_vae
from models.vae.causal_vae import CausalVAE, CausalVAEConfig
from models.vae.open_sora_plan import SAVED_BY_DIFFUSERS, known_fields

THREE_D = ["ResnetBlock3D"] * 4
V1_0: dict[str, Any] = {
    "_class_name": "CausalVAEModel",
    "_diffusers_version": "0.27.2",
    "attn_resolutions": [],
    "decoder_attention": "AttnBlock3D",
    "decoder_conv_in": "CausalConv3d",
    "decoder_conv_out": "CausalConv3d",
    "decoder_mid_resnet": "ResnetBlock3D",
    "decoder_resnet_blocks": THREE_D,
    "decoder_spatial_upsample": ["", "SpatialUpsample2x", "SpatialUpsample2x", "SpatialUpsample2x"],
    "decoder_temporal_upsample": ["", "", "TimeUpsample2x", "TimeUpsample2x"],
    "double_z": True,
    "dropout": 0.0,
    "embed_dim": 4,
    "encoder_attention": "AttnBlock3D",
    "encoder_conv_in": "CausalConv3d",
    "encoder_conv_out": "CausalConv3d",
    "encoder_mid_resnet": "ResnetBlock3D",
    "encoder_resnet_blocks": THREE_D,
    "encoder_spatial_downsample": ["SpatialDownsample2x", "SpatialDownsample2x", "SpatialDownsample2x", ""],
    "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""],
    "hidden_size": 128,
    "hidden_size_mult": [1, 2, 4, 4],
    "loss_params": {"disc_start": 2001, "disc_weight": 0.5, "kl_weight": 1e-06, "logvar_init": 0.0},
    "loss_type": "opensora.models.ae.videobase.losses.LPIPSWithDiscriminator",
    "lr": 1e-05,
    "num_res_blocks": 2,
    "q_conv": "CausalConv3d",
    "resolution": 256,
    "z_channels": 4,
}
V1_1 = V1_0 | {
    "encoder_attention": "AttnBlock3DFix",
    "decoder_attention": "AttnBlock3DFix",
    "encoder_conv_in": "Conv2d",
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    "encoder_spatial_downsample": ["Downsample", "Downsample", "Downsample", ""],
    "encoder_temporal_downsample": ["", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""],
    "decoder_temporal_upsample": ["", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"],
    "in_channels": 3,
    "out_channels": 3,
}
V1_2 = V1_1 | {
    "encoder_spatial_downsample": ["Downsample", "Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DDownsample", ""],
    "encoder_temporal_downsample": ["", "", "", ""],
    "decoder_spatial_upsample": ["", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample", "Spatial2xTime2x3DUpsample"],
    "decoder_temporal_upsample": ["", "", "", ""],
    "use_quant_layer": True,
}
PUBLISHED = {"v1.0": V1_0, "v1.1": V1_1, "v1.2": V1_2}
SMALL = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 2], "num_res_blocks": 1}
BLOCKS = ("AttnBlock3DFix", "AttnBlock3D")

ignore_legacy = pytest.mark.filterwarnings("ignore:AttnBlock3D mixes time")


def small(version: str, attention: str = "AttnBlock3DFix", **changes: Any) -> dict[str, Any]:
    """A published config, with few channels."""
    return {**PUBLISHED[version], **SMALL, "encoder_attention": attention, "decoder_attention": attention, **changes}


def network_of(config: dict[str, Any]) -> CausalVAE:
    return CausalVAE(CausalVAEConfig(**known_fields(CausalVAEConfig, config)))


def weights_of(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return network_of(config).state_dict()


def publish(folder: Path, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> Path:
    """A folder as diffusers saves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights_of(config) if weights is None else weights, folder / SAVED_BY_DIFFUSERS)
    return folder


def publish_ckpt(folder: Path, config: dict[str, Any], checkpoint: Any, name: str = "checkpoint.ckpt") -> Path:
    """A folder as the training of v1.1 and v1.2 leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(checkpoint, folder / name)
    return folder


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The layouts


@pytest.mark.parametrize(
    ("version", "encoder", "decoder", "entries"),
    [("v1.0", 93.8, 135.4, 248), ("v1.1", 97.3, 149.5, 260), ("v1.2", 94.4, 144.8, 248)],
)
@ignore_legacy
def test_the_published_layouts_have_their_number_of_weights(version: str, encoder: float, decoder: float, entries: int):
    with torch.device("meta"):
        network = network_of(PUBLISHED[version])
    found = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.encoder, network.decoder)]
    assert [round(millions, 1) for millions in found] == [encoder, decoder]
    assert len(network.state_dict()) == entries


@pytest.mark.parametrize("version", PUBLISHED)
@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (17, 5), (33, 9)])
def test_as_many_frames_come_back(tmp_path: Path, version: str, frames: int, latents: int):
    vae = load_vae("open-sora-plan", publish(tmp_path, small(version)), chunk_frames=33)
    assert vae.spec.stride == (4, 8, 8)
    pixels = noise(1, 3, frames, 8, 16)
    found = vae.encode(pixels)
    assert found.shape == (1, 4, latents, 1, 2)
    decoded = vae.decode(found, frames)
    assert decoded.shape == pixels.shape and decoded.isfinite().all()


def test_quant_layers_stand_between_the_network_and_its_latents(tmp_path: Path):
    config = small("v1.2", embed_dim=6, z_channels=4)
    vae = load_vae("open-sora-plan", publish(tmp_path, config))
    latents = vae.encode(noise(1, 3, 5, 16, 16))
    assert latents.shape == (1, 6, 2, 2, 2)
    assert vae.decode(latents, 5).shape == (1, 3, 5, 16, 16)


@pytest.mark.parametrize("attention", BLOCKS)
@pytest.mark.parametrize("version", PUBLISHED)
@ignore_legacy
@torch.no_grad()
def test_both_kinds_of_file_load_as_they_were_saved(tmp_path: Path, version: str, attention: str):
    config = small(version, attention)
    torch.manual_seed(1)
    network, pixels = network_of(config), noise(1, 3, 5, 16, 16)
    weights = network.state_dict()
    mean, logvar = network.encode(pixels).chunk(2, dim=1)
    trained = {"state_dict": {**weights, "loss.discriminator.0.weight": torch.zeros(3)}, "epoch": 3, "global_step": 10}
    for folder in (
        publish(tmp_path / "safetensors", config, weights),
        publish_ckpt(tmp_path / "ckpt", config, trained),
    ):
        vae = load_vae("open-sora-plan", folder)
        found, std = vae.raw_moments(pixels)
        assert torch.equal(found, mean)
        torch.testing.assert_close(std, torch.exp(logvar / 2))
        assert torch.equal(vae.raw_decode(mean, 5), network.decode(mean))
        assert not vae.training and not any(p.requires_grad or p.is_meta for p in vae.parameters())


@ignore_legacy
@torch.no_grad()
def test_the_attention_that_config_json_names_is_computed(tmp_path: Path):
    weights, pixels = weights_of(small("v1.2")), noise(1, 3, 17, 16, 16)
    right = load_vae("open-sora-plan", publish(tmp_path / "right", small("v1.2"), weights))
    folder = publish(tmp_path / "legacy", small("v1.2", "AttnBlock3D"), weights)
    with pytest.warns(UserWarning, match="mixes time"):
        legacy = load_vae("open-sora-plan", folder)
    assert right.spec.weights_sha256 == legacy.spec.weights_sha256
    assert right.spec.config_sha256 != legacy.spec.config_sha256
    assert (right.encode(pixels) - legacy.encode(pixels)).abs().max() > 1e-5
    assert torch.equal(right.encode(pixels[:, :, :1]), legacy.encode(pixels[:, :, :1]))

    folder = publish(tmp_path / "both", small("v1.2", decoder_attention="AttnBlock3D"), weights)
    described = describe_vae("open-sora-plan", folder)
    assert described.origins["attention"] == "AttnBlock3DFix and AttnBlock3D, by config.json"
    both = described.load()
    assert torch.equal(both.encode(pixels), right.encode(pixels))
    assert torch.equal(both.decode(right.encode(pixels), 17), legacy.decode(right.encode(pixels), 17))


def test_halving_time_elsewhere_loads_the_same_weights_but_is_another_vae(tmp_path: Path):
    config, pixels = small("v1.0"), noise(1, 3, 17, 16, 16)
    other = config | {"encoder_temporal_downsample": ["", "TimeDownsample2x", "TimeDownsample2x", ""]}
    one = load_vae("open-sora-plan", publish(tmp_path / "one", config, weights_of(config)))
    two = load_vae("open-sora-plan", publish(tmp_path / "two", other, weights_of(config)))
    assert one.spec.weights_sha256 == two.spec.weights_sha256
    assert one.spec.config_sha256 != two.spec.config_sha256
    assert not torch.equal(one.encode(pixels), two.encode(pixels))


def test_without_quant_layers_the_encoder_and_the_decoder_are_all(tmp_path: Path):
    config = small("v1.2", use_quant_layer=False)
    weights = weights_of(config)
    assert not [name for name in weights if "quant" in name]
    assert (
        load_vae("open-sora-plan", publish(tmp_path, config, weights)).encode(noise(1, 3, 1, 16, 16)).isfinite().all()
    )


def test_fields_of_training_change_nothing(tmp_path: Path):
    weights = weights_of(small("v1.1"))
    one = describe_vae("open-sora-plan", publish(tmp_path / "one", small("v1.1"), weights))
    two = describe_vae(
        "open-sora-plan", publish(tmp_path / "two", small("v1.1", lr=1.0, loss_type="", dropout=0.5), weights)
    )
    assert one.spec == two.spec


# Latents


def test_raw_latents_are_multiplied_by_a_constant_that_the_originals_fixed(tmp_path: Path):
    folder, pixels = publish(tmp_path, small("v1.2")), noise(1, 3, 5, 16, 16)
    described = describe_vae("open-sora-plan", folder)
    spec = described.spec
    assert (spec.scaling_factor, set(spec.shift), set(spec.scale)) == (0.18215, {0.0}, {1.0})
    assert (spec.vae, spec.channels, spec.posterior, spec.dtype) == ("open-sora-plan", 4, "sample", "float32")
    assert "not measured" in described.origins["scaling_factor"]
    assert described.origins["attention"] == "AttnBlock3DFix, by config.json"
    vae = load_vae("open-sora-plan", folder)
    mean, std = vae.raw_moments(pixels)
    torch.testing.assert_close(vae.moments(pixels)[0], mean * 0.18215)
    torch.testing.assert_close(vae.moments(pixels)[1], std * 0.18215)
    torch.testing.assert_close(vae.decode(vae.encode(pixels), 5), vae.raw_decode(mean, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", PUBLISHED)
def test_half_precision_is_a_wish(tmp_path: Path, version: str):
    folder, pixels = publish(tmp_path, small(version)), noise(1, 3, 5, 16, 16)
    exact, half = load_vae("open-sora-plan", folder), load_vae("open-sora-plan", folder, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert 2 * half.bytes_per_pixel == exact.bytes_per_pixel
    torch.testing.assert_close(half.encode(pixels), exact.encode(pixels), atol=0.02, rtol=0)
    latents = exact.encode(pixels)
    decoded = exact.decode(latents, 5)
    assert (half.decode(latents, 5) - decoded).norm() < 0.2 * decoded.norm()


# Files


@torch.no_grad()
def test_averaged_weights_go_before_the_last_ones_and_names_lose_their_prefix(tmp_path: Path):
    config = small("v1.2")
    last, averaged, pixels = weights_of(config, 1), weights_of(config, 2), noise(1, 3, 1, 16, 16)
    prefixed = {f"module.{name}": tensor for name, tensor in averaged.items()}
    expected = {}
    for name, weights in {"last": last, "averaged": averaged}.items():
        expected[name] = load_vae("open-sora-plan", publish(tmp_path / name, config, weights)).encode(pixels)
    for number, (checkpoint, wanted) in enumerate(
        (
            (last, "last"),
            ({"state_dict": last}, "last"),
            ({"state_dict": last, "ema_state_dict": {}}, "last"),
            ({"state_dict": {"gen_model": last, "dics_model": {"x": torch.zeros(1)}}}, "last"),
            ({"state_dict": last, "ema_state_dict": prefixed}, "averaged"),
            ({"state_dict": {"gen_model": last}, "ema_state_dict": prefixed}, "averaged"),
        )
    ):
        folder = publish_ckpt(tmp_path / str(number), config, checkpoint)
        assert torch.equal(load_vae("open-sora-plan", folder).encode(pixels), expected[wanted])


def test_safetensors_go_before_a_ckpt(tmp_path: Path):
    config = small("v1.2")
    publish_ckpt(tmp_path, config, {"state_dict": weights_of(config, 1)})
    publish(tmp_path, config, weights_of(config, 2))
    from_folder = load_vae("open-sora-plan", tmp_path)
    assert torch.equal(
        from_folder.state_dict()["network.quant_conv.conv.weight"], weights_of(config, 2)["quant_conv.conv.weight"]
    )
    from_file = load_vae("open-sora-plan", tmp_path / "checkpoint.ckpt")
    assert from_file.spec.weights_sha256 != from_folder.spec.weights_sha256


def test_a_release_keeps_its_vae_in_a_folder_of_that_name(tmp_path: Path):
    publish(tmp_path / "vae", small("v1.2"))
    (tmp_path / "transformer.safetensors").touch()
    assert describe_vae("open-sora-plan", tmp_path).spec == describe_vae("open-sora-plan", tmp_path / "vae").spec


def test_of_several_files_one_has_to_be_named(tmp_path: Path):
    config = small("v1.2")
    for name in ("last.ckpt", "best.ckpt"):
        publish_ckpt(tmp_path, config, {"state_dict": weights_of(config)}, name)
    with pytest.raises(ValueError, match=r"best\.ckpt, last\.ckpt; nothing says which"):
        describe_vae("open-sora-plan", tmp_path)
    assert describe_vae("open-sora-plan", tmp_path / "best.ckpt").spec.channels == 4


# What is refused


def refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"config.json: .*{reason}.*published with the weights"):
        describe_vae("open-sora-plan", publish(tmp_path, config, {}))


@pytest.mark.parametrize(
    "field", ["encoder_attention", "decoder_attention", "encoder_temporal_downsample", "decoder_resnet_blocks"]
)
def test_what_weights_do_not_show_has_to_be_in_the_config(tmp_path: Path, field: str):
    config = small("v1.0")
    del config[field]
    refused(tmp_path, config, f"no {field}, which the weights do not show")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_attention": "AttnBlock"}, "encoder_attention names 'AttnBlock', known are 'AttnBlock3DFix', 'Attn"),
        ({"encoder_resnet_blocks": ["ResnetBlock4D"] * 4}, "encoder_resnet_blocks names 'ResnetBlock4D'"),
        ({"decoder_spatial_upsample": ["", "Up", "", ""]}, "decoder_spatial_upsample names 'Up', known are ''"),
        ({"decoder_resnet_blocks": THREE_D[:3]}, "decoder_resnet_blocks .* wanted a list of 4"),
        ({"decoder_resnet_blocks": "ResnetBlock3D"}, "decoder_resnet_blocks is 'ResnetBlock3D', wanted a list"),
        ({"encoder_temporal_downsample": ["", "TimeDownsample2x", "", ""]}, r"by \(2, 8, 8\) .* by \(4, 8, 8\)"),
        ({"attn_resolutions": [16]}, r"attn_resolutions \[16\], wanted true and \[\]"),
        ({"double_z": False}, "double_z False"),
        ({"use_quant_layer": False, "embed_dim": 8}, "embed_dim 8 and z_channels 4 differ"),
        ({"hidden_size": 48}, "48.*a multiple of 32"),
        ({"z_channels": "4"}, "'4'.*wanted integers"),
        ({"hidden_size_mult": 4}, "not iterable|after \\* must be an iterable"),
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL', known are CausalVAEModel, WFVAEModel"),
        ({"_class_name": None}, "_class_name is None"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str):
    refused(tmp_path, small("v1.0", **changes), reason)


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path):
    weights = weights_of(small("v1.1"))
    weights["encoder.conv_im.bias"] = weights.pop("encoder.conv_in.bias")
    folder = publish(tmp_path / "renamed", small("v1.1"), weights)
    with pytest.raises(
        ValueError, match=r"1 missing \(encoder\.conv_in\.bias\); 1 unexpected \(encoder\.conv_im\.bias\)"
    ):
        load_vae("open-sora-plan", folder)

    folder = publish(tmp_path / "of_another_layout", small("v1.1"), weights_of(small("v1.2")))
    with pytest.raises(ValueError, match=r"missing \(.*time_downsample\.mix_factor.*mis-shaped"):
        load_vae("open-sora-plan", folder)

    weights = weights_of(small("v1.1")) | {"encoder.loss.weight": torch.zeros(1)}  # not of the loss
    with pytest.raises(ValueError, match=r"1 unexpected \(encoder\.loss\.weight\)"):
        load_vae("open-sora-plan", publish(tmp_path / "loss", small("v1.1"), weights))


def test_a_ckpt_that_needs_code_to_be_run_is_refused(tmp_path: Path):
    config = small("v1.2")
    folder = publish_ckpt(tmp_path, config, {"state_dict": weights_of(config), "hyper_parameters": Namespace(lr=1)})
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt holds other objects than tensors.*any code.*save_file"):
        load_vae("open-sora-plan", folder)


@pytest.mark.parametrize("checkpoint", [{"epoch": 3}, {"state_dict": {"model": {}}}, [1, 2]])
def test_a_ckpt_without_tensors_by_name_is_refused(tmp_path: Path, checkpoint: Any):
    with pytest.raises(ValueError, match="found no state dict"):
        load_vae("open-sora-plan", publish_ckpt(tmp_path, small("v1.2"), checkpoint))


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kept: int):
    config = small("v1.2")
    for folder in (
        publish(tmp_path / "safetensors", config),
        publish_ckpt(tmp_path / "ckpt", config, {"state_dict": weights_of(config)}),
    ):
        weights = next(path for path in folder.iterdir() if path.name != "config.json")
        weights.write_bytes(weights.read_bytes()[:kept])
        with pytest.raises(ValueError, match="cut off.*fetch it again"):
            load_vae("open-sora-plan", folder)


def test_a_folder_without_a_vae_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"found nothing; wanted .*safetensors"):
        describe_vae("open-sora-plan", tmp_path)
    (publish(tmp_path, small("v1.2")) / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        describe_vae("open-sora-plan", tmp_path)


def test_the_family_wants_a_path_and_nothing_after_a_colon(tmp_path: Path):
    with pytest.raises(ValueError, match="needs a path"):
        describe_vae("open-sora-plan")
    with pytest.raises(ValueError, match=r"open-sora-plan:v1\.2: leave out"):
        describe_vae("open-sora-plan:v1.2", publish(tmp_path, small("v1.2")))


def test_frames_and_sizes_that_do_not_divide_are_refused(tmp_path: Path):
    vae = load_vae("open-sora-plan", publish(tmp_path, small("v1.2")))
    with pytest.raises(ValueError, match="16 frames.*the last 3 would be lost: give 13 or 17"):
        vae.encode(torch.zeros(1, 3, 16, 16, 16))
    with pytest.raises(ValueError, match="width 20 is not a multiple of 8"):
        vae.encode(torch.zeros(1, 3, 17, 16, 20))
    with pytest.raises(ValueError, match="16 frames do not fit open-sora-plan"):
        load_vae("open-sora-plan", tmp_path, chunk_frames=16)
