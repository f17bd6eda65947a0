"""Members are plain npy and JSON: the same content gives the same bytes, and pickle is refused."""

import io
import json

import numpy as np
import pytest

from models.vae import load_vae
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample, read_array
from pipeline.shard import Member

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 96),), max_chunks=3, tail="drop")
CLIP = Clip("k-00000000-64x96", "64x96/0000-000000", "k", 34, 2, 34, 34, 23.976, 64, 96, 0.0, 9.0)


@pytest.mark.parametrize("shape", [(16, 5, 8, 12), (0, 256), (1,)])
def test_an_array_comes_back_as_it_was(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    again = read_array(array_bytes(array))
    assert again.dtype == array.dtype and again.shape == shape
    assert np.array_equal(again, array)


def test_any_numpy_reads_it() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert np.array_equal(np.load(io.BytesIO(array_bytes(array)), allow_pickle=False), array)


def test_equal_arrays_give_equal_bytes_however_they_lie_in_memory() -> None:
    array = np.arange(24, dtype=np.float16).reshape(4, 6)
    assert array_bytes(np.asfortranarray(array)) == array_bytes(array)
    assert array_bytes(np.repeat(array, 2, axis=1)[:, ::2]) == array_bytes(array)


def test_pickled_objects_are_neither_written_nor_read() -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="(?i)object arrays"):
        array_bytes(objects)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="(?i)object arrays"):
        read_array(buffer.getvalue())


def test_facts_tell_a_stranger_what_the_clip_is() -> None:
    assert json.loads(clip_facts(CLIP, 1.25, RECIPE)) == {
        "key": "k-00000000-64x96",
        "video": "k",
        "start_s": 1.25,
        "fps": 23.976,
        "height": 64,
        "width": 96,
        "num_frames": 34,
        "valid_frames": 34,
        "num_chunks": 2,
        "posterior": "mean",
        "recipe": RECIPE.fingerprint(),
    }


def test_a_row_says_where_its_members_lie_how_it_looks_and_how_well_it_came_back() -> None:
    where = {"json": Member(512, 100, 7), "latent.npy": Member(1536, 640, 8)}
    row = make_sample(CLIP, CLIP.shard, 1.25, Look(0.02, 0.5, 0.3), 28.5, where)
    assert (row.latent_offset, row.latent_bytes, row.latent_crc32c) == (1536, 640, 8)
    assert (row.json_offset, row.json_bytes) == (512, 100)
    assert (row.dark, row.static, row.psnr, row.start_s) == (True, False, 28.5, 1.25)


def test_a_clip_starts_when_its_first_slot_is_shown() -> None:
    video = Video("k", "/k.mp4", "", 1, 1, "h264", 0, 64, 96, 480, 2.0, 22.0, 23.976)
    assert clip_start_s(video, CLIP) == pytest.approx(2.0 + 34 / 23.976)
