"""A sample: its members as bytes (plain npy and JSON, never pickle), and its row in the sidecar."""

import io
import json
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from pipeline.chunk import frame_times
from pipeline.look import DARK, STATIC
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Sample, Video
from pipeline.shard import Member


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What `array_bytes` puts before the values of such an array."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, described)
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


def clip_start_s(video: Video, clip: Clip) -> float:
    """When the clip's first frame is shown, on the clock of its container."""
    return float(frame_times(video.start_s, clip.first_frame, 1, clip.fps)[0])


def make_sample(clip: Clip, shard: str, start_s: float, look: Look, psnr: float, where: Mapping[str, Member]) -> Sample:
    """A clip's row in the sidecar; `where` tells of each member, by its ending, where it lies."""
    latent, facts = where["latent.npy"], where["json"]
    return Sample(
        key=clip.key,
        shard=shard,
        video=clip.video,
        start_s=start_s,
        fps=clip.fps,
        height=clip.height,
        width=clip.width,
        num_chunks=clip.num_chunks,
        num_frames=clip.num_frames,
        valid_frames=clip.valid_frames,
        latent_offset=latent.offset,
        latent_bytes=latent.num_bytes,
        latent_crc32c=latent.crc32c,
        json_offset=facts.offset,
        json_bytes=facts.num_bytes,
        luminance=look.luminance,
        motion=look.motion,
        sharpness=look.sharpness,
        dark=look.luminance < DARK,
        static=clip.num_frames > 1 and look.motion < STATIC,
        psnr=psnr,
    )
