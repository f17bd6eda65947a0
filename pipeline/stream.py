"""A cache as a plain WebDataset pipeline, for people with a trainer of their own."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tarfile import TarError
from typing import Any

import google_crc32c
import pyarrow as pa
from webdataset import shardlists, tariterators
from webdataset.compat import FluidWrapper

from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.index import check_index
from pipeline.location import Place, place_of
from pipeline.plan import read_tombstones
from pipeline.recipe import read_recipe
from pipeline.records import Sample, TextSample
from pipeline.sample import read_array
from pipeline.tables import read_parts, read_table

READ_BYTES = 8 << 20  # asked of an object store at once
INDEX_ROWS = 1 << 20  # of the index, read at once
DECODERS: dict[str, Callable[[bytes], Any]] = {  # all that a cache has; a member of another kind is refused
    "latent.npy": read_array,
    "json": json.loads,
    "text.npy": read_array,
    "txt": bytes.decode,
}
Plain = dict[str, Any]  # a sample: its `__key__`, and its members by ending


def stream(cache: Cache | str | Path, text_encoder: str | None = None) -> FluidWrapper:
    """A cache, or the path or URI of one -> its clips as dicts, in the order of the index.

    Each has `__key__`, `latent.npy` (c, t, h, w) float16 and `json`; with a text encoder's column also `text.npy`
    (tokens, dim) float16 and `txt`. Clips of removed videos are left out. What follows is WebDataset's: `.shuffle`,
    `.map`, `.batched`. Whole shards go to each node and DataLoader worker. From an object store, DataLoader workers
    have to be spawned, not forked. Refused where a column is not complete, and later where a member is damaged.
    """
    cache = cache if isinstance(cache, Cache) else Cache(place_of(cache))
    shards = _shards(cache, text_encoder)
    read = partial(_read_shards, cache, text_encoder, frozenset(read_tombstones(cache)))
    pipeline = FluidWrapper(partial(iter, shards))
    for stage in (shardlists.split_by_node, shardlists.split_by_worker, read):
        pipeline.append(stage)
    return pipeline


def _shards(cache: Cache, text_encoder: str | None) -> list[str]:
    """The shards of the index, in its order. Refused where the text column has others."""
    recipe = read_recipe(cache)
    check_index(cache.index, recipe, "encode")
    shards = _distinct(cache.index, Sample)
    if text_encoder is not None:
        text_index = cache.text_index(text_encoder)
        check_index(text_index, recipe, "text")
        if _distinct(text_index, TextSample) != shards:
            raise Refused(f"{text_index}: its shards are not those of {cache.index}; run `text`")
    return shards


def _distinct(index: Place, row_type: type) -> list[str]:
    parts = read_parts(index, row_type, ["shard"], INDEX_ROWS)
    return list(dict.fromkeys(shard for part in parts for shard in part["shard"].unique().to_pylist()))


def _read_shards(
    cache: Cache, text_encoder: str | None, removed: frozenset[str], shards: Iterable[str]
) -> Iterator[Plain]:
    """Names of shards -> the samples in them, both columns joined by key."""
    for shard in shards:
        sidecar = _sidecar(cache.latents, shard, Sample)
        left = {key for key, video in zip(*_columns(sidecar, "key", "video")) if video not in removed}
        if not left:
            continue
        latents = _read_tar(cache.latents, shard, sidecar, "latent")
        if text_encoder is None:
            yield from (sample for sample in latents if sample["__key__"] in left)
            continue
        column = cache.text(text_encoder)
        texts = _read_tar(column, shard, _sidecar(column, shard, TextSample), "text")
        for sample, text in zip_longest(latents, texts, fillvalue={}):
            if sample.get("__key__") != text.get("__key__"):
                raise Refused(f"{tar_path(column, shard)}: has not the keys of the latents; run `verify --repair`")
            if sample["__key__"] in left:
                yield {**sample, **text}


def _sidecar(column: Place, shard: str, row_type: type) -> pa.Table:
    path = sidecar_path(column, shard)
    try:
        return read_table(path, row_type)
    except FileNotFoundError as error:
        raise Refused(f"{path}: in the index but gone; run `encode` and `text` again") from error


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _read_tar(column: Place, shard: str, sidecar: pa.Table, member: str) -> Iterator[Plain]:
    """The samples of a tar as WebDataset reads them, decoded. Refused where its bytes are not those of the sidecar."""
    path, checksums = tar_path(column, shard), dict(zip(*_columns(sidecar, "key", f"{member}_crc32c")))
    repair = "run `verify --repair`, then `encode` and `text` again"
    num_read = 0
    try:
        with path.open("rb", READ_BYTES) as file:
            files = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            for raw in tariterators.group_by_keys(files):
                key, num_read = raw["__key__"], num_read + 1
                if google_crc32c.value(raw.get(f"{member}.npy", b"")) != checksums.get(key):
                    raise Refused(f"{path}: {key}.{member}.npy is not what its sidecar says; {repair}")
                yield {"__key__": key} | {name: _decode(path, key, name, raw[name]) for name in raw if name[:2] != "__"}
    except FileNotFoundError as error:
        raise Refused(f"{path}: in the index but gone; run `encode` and `text` again") from error
    except TarError as error:
        raise Refused(f"{path}: no tar, or a damaged one: {error.args[0]}; {repair}") from error
    if num_read < len(checksums):
        raise Refused(f"{path}: found {num_read} samples, wanted {len(checksums)}; {repair}")


def _decode(path: Place, key: str, ending: str, content: bytes) -> Any:
    if ending not in DECODERS:
        known = ", ".join(DECODERS)
        raise Refused(f"{path}: found {key}.{ending}, wanted {known}; others, such as pickles, are never opened")
    try:
        return DECODERS[ending](content)
    except ValueError as error:
        raise Refused(f"{path}: {key}.{ending} cannot be read: {error}; run `verify --repair`") from error
