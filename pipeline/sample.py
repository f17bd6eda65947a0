"""A sample's members: arrays and facts <-> bytes. Plain npy and JSON, never pickle."""

import io
import json

import numpy as np

from pipeline.recipe import Recipe
from pipeline.records import Clip


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_array(content: bytes) -> np.ndarray:
    """The array of a .npy file; ValueError where it holds pickled objects."""
    return np.load(io.BytesIO(content), allow_pickle=False)


def clip_facts(clip: Clip, start_s: float, recipe: Recipe) -> bytes:
    """What `<key>.json` says of a clip, for readers that know nothing of us. No caption: captions may change."""
    facts = {
        "key": clip.key,
        "video": clip.video,
        "start_s": start_s,
        "fps": clip.fps,
        "height": clip.height,
        "width": clip.width,
        "num_frames": clip.num_frames,
        "valid_frames": clip.valid_frames,
        "num_chunks": clip.num_chunks,
        "posterior": recipe.latent.posterior,
        "recipe": recipe.fingerprint(),
    }
    return json.dumps(facts).encode()
