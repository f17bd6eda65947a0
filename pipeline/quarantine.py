"""The quarantine: what could not be used, at which stage and why.

One file per stage or shard, so that doing a stage again replaces what it said before.
"""

from collections.abc import Sequence

from pipeline.cache import Cache
from pipeline.records import Quarantined
from pipeline.tables import read_records, write_records


def set_aside(cache: Cache, name: str, quarantined: Sequence[Quarantined]) -> None:
    """Replace the quarantine of one stage or shard; nothing quarantined leaves no file."""
    path = cache.quarantine(name)
    if quarantined:
        write_records(path, Quarantined, quarantined)
    else:
        path.unlink(missing_ok=True)


def read_quarantine(cache: Cache) -> list[Quarantined]:
    """Everything in the quarantine, by path."""
    return sorted(read_records(cache.quarantines(), Quarantined), key=lambda one: one.path)
