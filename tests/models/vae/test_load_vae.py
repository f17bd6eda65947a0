"""A VAE is found by its name, and a name that means nothing says what would."""

import pytest
import torch
from einops import rearrange

from models.vae import VAES, load_vae


def test_dct_keeps_sixteen_channels_and_takes_another_number_after_a_colon():
    assert (load_vae("dct").spec.vae, load_vae("dct").spec.channels) == ("dct", 16)
    assert (load_vae("dct:32").spec.vae, load_vae("dct:32").spec.channels) == ("dct:32", 32)


def test_the_name_in_the_spec_loads_the_same_vae():
    for name in ("dct", "dct:16", "dct:1", "dct:64"):
        spec = load_vae(name, chunk_frames=9).spec
        assert load_vae(spec.vae, chunk_frames=9).spec == spec


def test_the_number_of_channels_and_of_chunk_frames_change_the_fingerprint():
    vaes = load_vae("dct"), load_vae("dct:8"), load_vae("dct", chunk_frames=33)
    assert len({vae.spec.fingerprint() for vae in vaes}) == 3


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"'dtc:16'.*{', '.join(sorted(VAES))}"):
        load_vae("dtc:16")


@pytest.mark.parametrize("name", ["dct:", "dct:many", "dct:-1", "dct:1.5", "dct:16:2"])
def test_channels_are_a_number(name: str):
    with pytest.raises(ValueError, match="is not a number of channels"):
        load_vae(name)


@pytest.mark.parametrize("name", ["dct:0", "dct:65"])
def test_there_are_one_to_sixty_four_channels(name: str):
    with pytest.raises(ValueError, match="1 to 64"):
        load_vae(name)


def test_dct_has_no_weights_to_read():
    with pytest.raises(ValueError, match=r"no weights to read from vae\.safetensors"):
        load_vae("dct", path="vae.safetensors")


def test_sixteen_frames_are_no_chunk():
    with pytest.raises(ValueError, match="16 frames do not fit dct"):
        load_vae("dct", chunk_frames=16)


def test_a_loaded_vae_is_ready_to_use_and_has_nothing_to_save():
    vae = load_vae("dct")
    assert not vae.training
    assert not vae.encode(torch.zeros(1, 3, 1, 8, 8)).requires_grad
    assert vae.state_dict() == {}


def test_half_precision_does_not_round_the_transform():
    pixels = rearrange(torch.linspace(-1, 1, 960), "(b c t h w) -> b c t h w", b=1, c=3, t=5, h=8).bfloat16()
    exact, half = load_vae("dct"), load_vae("dct", dtype="bfloat16")
    assert half.spec == exact.spec and half.spec.dtype == "float32"
    assert torch.equal(half.encode(pixels), exact.encode(pixels.float()))
    assert half.encode(pixels).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact.encode(pixels), half.encode(pixels))
