"""Shards for tests: samples written and committed in one call; local files of a cache."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.location import Place
from pipeline.shard import Member, Packed, commit_shard, writing_shard

Row = TypeVar("Row")


def write_shard(
    column: Place,
    shard: str,
    packed: Iterable[Packed],
    row_type: type[Row],
    make_row: Callable[[str, Mapping[str, Member]], Row],
    facts: Mapping[str, str],
) -> None:
    """Write samples and commit them; `make_row` is told a sample's key and where its members lie, by ending."""
    with writing_shard(column, shard) as tar:
        rows = [make_row(sample.key, tar.add(sample)) for sample in packed]
    commit_shard(column, shard, row_type, rows, {**facts, **tar.facts})


def local(place: Place) -> Path:
    """A file of a cache that is on this machine."""
    assert isinstance(place, Path)
    return place
