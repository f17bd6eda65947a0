"""Latents are counted chunk by chunk, and a spec names exactly one kind of latent."""

import json
from dataclasses import fields, replace

import pytest

from models.latent_spec import LatentSpec

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
