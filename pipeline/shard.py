"""Samples -> one tar and its sidecar. Identical samples give byte-identical files."""

import hashlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import google_crc32c
from webdataset.writer import TarWriter

from pipeline.cache import sidecar_path, tar_path
from pipeline.storage import publish
from pipeline.tables import read_metadata, write_records

Row = TypeVar("Row")


@dataclass(frozen=True)
class Member:
    """Where one file of a tar lies, and the checksum of its content."""

    offset: int
    num_bytes: int
    crc32c: int


@dataclass(frozen=True)
class Packed:
    """A sample as it goes into a tar: its key and the content of its members by ending (a tar has them sorted)."""

    key: str
    members: dict[str, bytes]


def write_shard(
    column: Path,
    shard: str,
    samples: Sequence[Packed],
    row_type: type[Row],
    rows: Callable[[dict[str, Member]], Sequence[Row]],
    facts: dict[str, str],
) -> Sequence[Row]:
    """Publish `<shard>.tar`, then `<shard>.parquet`, which commits it; returns the rows of the second.

    `rows` makes them from where each member lies (by name, `<key>.<ending>`); `facts` and the tar's SHA-256 go into
    its footer.
    """
    digest = hashlib.sha256()
    where: dict[str, Member] = {}

    def write(file: BinaryIO) -> None:
        where.update(_write_tar(file, samples))
        file.seek(0)
        while block := file.read(1 << 20):
            digest.update(block)

    sidecar_path(column, shard).unlink(missing_ok=True)  # an old one must not vouch for the new tar
    publish(tar_path(column, shard), write)
    footer = {**facts, "tar_sha256": digest.hexdigest()}
    made = rows(where)
    write_records(sidecar_path(column, shard), row_type, made, footer)
    return made


def _write_tar(file: BinaryIO, samples: Sequence[Packed]) -> dict[str, Member]:
    writer = TarWriter(file, user="root", group="root", mode=0o644, encoder=False, mtime=0, format=tarfile.USTAR_FORMAT)
    for sample in samples:
        writer.write({"__key__": sample.key, **sample.members})
    writer.close()
    contents = {f"{sample.key}.{ending}": data for sample in samples for ending, data in sample.members.items()}
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        return {
            member.name: Member(member.offset_data, member.size, google_crc32c.value(contents[member.name]))
            for member in tar
        }


def is_committed(column: Path, shard: str, facts: dict[str, str]) -> bool:
    """Whether a shard's sidecar and tar are there and its footer says `facts`."""
    sidecar = sidecar_path(column, shard)
    if not sidecar.exists() or not tar_path(column, shard).exists():
        return False
    found = read_metadata(sidecar)
    return all(found.get(name) == value for name, value in facts.items())
