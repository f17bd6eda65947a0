"""`text`: captions -> the text column, shard by shard, only where captions or encoder changed."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any, TypeAlias

import ray
import torch

from cluster.actors import share_out
from cluster.capacity import capacity
from jobs.config import RunConfig
from jobs.configured import configured_recipe, describe_configured_text
from jobs.enter import enter
from jobs.events import Events
from jobs.lookout import Lookout
from jobs.placement import ask_writing, one_each
from jobs.plan import read_manifest
from jobs.progress import progress, say, say_waiting
from models.text.interface import TextDescription
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.location import Place
from pipeline.plan import planned_shards
from pipeline.recipe import Recipe, check_recipe
from pipeline.records import TextSample
from pipeline.shard import is_committed, sweep_shards
from pipeline.storage import in_parallel
from pipeline.text_column import (
    TextShard,
    is_current,
    is_null_current,
    text_origin,
    text_shard,
    write_null_text,
    write_text_origin,
    write_text_shard,
)

Work: TypeAlias = TextShard | Place  # a shard, or where the null caption goes


def text(config: RunConfig, follow: bool = False) -> int:
    """Encode the captions of every committed shard whose text is missing or not of today's captions.

    With `follow` shards are waited for until `encode` has committed all that are planned, and done as they come.
    """
    cache, recipe = config.cache, configured_recipe(config)
    check_recipe(cache, recipe)
    encoder = describe_configured_text(config)
    if follow:
        _follow(config, encoder, recipe)
    planned = planned_shards(cache)
    shards = committed_shards(cache, planned, recipe)
    if not shards:
        raise Refused(f"{cache.latents}: none of {len(planned)} planned shards is committed; run `encode` first")
    stale = _encode_stale(config, encoder, shards)
    merge_index(cache.text_index(encoder.name), cache.text(encoder.name), shards, TextSample)
    left = len(planned) - len(shards)
    behind = f"; {left} of {len(planned)} shards are not encoded yet" if left else ""
    say(f"text: {_count(stale)} encoded, {len(shards) - len(stale)} shards were current{behind}")
    return 0


def _follow(config: RunConfig, encoder: TextDescription, recipe: Recipe) -> None:
    """Encode the captions of each planned shard as soon as its latents are committed."""
    cache = config.cache
    done: set[str] = set()

    def look() -> str:
        """Do what is there by now. Returns what is missing."""
        planned = planned_shards(cache)
        found = committed_shards(cache, [shard for shard in planned if shard not in done], recipe)
        if found and (stale := _encode_stale(config, encoder, found)):
            say(f"text: {_count(stale)} encoded")
        done.update(found)
        left = len(planned) - len(done)
        return f"{left} of {len(planned)} planned shards are not encoded yet (`encode`)" if left else ""

    Lookout(look, lambda message: say(f"text: {message}")).wait()


def _encode_stale(config: RunConfig, encoder: TextDescription, shards: Sequence[str]) -> list[TextShard]:
    """Encode the captions of those shards whose text is not current, and the null caption where it is not."""
    cache, origin = config.cache, text_origin(encoder, config.text.path)
    videos = {video.id: video for video in read_manifest(cache)}
    works = list(in_parallel(lambda shard: text_shard(cache, shard, videos, origin.fingerprint), shards))
    stale = find_stale(cache.text(encoder.name), works)
    null = [] if is_null_current(cache, origin) else [cache.null_text(encoder.name)]
    if stale or null:
        cache.text_index(encoder.name).unlink(missing_ok=True)  # it must not point into tars that are about to change
        _encode_all(config, encoder, [*null, *stale])
        sweep_shards(cache.text(encoder.name), [work.shard for work in stale])
    write_text_origin(cache, origin)
    captions = sum(len(set(work.captions)) for work in stale)
    Events(cache.events, "text").write("done", encoder=encoder.name, shards=len(stale), captions=captions)
    return stale


def _count(works: Sequence[TextShard]) -> str:
    return f"{len(works)} shards with {sum(len(set(work.captions)) for work in works)} captions"


def committed_shards(cache: Cache, planned: Sequence[str], recipe: Recipe) -> list[str]:
    """The shards whose latents are there, by looking for each where it should be."""
    facts = {"recipe": recipe.fingerprint()}
    there = in_parallel(lambda shard: is_committed(cache.latents, shard, facts), planned)
    return list(compress(planned, there))


def find_stale(column: Place, works: Sequence[TextShard]) -> list[TextShard]:
    """Those whose text is missing, or of other captions or another encoder."""
    current = in_parallel(lambda work: is_current(column, work), works)
    return [work for work, is_done in zip(works, current) if not is_done]


def _encode_all(config: RunConfig, encoder: TextDescription, works: Sequence[Work]) -> None:
    ask = ask_writing(config, enter(config, "text"))
    actor: Any = TextWriter

    def start_writer() -> Any:
        return actor.options(**ask.options).remote(encoder, config.cache.text(encoder.name))

    def count() -> int:
        return one_each(ask, capacity().possible)

    with progress("text", len(works), "files", config, Events(config.cache.events, "text")) as bar:
        for _ in share_out(start_writer, count, works, partial(say_waiting, "text")):
            bar.advance()


@ray.remote
class TextWriter:
    """Holds a text encoder, and writes one shard's text at a time, or the null caption."""

    def __init__(self, encoder: TextDescription, column: Place) -> None:
        self.encoder = encoder.load().to("cuda" if torch.cuda.is_available() else "cpu")
        self.column = column

    def do(self, work: Work, upcoming: Work | None, turn: int) -> None:
        """Write `work`; there is nothing to prepare for the next."""
        if isinstance(work, TextShard):
            write_text_shard(self.column, work, self.encoder)
        else:
            write_null_text(work, self.encoder)
