"""Samples -> one tar and its sidecar. Identical samples give byte-identical files."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import google_crc32c
import pyarrow as pa
from webdataset.writer import TarWriter

from pipeline.cache import sidecar_path, tar_path
from pipeline.location import Place
from pipeline.storage import publishing, size_of, sweep
from pipeline.tables import read_metadata, write_records

Row = TypeVar("Row")
BLOCK = tarfile.BLOCKSIZE


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


class _Hashing:
    """Writes through to a file and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class ShardWriter:
    """A shard's tar as it is written, sample by sample; nobody sees it before `writing_shard` has published it."""

    def __init__(self, file: BinaryIO) -> None:
        self.facts: dict[str, str] = {}  # what the sidecar's footer says of the tar, once that is finished
        self._file: Any = _Hashing(file)
        self._tar: Any = TarWriter(
            self._file, user="root", group="root", mode=0o644, encoder=False, mtime=0, format=tarfile.USTAR_FORMAT
        )

    def add(self, sample: Packed) -> dict[str, Member]:
        """Write a sample; returns where each of its members lies, by ending."""
        where: dict[str, Member] = {}
        offset = self._tar.tarstream.offset
        for ending, content in sorted(sample.members.items()):
            where[ending] = Member(offset + BLOCK, len(content), google_crc32c.value(content))
            offset += BLOCK + -(-len(content) // BLOCK) * BLOCK
        self._tar.write({"__key__": sample.key, **sample.members})
        if self._tar.tarstream.offset != offset:
            raise RuntimeError(f"{sample.key}: the tar is at byte {self._tar.tarstream.offset}, expected {offset}")
        return where

    def finish(self) -> None:
        """End the tar."""
        self._tar.close()
        self.facts = {"tar_sha256": self._file.digest.hexdigest(), "tar_bytes": str(self._file.num_bytes)}


@contextmanager
def writing_shard(column: Place, shard: str) -> Iterator[ShardWriter]:
    """A tar to write samples to; at the end of the block it is `<shard>.tar`, whole, which `commit_shard` commits."""
    sweep(tar_path(column, shard))
    sweep(sidecar_path(column, shard))
    with publishing(tar_path(column, shard)) as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish()
        sidecar_path(column, shard).unlink(missing_ok=True)  # an old one must not vouch for the new tar


def commit_shard(column: Place, shard: str, row_type: type[Row], rows: Sequence[Row], footer: dict[str, str]) -> None:
    """Publish `<shard>.parquet`, which commits the tar that was written before it.

    Where another writer of the same shard was faster, which happens where Ray takes a living worker for dead, its
    sidecar stays if it vouches for the same bytes; else ours does, because ours is the tar that was written last.
    """
    sidecar = sidecar_path(column, shard)
    try:
        write_records(sidecar, row_type, rows, footer, replace=False)
    except FileExistsError:
        if read_metadata(sidecar).get("tar_sha256") != footer["tar_sha256"]:
            write_records(sidecar, row_type, rows, footer)


def is_committed(column: Place, shard: str, facts: dict[str, str]) -> bool:
    """Whether a shard's sidecar is there, says `facts` in its footer, and has the tar that it was written for."""
    footer = committed_footer(column, shard)
    return footer is not None and all(footer.get(name) == value for name, value in facts.items())


def committed_footer(column: Place, shard: str) -> dict[str, str] | None:
    """The footer of a committed shard's sidecar; None where there is none, or its tar is gone or of another size."""
    try:
        footer = read_metadata(sidecar_path(column, shard))
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return footer if footer.get("tar_bytes") == str(size_of(tar_path(column, shard))) else None
