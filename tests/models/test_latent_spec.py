"""Latents are counted chunk by chunk, and a spec names exactly one kind of latent."""

import json
from dataclasses import fields, replace

import pytest
import torch

from models.latent_spec import NORMALIZATION, LatentSpec

SPEC = LatentSpec(
    vae="toy",
    channels=2,
    stride=(4, 8, 8),
    chunk_frames=17,
    scaling_factor=0.5,
    shift=(0.1, -0.2),
    scale=(1.5, 3.0),
    dtype="float32",
    posterior="sample",
    config_sha256="0" * 64,
    weights_sha256="0" * 64,
)


def test_sixteen_frames_do_not_fit():
    with pytest.raises(ValueError, match=r"16 frames do not fit toy.*1\+4n"):
        replace(SPEC, chunk_frames=16)


@pytest.mark.parametrize("chunk_frames", [-3, 0, 2, 18])
def test_neither_does_anything_else_that_is_not_one_plus_four_n(chunk_frames: int):
    with pytest.raises(ValueError, match="do not fit"):
        replace(SPEC, chunk_frames=chunk_frames)


@pytest.mark.parametrize(("chunk_frames", "latents"), [(1, 1), (5, 2), (9, 3), (17, 5), (49, 13), (129, 33)])
def test_one_plus_four_n_frames_are_one_plus_n_latents(chunk_frames: int, latents: int):
    assert replace(SPEC, chunk_frames=chunk_frames).chunk_latents == latents


@pytest.mark.parametrize(
    ("frames", "latents"),
    [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (16, 4), (17, 5), (18, 6), (33, 9), (34, 10), (51, 15), (102, 30)],
)
def test_latents_are_counted_chunk_by_chunk(frames: int, latents: int):
    assert SPEC.latent_frames(frames) == latents


@pytest.mark.parametrize(
    ("valid", "latents"),
    [(1, 1), (2, 2), (5, 2), (6, 3), (13, 4), (14, 5), (17, 5), (18, 6), (19, 7), (33, 10), (34, 10)],
)
def test_a_latent_of_a_whole_chunk_is_filled_by_one_frame_of_its_own(valid: int, latents: int):
    assert SPEC.filled_latents(valid) == latents


def test_every_whole_chunk_adds_five_latents():
    assert [SPEC.latent_frames(17 + frames) for frames in range(40)] == [
        5 + SPEC.latent_frames(frames) for frames in range(40)
    ]


def test_a_latent_is_a_fourth_of_the_frames_and_an_eighth_of_each_side():
    assert SPEC.latent_shape(34, 144, 256) == (2, 10, 18, 32)


@pytest.mark.parametrize(
    ("height", "width", "advice"), [(100, 64, "height 100.*use 96 or 104"), (64, 4, "width 4 .*use 8 or 16")]
)
def test_sides_must_divide_by_eight(height: int, width: int, advice: str):
    with pytest.raises(ValueError, match=advice):
        SPEC.latent_shape(17, height, width)


@pytest.mark.parametrize("change", [{"shift": (0.0,)}, {"scale": (1.0, 1.0, 1.0)}, {"channels": 3}])
def test_every_channel_has_a_shift_and_a_scale(change: dict):
    with pytest.raises(ValueError, match="one of each per channel"):
        replace(SPEC, **change)


def test_a_spec_survives_json():
    again = LatentSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert again == SPEC
    assert again.fingerprint() == SPEC.fingerprint()


def test_an_unknown_or_a_missing_field_is_refused():
    written = SPEC.to_dict()
    with pytest.raises(TypeError):
        LatentSpec.from_dict({**written, "colour": "red"})
    del written["scale"]
    with pytest.raises(TypeError):
        LatentSpec.from_dict(written)


CHANGES = {
    "vae": {"vae": "toi"},
    "channels": {"channels": 3, "shift": (0.1, -0.2, 0.0), "scale": (1.5, 3.0, 1.0)},
    "stride": {"stride": (4, 8, 16)},
    "chunk_frames": {"chunk_frames": 5},
    "scaling_factor": {"scaling_factor": 0.25},
    "shift": {"shift": (-0.2, 0.1)},
    "scale": {"scale": (1.5, 3.0000001)},
    "dtype": {"dtype": "bfloat16"},
    "posterior": {"posterior": "mean"},
    "config_sha256": {"config_sha256": "1" * 64},
    "weights_sha256": {"weights_sha256": "1" * 64},
}


@pytest.mark.parametrize("field", [field.name for field in fields(LatentSpec)])
def test_every_field_changes_the_fingerprint(field: str):
    assert replace(SPEC, **CHANGES[field]).fingerprint() != SPEC.fingerprint()


OTHER = replace(SPEC, scaling_factor=0.13025, shift=(-0.4, 2.0), scale=(0.7, 5.0))


def normalized(raw: torch.Tensor, spec: LatentSpec) -> torch.Tensor:
    """(B, c, t, h, w), in float64."""
    shift, scale = (torch.tensor(one, dtype=torch.float64)[:, None, None, None] for one in (spec.shift, spec.scale))
    return (raw.double() * spec.scaling_factor - shift) / scale


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_latents_convert_to_another_normalization_to_float32_rounding(posterior: str):
    one, other = (replace(spec, posterior=posterior) for spec in (SPEC, OTHER))
    raw = random(3, 2, 5, 4, 4)
    converted = one.convert(normalized(raw, one).float(), to=other)
    assert converted.dtype == torch.float32
    torch.testing.assert_close(converted, normalized(raw, other).float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other.convert(converted, to=one), normalized(raw, one).float(), atol=1e-6, rtol=1e-6)


def test_a_converted_standard_deviation_has_no_shift():
    one, other = (replace(spec, posterior="moments") for spec in (SPEC, OTHER))
    raw, raw_std = random(1, 2, 5, 4, 4), random(1, 2, 5, 4, 4).exp()
    stds = [raw_std * spec.scaling_factor / torch.tensor(spec.scale)[:, None, None, None] for spec in (one, other)]
    cached = torch.cat([normalized(raw, one).float(), stds[0]], dim=1)
    mean, std = one.convert(cached, to=other).chunk(2, dim=1)
    torch.testing.assert_close(mean, normalized(raw, other).float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(std, stds[1], atol=1e-6, rtol=1e-6)


def test_moments_are_stored_as_twice_as_many_channels():
    assert [replace(SPEC, posterior=kind).stored_channels for kind in ("mean", "sample", "moments")] == [2, 2, 4]


@pytest.mark.parametrize("field", [field.name for field in fields(LatentSpec)])
def test_only_the_normalization_converts(field: str):
    changed = replace(SPEC, **CHANGES[field])
    assert SPEC.converts_to(changed) == (field in NORMALIZATION)
    if field not in NORMALIZATION:
        with pytest.raises(ValueError, match="more differs than scaling_factor, shift, scale; encode again"):
            SPEC.convert(torch.zeros(2, 1, 1, 1), to=changed)


@pytest.mark.parametrize("change", [{"scaling_factor": 0.0}, {"scale": (1.0, -1.0)}, {"scale": (float("nan"), 1.0)}])
def test_what_divides_must_be_positive(change: dict):
    with pytest.raises(ValueError, match="must be above 0"):
        replace(SPEC, **change)
