"""`text`: captions -> the text column, shard by shard, only where captions or encoder changed."""

from pathlib import Path
from typing import Any

import ray
import torch

from cluster import runtime
from jobs.config import RunConfig
from jobs.configured import configured_recipe, describe_configured_text
from jobs.events import Events
from jobs.plan import read_manifest, read_plan
from jobs.progress import progress, say
from models.text.interface import TextDescription
from pipeline.cache import sidecar_path
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.plan import shards_of
from pipeline.recipe import check_recipe
from pipeline.records import TextSample
from pipeline.text_column import TextShard, is_current, text_origin, text_shard, write_text_origin, write_text_shard


def text(config: RunConfig) -> int:
    """Encode the captions of every shard whose text is missing or not of today's captions."""
    cache = config.cache
    check_recipe(cache, configured_recipe(config))
    shards = list(shards_of(read_plan(cache)))
    behind = [shard for shard in shards if not sidecar_path(cache.latents, shard).exists()]
    if behind or not shards:
        raise Refused(f"{cache.latents}: {len(behind)} of {len(shards)} planned shards are missing; run `encode` first")
    encoder = describe_configured_text(config)
    origin = text_origin(encoder, config.text.path)
    column = cache.text(encoder.name)
    videos = {video.id: video for video in read_manifest(cache)}
    works = [text_shard(cache, shard, videos, origin.fingerprint) for shard in shards]
    stale = [work for work in works if not is_current(column, work)]
    if stale:
        _write_shards(config, encoder, stale)
    merge_index(cache.text_index(encoder.name), column, shards, TextSample)
    write_text_origin(cache, origin)
    captions = sum(len(set(work.captions)) for work in stale)
    Events(cache.events, "text").write("done", encoder=encoder.name, shards=len(stale), captions=captions)
    say(f"text: {len(stale)} shards with {captions} captions encoded, {len(works) - len(stale)} were current")
    return 0


def _write_shards(config: RunConfig, encoder: TextDescription, works: list[TextShard]) -> None:
    runtime.connect(config.cluster.address)
    num_gpus = runtime.count("GPU")
    workers = min(len(works), num_gpus or runtime.count_nodes())
    actor: Any = TextWriter

    def start_writer() -> Any:
        return actor.options(num_gpus=min(1, num_gpus)).remote(encoder, config.cache.text(encoder.name))

    with progress("text", len(works), "shards") as bar:
        for _ in runtime.share_out(start_writer, workers, works):
            bar.advance()


@ray.remote(num_cpus=1)
class TextWriter:
    """Holds a text encoder and writes one shard's text at a time."""

    def __init__(self, encoder: TextDescription, column: Path) -> None:
        self.encoder = encoder.load().to("cuda" if torch.cuda.is_available() else "cpu")
        self.column = column

    def do(self, work: TextShard, upcoming: TextShard | None) -> None:
        """Write the text of `work`; there is nothing to prepare for the next."""
        write_text_shard(self.column, work, self.encoder)
