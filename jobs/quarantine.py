"""`quarantine list` and `quarantine retry`: what could not be used and why, and how it is tried again."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from jobs.config import RunConfig
from jobs.events import Events
from jobs.progress import say
from pipeline.cache import Cache, sidecar_path
from pipeline.quarantine import read_quarantine, set_aside
from pipeline.records import Quarantined


def list_quarantine(config: RunConfig, paths: str, full: bool) -> None:
    """Print what is in the quarantine, of paths that match a pattern; with `full` all that decoders wrote."""
    chosen = _matching(config.cache, paths)
    for one in chosen:
        say(describe(one, full))
    say(f"quarantine: {len(chosen)} inputs in {config.cache.root}")


def describe(one: Quarantined, full: bool) -> str:
    """The path, and below it stage, attempts, shard, reason and what the decoder wrote: its last line, or all."""
    attempts = f"{one.attempts} attempts" if one.attempts != 1 else "1 attempt"
    where = f", {one.shard}" if one.shard else ""
    lines = [one.path, f"  {one.stage}, {attempts}{where}: {one.reason}"]
    written = one.stderr.splitlines()
    return "\n".join(lines + [f"    {line}" for line in (written if full else written[-1:])])


def retry_quarantine(config: RunConfig, paths: str) -> None:
    """Have `scan` and `encode` try again what is in the quarantine, of paths that match a pattern.

    What `scan` set aside is forgotten. A shard that went on without a video loses its sidecar, so that `encode` does
    it again whole. `plan` looks at every video that it has not planned whenever it runs.
    """
    cache = config.cache
    chosen = _matching(cache, paths)
    shards = sorted({one.shard for one in chosen if one.shard})
    scanned = [one for one in chosen if one.stage == "scan"]
    for shard in shards:
        redo_shard(cache, shard)
    if scanned:
        set_aside(cache, "scan", [one for one in read_quarantine(cache) if one.stage == "scan" and one not in scanned])
    Events(cache.events, "quarantine").write("retry", shards=shards, scanned=[one.path for one in scanned])
    verbs = ["scan", "plan"] * bool(scanned) + ["encode", "text"] * bool(scanned or shards)
    then = f"; now run: latentmill {', '.join(verbs)}" if verbs else ""
    say(f"quarantine: {len(scanned)} files to be scanned again, {len(shards)} shards to be encoded again{then}")


def redo_shard(cache: Cache, shard: str) -> None:
    """Make `encode` do a shard again. The quarantine goes last: until then it still says why the shard is missing.

    The index goes first, for it must not point into a tar that is about to change; `encode` merges it anew.
    """
    cache.index.unlink(missing_ok=True)
    sidecar_path(cache.latents, shard).unlink(missing_ok=True)
    set_aside(cache, shard, [])


def _matching(cache: Cache, paths: str) -> Sequence[Quarantined]:
    return [one for one in read_quarantine(cache) if fnmatchcase(one.path, paths)]
