"""The quarantine: what could not be used, at which stage and why.

One file per stage or shard, so that doing a stage again replaces what it said before.
"""

from collections.abc import Sequence

from pipeline.cache import Cache
from pipeline.plan import read_tombstones
from pipeline.records import Quarantined
from pipeline.tables import read_records, write_records

LEAST_BAD = 20  # fewer bad videos than this stop no run, however few the good ones are


def too_many(bad: int, tried: int, max_fraction: float) -> bool:
    """Whether so many of the videos are bad that something else must be: a mount, the network, this machine."""
    return bad >= LEAST_BAD and bad > max_fraction * tried


def set_aside(cache: Cache, name: str, quarantined: Sequence[Quarantined]) -> None:
    """Replace the quarantine of one stage or shard; nothing quarantined leaves no file."""
    path = cache.quarantine(name)
    if quarantined:
        write_records(path, Quarantined, quarantined)
    else:
        path.unlink(missing_ok=True)


def read_quarantine(cache: Cache) -> list[Quarantined]:
    """Everything in the quarantine, by path, but videos that have left the source: no one waits for them."""
    removed = read_tombstones(cache)
    found = read_records(cache.quarantines(), Quarantined)
    return sorted((one for one in found if one.video not in removed), key=lambda one: one.path)
