"""`verify`: read a cache again, whole, on Ray, and tell what is broken; `--repair` has just that done again."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, compress, groupby
from typing import Any

import ray

from cluster.actors import share_out
from cluster.capacity import capacity
from jobs.config import RunConfig
from jobs.encode import shard_facts
from jobs.enter import enter
from jobs.events import Events
from jobs.placement import ask_verifying, room
from jobs.plan import read_manifest, read_plan
from jobs.progress import progress, say, say_waiting
from models.text import TEXT_ENCODERS
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.plan import latent_bytes, shards_of
from pipeline.recipe import Recipe, read_recipe
from pipeline.records import Clip, Sample, TextSample, Video
from pipeline.storage import in_parallel, list_files
from pipeline.tables import Unreadable, read_metadata
from pipeline.text_column import TextOrigin, read_text_origin, text_shard
from pipeline.verify import Broken, PlannedShard, check_index, check_latents, check_null, check_text

TASK_BYTES = 2**28  # of latents that are read in one go: seconds of work
TOLD = 50  # problems; the events have them all


@dataclass(frozen=True)
class Column:
    """Latents, or the text of one encoder."""

    name: str
    place: Place
    index: Place
    row_type: type


@dataclass(frozen=True)
class Problem:
    """Something in a column that is not as it should be."""

    column: str
    shard: str  # or the name of one of the column's own files
    what: str
    found: str
    wanted: str
    records: tuple[Place, ...]  # that vouch for it; without them it is done again

    def __str__(self) -> str:
        return f"{self.column} {self.shard}: {self.what}: found {self.found}, wanted {self.wanted}"


def verify(config: RunConfig, repair: bool = False) -> int:
    """Read every committed shard of latents and text again; Refused where something is broken, unless it is repaired.

    To repair is to forget: a broken shard loses its sidecar, and the column its index, so that `encode` or `text` does
    just that again.
    """
    cache, recipe = config.cache, read_recipe(config.cache)
    planned = shards_of(_read_plan(cache, recipe))
    committed = _with_sidecar(cache.latents, list(planned))
    if not committed:
        raise Refused(f"{cache.latents}: none of {len(planned)} planned shards is committed; run `encode` first")
    origins, problems = read_origins(cache)
    videos = {video.id: video for video in read_manifest(cache)}
    works = [planned_shard(shard, planned[shard], videos, recipe) for shard in committed]
    problems += _check_shards(config, recipe, origins, works)
    problems += check_columns(cache, origins, committed, {problem.column for problem in problems})
    for told in [*_unfinished(cache, origins, list(planned), committed), *_left_over(cache, origins, list(planned))]:
        say(f"verify: {told}")
    if repair:
        uncommit(problems)
    _report(config, len(committed), problems, repair)
    return 0


def _read_plan(cache: Cache, recipe: Recipe) -> list[Clip]:
    """The plan; Refused where it is of another recipe than the cache."""
    for generation in cache.plans():
        if (found := read_metadata(generation).get("recipe", "nothing")) != recipe.fingerprint():
            raise Refused(
                f"{generation}: planned by recipe {found[:16]}, {cache.recipe} is {recipe.fingerprint()[:16]}; "
                f"restore the file that is wrong"
            )
    return read_plan(cache)


def _with_sidecar(column: Place, shards: Sequence[str]) -> list[str]:
    return list(compress(shards, in_parallel(lambda shard: sidecar_path(column, shard).exists(), shards)))


def _latents(cache: Cache) -> Column:
    return Column("latents", cache.latents, cache.index, Sample)


def _text(cache: Cache, encoder: str) -> Column:
    return Column(f"text/{encoder}", cache.text(encoder), cache.text_index(encoder), TextSample)


def read_origins(cache: Cache) -> tuple[list[TextOrigin], list[Problem]]:
    """What made each text column that there is, and the problems with these records."""
    origins, problems = [], []
    for encoder in TEXT_ENCODERS:
        path, index = cache.text_origin(encoder), cache.text_index(encoder)
        if path.exists() or index.exists():
            try:
                origins.append(read_text_origin(cache, encoder))
            except Refused as error:
                told = ("the record", str(error).removeprefix(f"{path}: "), "what made the column")
                problems.append(Problem(_text(cache, encoder).name, path.name, *told, (index, path)))
    return origins, problems


def planned_shard(shard: str, clips: list[Clip], videos: dict[str, Video], recipe: Recipe) -> PlannedShard:
    """A shard of the plan, joined with the manifest."""
    known = dict.fromkeys(clip.video for clip in clips if clip.video in videos)
    facts = shard_facts(shard, clips, recipe)
    return PlannedShard(shard, tuple(clips), tuple(videos[video] for video in known), tuple(facts.items()))


def _check_shards(
    config: RunConfig, recipe: Recipe, origins: list[TextOrigin], works: list[PlannedShard]
) -> list[Problem]:
    ask = ask_verifying(config, enter(config, "verify"))
    actor: Any = Verifier

    def start_verifier() -> Any:
        return actor.options(**ask.options).remote(config.cache, recipe, origins)

    def count() -> int:
        return room(ask, capacity().possible)

    on_waiting = partial(say_waiting, "verify")
    problems: list[Problem] = []
    with progress("verify", len(works), "shards", config) as bar:
        for batch, found in share_out(start_verifier, count, _batches(works, recipe), on_waiting):
            problems += found
            bar.advance(len(batch), note=f"{len(problems)} problems" if problems else "")
    return sorted(problems, key=lambda problem: (problem.column, problem.shard))


def _batches(works: Sequence[PlannedShard], recipe: Recipe) -> Iterator[tuple[PlannedShard, ...]]:
    """Shards in groups of about TASK_BYTES of latents; a larger shard is alone."""

    def size(work: PlannedShard) -> int:
        return sum(latent_bytes(clip.num_frames, (clip.height, clip.width), recipe) for clip in work.clips)

    ends = accumulate(map(size, works))
    for _, group in groupby(zip(ends, works), key=lambda pair: pair[0] // TASK_BYTES):
        yield tuple(work for _, work in group)


@ray.remote
class Verifier:
    """Checks shards, each with its text in every column."""

    def __init__(self, cache: Cache, recipe: Recipe, origins: Sequence[TextOrigin]) -> None:
        self.cache, self.recipe, self.origins = cache, recipe, origins

    def do(self, works: Sequence[PlannedShard], upcoming: Sequence[PlannedShard] | None, turn: int) -> list[Problem]:
        """What is broken in these shards; there is nothing to prepare for the next."""
        return [problem for work in works for problem in check_shard(self.cache, self.recipe, self.origins, work)]


def check_shard(cache: Cache, recipe: Recipe, origins: Sequence[TextOrigin], work: PlannedShard) -> list[Problem]:
    """What is broken in a committed shard and in its text."""
    problems = _problems(_latents(cache), work.shard, partial(check_latents, cache, recipe, work))
    for origin in origins:
        column = _text(cache, origin.name)
        if sidecar_path(column.place, work.shard).exists():
            try:
                wanted = text_shard(cache, work.shard, {video.id: video for video in work.videos}, origin.fingerprint)
            except Unreadable:
                continue  # it is not known which keys to look for: the latents' sidecar is a problem already
            problems += _problems(column, work.shard, partial(check_text, cache, origin, wanted))
    return problems


def _problems(column: Column, shard: str, check: Callable[[], None], *records: Place) -> list[Problem]:
    """What `check` finds broken: one thing at the most."""
    try:
        check()
    except Broken as broken:
        what, found, wanted = broken.args
        vouching = (column.index, *(records or (sidecar_path(column.place, shard),)))
        return [Problem(column.name, shard, what, found, wanted, vouching)]
    return []


def check_columns(
    cache: Cache, origins: Sequence[TextOrigin], committed: Sequence[str], broken: Collection[str]
) -> list[Problem]:
    """What is broken in indexes, but those of columns that are broken anyway, and in null captions."""
    problems = []
    for origin in origins:
        null = cache.null_text(origin.name)
        problems += _problems(_text(cache, origin.name), null.name, partial(check_null, cache, origin), null)
    for column in [_latents(cache), *(_text(cache, origin.name) for origin in origins)]:
        shards = _with_sidecar(column.place, committed)
        if shards and column.name not in broken:
            check = partial(check_index, column.index, column.place, shards, column.row_type)
            problems += _problems(column, column.index.name, check, column.index)
    return problems


def _unfinished(
    cache: Cache, origins: Sequence[TextOrigin], planned: Sequence[str], committed: Sequence[str]
) -> Iterator[str]:
    """What is planned and not there yet, a line each."""
    if len(committed) < len(planned):
        yield f"{len(planned) - len(committed)} of {len(planned)} planned shards are not encoded yet"
    for origin in origins:
        column = _text(cache, origin.name)
        if missing := len(committed) - len(_with_sidecar(column.place, committed)):
            yield f"{column.name}: {missing} of {len(committed)} shards have no text yet"


def _left_over(cache: Cache, origins: Sequence[TextOrigin], planned: Sequence[str]) -> Iterator[str]:
    """Files that nothing vouches for, a line each: of writers that were killed, or of nobody. They do no harm."""
    columns = [_latents(cache), *(_text(cache, origin.name) for origin in origins)]
    for column in columns:
        folders = {sidecar_path(column.place, shard).parent for shard in planned} | {column.place, column.index.parent}
        files = [file for folder in sorted(folders, key=str) for file in list_files(folder, "")]
        there = {str(file) for file in files}
        known = {
            str(tar_path(column.place, shard)) for shard in planned if str(sidecar_path(column.place, shard)) in there
        }
        yield from (f"{file}: left by a writer that was killed" for file in files if file.name.endswith(".tmp"))
        tars = (file for file in files if file.name.endswith(".tar"))
        yield from (f"{tar}: a tar that no sidecar vouches for" for tar in tars if str(tar) not in known)


def uncommit(problems: Sequence[Problem]) -> None:
    """Forget what is broken, first the index, which must not point to what is about to change."""
    for problem in problems:
        for record in problem.records:
            record.unlink(missing_ok=True)


def _report(config: RunConfig, num_shards: int, problems: Sequence[Problem], repaired: bool) -> None:
    """Tell the problems; Refused where there are some and they are not repaired."""
    events = Events(config.cache.events, "verify")
    for problem in problems:
        facts = {name: getattr(problem, name) for name in ("column", "shard", "what", "found", "wanted")}
        events.write("problem", often=True, **facts)
    events.write("done", shards=num_shards, problems=len(problems), repaired=repaired)
    for problem in problems[:TOLD]:
        say(f"verify: {problem}")
    if len(problems) > TOLD:
        say(f"verify: {len(problems) - TOLD} more, in {config.cache.events}")
    if problems and not repaired:
        raise Refused(f"{_count(problems)}; run `verify --repair`, then `encode` and `text`")
    then = f"{_count(problems)}, forgotten; now run `encode` and `text`" if problems else "all as it should be"
    say(f"verify: {num_shards} shards read: {then}")


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
