"""Small caches with real tars, for tests that read them: latents are random by key, text is that of the captions."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from models.text.byte_encoder import ByteEncoder
from pipeline.cache import Cache
from pipeline.index import merge_index
from pipeline.location import Place
from pipeline.recipe import Recipe, bind_recipe
from pipeline.records import Sample, TextSample, Video
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed
from pipeline.tables import read_records
from pipeline.text_column import text_origin, text_shard, write_null_text, write_text_origin, write_text_shard
from pipeline.training_set import TrainingSet, open_training_set
from tests.indexes import ENCODER, RECIPE
from tests.shards import write_shard

CAPTIONS = ["a red square", "", "ein grüner Kreis", "b", "two"]  # of the videos v0 to v4, the clips' in turn
VIDEOS = {
    f"v{n}": Video(f"v{n}", f"/{n}", caption, 1, 1, "h264", 0, 99, 99, 99, 0.0, 4.0, 24.0)
    for n, caption in enumerate(CAPTIONS)
}


class Clips(NamedTuple):
    """A shard of clips that are alike."""

    count: int = 5
    num_chunks: int = 1
    num_frames: int = 17
    valid_frames: int = 17
    size: tuple[int, int] = (64, 64)  # pixels


USUAL = [Clips(), Clips(), Clips(size=(64, 96))]


def latents_of(number: int, clips: Clips, recipe: Recipe = RECIPE) -> np.ndarray:
    """What is cached of the clip `number`: (C, t, h, w) float16."""
    _, *shape = recipe.latent.latent_shape(clips.num_frames, *clips.size)
    size = (recipe.latent.stored_channels, *shape)
    return np.random.default_rng(number).normal(size=size).astype(np.float16)


def text_of(number: int) -> np.ndarray:
    """The text of the clip `number`: (tokens, dim) float16."""
    return ByteEncoder(ENCODER.dim, ENCODER.settings).encode([CAPTIONS[number % 5]])[0]


def write_cache(root: Place, shards: Sequence[Clips] = USUAL, recipe: Recipe = RECIPE, first: int = 0) -> Cache:
    """A cache of these shards, of the clips k<first>, k<first + 1>, ...; clip n is shown at 20 + n frames a second."""
    cache, names, text = Cache(root), [], ENCODER.load()
    bind_recipe(cache, recipe)
    write_null_text(cache.null_text("bytes"), text)
    write_text_origin(cache, text_origin(ENCODER, None))
    for place, clips in enumerate(shards):
        names.append(f"{clips.size[0]}x{clips.size[1]}/0000-{place:06d}")
        write_latents(cache, names[-1], clips, range(first, first + clips.count), recipe)
        write_text_shard(cache.text("bytes"), text_shard(cache, names[-1], VIDEOS, ENCODER.fingerprint()), text)
        first += clips.count
    merge_index(cache.index, cache.latents, names, Sample)
    merge_index(cache.text_index("bytes"), cache.text("bytes"), names, TextSample)
    return cache


def write_latents(cache: Cache, shard: str, clips: Clips, numbers: range, recipe: Recipe = RECIPE) -> None:
    frames = (clips.num_chunks, clips.num_frames, clips.valid_frames)

    def row(key: str, where: Mapping[str, Member]) -> Sample:
        npy, facts, number = where["latent.npy"], where["json"], int(key[1:])
        lies = (npy.offset, npy.num_bytes, npy.crc32c, facts.offset, facts.num_bytes)
        return Sample(key, shard, f"v{number % 5}", 0.0, 20.0 + number, *clips.size, *frames, *lies)

    packed = [
        Packed(f"k{number}", {"latent.npy": array_bytes(latents_of(number, clips, recipe)), "json": b"{}"})
        for number in numbers
    ]
    write_shard(cache.latents, shard, packed, Sample, row, {"recipe": recipe.fingerprint()})


def open_set(cache: Cache, recipe: Recipe = RECIPE, **asked) -> TrainingSet:
    return open_training_set(cache, recipe, "bytes", **asked)


def rows_of(cache: Cache) -> list[Sample]:
    """Of the index."""
    return read_records([cache.index], Sample)


@contextmanager
def own_scratch(folder: Path) -> Iterator[Path]:
    """A scratch folder for the block alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir()
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder
