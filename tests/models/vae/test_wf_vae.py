"""WF-VAE: its wavelets, an encoder that never sees ahead, and the checkpoints of Open-Sora-Plan v1.3."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.vae import describe_vae, load_vae
from models.vae.haar import filters_2d, filters_3d
from models.vae.open_sora_plan import known_fields
from models.vae.wf_vae import WFVAE, WFVAEConfig
from tests.models.vae.test_open_sora_plan import noise, publish, publish_ckpt

WF_VAE_S: dict[str, Any] = {
    "_class_name": "WFVAEModel",
    "_diffusers_version": "0.30.2",
    "base_channels": 128,
    "connect_res_layer_num": 1,
    "decoder_energy_flow_hidden_size": 128,
    "decoder_num_resblocks": 2,
    "dropout": 0.0,
    "encoder_energy_flow_hidden_size": 128,
    "encoder_num_resblocks": 2,
    "l1_dowmsample_block": "Downsample",
    "l1_downsample_wavelet": "HaarWaveletTransform2D",
    "l1_upsample_block": "Upsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform2D",
    "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D",
    "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D",
    "latent_dim": 4,
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
    "use_attention": True,
}


def small(**changes: Any) -> dict[str, Any]:
    """The published config, with few channels."""
    sizes = {"base_channels": 32, "encoder_energy_flow_hidden_size": 64, "decoder_energy_flow_hidden_size": 32}
    return {**WF_VAE_S, **sizes, "encoder_num_resblocks": 1, "decoder_num_resblocks": 1, **changes}


def network_of(config: dict[str, Any]) -> WFVAE:
    return WFVAE(WFVAEConfig(**known_fields(WFVAEConfig, config)))


def weights_of(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return network_of(config).state_dict()


# The network


def test_the_small_published_model_has_its_number_of_weights():
    with torch.device("meta"):
        network = network_of(WF_VAE_S)
    found = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.encoder, network.decoder)]
    assert [round(millions, 1) for millions in found] == [38.2, 108.3]


def test_names_are_those_of_the_published_checkpoints():
    names = weights_of(WF_VAE_S | {"base_channels": 32}).keys()
    assert {
        "encoder.down1.0.weight",
        "encoder.down1.1.norm1.norm.weight",
        "encoder.down1.3.conv.weight",
        "encoder.down2.3.conv.conv.weight",
        "encoder.connect_l1.weight",
        "encoder.connect_l2.weight",
        "encoder.mid.0.nin_shortcut.conv.weight",
        "encoder.mid.1.proj_out.conv.weight",
        "encoder.norm_out.norm.weight",
        "encoder.conv_out.conv.weight",
        "decoder.conv_in.conv.weight",
        "decoder.up2.2.conv.conv.weight",
        "decoder.up1.2.conv.weight",
        "decoder.layer.0.nin_shortcut.conv.weight",
        "decoder.connect_l1.0.norm1.norm.weight",
        "decoder.connect_l2.1.weight",
        "decoder.conv_out.weight",
    } <= names


MEANS = torch.tensor([-0.30369, -0.25708, -0.74438, -0.68309, 1.42079, 1.46063, 1.02973, 1.03204])
PIXELS = torch.tensor([-3.30431, 0.68079, 1.38896, 1.80683, 3.37374, 1.31787, 1.27547, -0.41475])


def drawn_weights(network: WFVAE) -> dict[str, Tensor]:
    """Weights that depend on their names alone, each about as large as training would have it."""
    generator, drawn = torch.Generator().manual_seed(0), {}
    for name, tensor in sorted(network.state_dict().items()):
        drawn[name] = torch.randn(tensor.shape, generator=generator) / (tensor.numel() / len(tensor)) ** 0.5
    return drawn


@torch.no_grad()
def test_the_numbers_are_those_of_the_originals_order_of_operations():
    """From the same weights in a network that was written out as the original runs it, apart from this one."""
    network = network_of(small())
    network.load_state_dict(drawn_weights(network))
    mean, _ = network.encode(noise(1, 3, 5, 16, 16)).chunk(2, dim=1)
    pixels = network.decode(noise(1, 4, 2, 2, 2))
    torch.testing.assert_close(mean.flatten()[::4], MEANS, atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels.flatten()[::480], PIXELS, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_latent_sees_no_later_frame(tmp_path: Path):
    vae, pixels = load_vae("open-sora-plan", publish(tmp_path, small(), weights_of(small()))), noise(1, 3, 17, 32, 32)
    mean, _ = vae.raw_moments(pixels)
    assert mean.shape == (1, 4, 5, 4, 4)
    for first_changed, unmoved in ((1, 1), (5, 2), (16, 4)):  # latents hold frames 0, 1-4, 5-8, 9-12, 13-16
        changed = torch.cat([pixels[:, :, :first_changed], -pixels[:, :, first_changed:]], dim=2)
        found, _ = vae.raw_moments(changed)
        assert torch.equal(found[:, :, :unmoved], mean[:, :, :unmoved])
        assert (found - mean)[:, :, unmoved:].abs().amax(dim=(0, 1, 3, 4)).min() > 0
    torch.testing.assert_close(vae.raw_moments(pixels[:, :, :1])[0], mean[:, :, :1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_with_group_norms_it_is_not_causal():
    torch.manual_seed(0)
    network, pixels = network_of(small(norm_type="groupnorm")), noise(1, 3, 17, 16, 16)
    louder = torch.cat([pixels[:, :, :16], 5 * pixels[:, :, 16:]], dim=2)
    assert (network.encode(pixels) - network.encode(louder))[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (17, 5), (33, 9)])
def test_as_many_frames_come_back(tmp_path: Path, frames: int, latents: int):
    folder, pixels = publish(tmp_path, small(), weights_of(small())), noise(1, 3, frames, 16, 24)
    vae = load_vae("open-sora-plan", folder, chunk_frames=33)
    assert vae.encode(pixels).shape == (1, 4, latents, 2, 3)
    assert vae.decode(vae.encode(pixels), frames).shape == pixels.shape


@torch.no_grad()
def test_what_the_decoder_predicts_of_coarser_bands_is_added_to_its_output():
    """Without its own bands the decoder gives the l1 and l2 averages alone; without those too, nothing."""
    torch.manual_seed(0)
    decoder, latents = network_of(small()).decoder, noise(1, 4, 2, 2, 2)
    whole = decoder(latents)
    for layer in (decoder.conv_out, decoder.connect_l1[-1], decoder.connect_l2[-1]):
        for parameter in layer.parameters():
            parameter.zero_()
        rest = decoder(latents)
        assert (whole - rest).abs().max() > 1e-3
        whole = rest
    assert not whole.any()


# Checkpoints


@torch.no_grad()
def test_both_kinds_of_file_load_as_they_were_saved(tmp_path: Path):
    torch.manual_seed(1)
    network, pixels = network_of(small()), noise(1, 3, 5, 16, 16)
    weights = network.state_dict()
    kept = {  # the filters, which the originals' code keeps in its state dict
        "encoder.wavelet_tranform_3d.h_conv.conv.weight": filters_3d(torch.zeros(1))[:1],
        "encoder.wavelet_transform_l1.aa": filters_2d(torch.zeros(1))[:1],
        "decoder.inverse_wavelet_transform_out.gh_v": filters_3d(torch.zeros(1))[7:],
    }
    trained = {"ema_state_dict": {f"module.{name}": tensor for name, tensor in (weights | kept).items()}}
    for folder in (
        publish(tmp_path / "safetensors", small(), weights),
        publish_ckpt(tmp_path / "ckpt", small(), trained, "merged.ckpt"),
    ):
        vae = load_vae("open-sora-plan", folder)
        assert torch.equal(vae.raw_moments(pixels)[0], network.encode(pixels)[:, :4])
        assert torch.equal(vae.raw_decode(noise(1, 4, 2, 2, 2), 5), network.decode(noise(1, 4, 2, 2, 2)))


def test_latents_are_normalized_by_the_channel_as_config_json_says(tmp_path: Path):
    shift, scale = [-0.5, 0.25, 0.0, 1.0], [2.0, 0.5, 1.0, 0.25]
    folder = publish(tmp_path, small(shift=shift, scale=scale), weights_of(small()))
    described = describe_vae("open-sora-plan", folder)
    assert described.spec.scaling_factor == 1 and described.spec.shift == tuple(shift)
    assert described.spec.scale == (0.5, 2.0, 1.0, 4.0)
    assert "config.json" in described.origins["shift"] and "config.json" in described.origins["scale"]
    vae, pixels = load_vae("open-sora-plan", folder), noise(1, 3, 5, 16, 16)
    raw, std = vae.raw_moments(pixels)
    column = torch.tensor(scale)[:, None, None, None]
    mean = (raw - torch.tensor(shift)[:, None, None, None]) * column  # the originals' order
    torch.testing.assert_close(vae.moments(pixels)[0], mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.moments(pixels)[1], std * column, atol=1e-6, rtol=0)


def test_without_a_scale_in_config_json_it_is_that_of_the_originals_code(tmp_path: Path):
    weights = weights_of(small())
    described = describe_vae("open-sora-plan", publish(tmp_path / "one", small(), weights))
    assert described.spec.scale == (1 / 0.18215,) * 4 and described.spec.shift == (0.0,) * 4
    assert "not measured" in described.origins["scale"]
    other = describe_vae("open-sora-plan", publish(tmp_path / "two", small(scale=[1.0] * 4, dropout=0.1), weights))
    assert other.spec.config_sha256 == described.spec.config_sha256  # normalization is not arithmetic


def test_how_time_is_interpolated_is_part_of_the_config(tmp_path: Path):
    weights = weights_of(small())
    one = load_vae("open-sora-plan", publish(tmp_path / "one", small(), weights))
    two = load_vae("open-sora-plan", publish(tmp_path / "two", small(t_interpolation="nearest"), weights))
    assert one.spec.config_sha256 != two.spec.config_sha256
    latents = noise(1, 4, 5, 2, 2)
    assert not torch.equal(one.raw_decode(latents, 17), two.raw_decode(latents, 17))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t_interpolation": "linear"}, "t_interpolation is 'linear', known are 'trilinear', 'nearest'"),
        ({"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm', known are 'groupnorm', 'layernorm'"),
        ({"attention_type": "AttnBlock3D"}, "attention_type is 'AttnBlock3D', known are 'AttnBlock3DFix'"),
        ({"l1_dowmsample_block": "Spatial2xTime2x3DDownsample"}, "l1_dowmsample_block is .*known are 'Downsample'"),
        ({"base_channels": "128"}, "'128'.*wanted integers"),
        ({"scale": [0.0, 1.0, 1.0, 1.0]}, r"scale is \[0\.0, 1\.0.*above 0"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=f"config.json: .*{reason}.*published with the weights"):
        describe_vae("open-sora-plan", publish(tmp_path, small(**changes), {}))


def test_what_weights_do_not_show_has_to_be_in_the_config(tmp_path: Path):
    folder = publish(tmp_path, small(), {})
    config = small()
    del config["t_interpolation"], config["norm_type"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no norm_type, t_interpolation, which the weights do not show"):
        describe_vae("open-sora-plan", folder)


def test_as_many_scales_as_channels(tmp_path: Path):
    with pytest.raises(ValueError, match="4 channels but 4 shifts and 8 scales"):
        describe_vae("open-sora-plan", publish(tmp_path, small(scale=[0.18215] * 8), {}))
