"""Samples -> one tar and its sidecar. Identical samples give byte-identical files."""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import google_crc32c

from pipeline.cache import sidecar_path, tar_path
from pipeline.location import Place
from pipeline.storage import publishing, size_of, sweep_folder
from pipeline.tables import Unreadable, read_metadata, write_records

Row = TypeVar("Row")
BLOCK = tarfile.BLOCKSIZE
LARGE = 1 << 16  # bytes, worth the while of another thread


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


class ShardWriter:
    """A shard's tar as it is written, sample by sample; nobody sees it before `writing_shard` has published it.

    Python's tarfile makes the headers. It would also copy the contents, 10 KB at a time, which takes longer than
    hashing and writing them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.facts: dict[str, str] = {}  # what the sidecar's footer says of the tar, once that is finished
        self._file = file
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None
        self._num_bytes = 0

    def add(self, sample: Packed) -> dict[str, Member]:
        """Write a sample; returns where each of its members lies, by ending."""
        return {
            ending: self._add(f"{sample.key}.{ending}", content) for ending, content in sorted(sample.members.items())
        }

    def finish(self) -> None:
        """End the tar: two blocks of zeros, and more of them up to a whole record."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._num_bytes % tarfile.RECORDSIZE))
        self._wait()
        self._hasher.shutdown()
        self.facts = {"tar_sha256": self._digest.hexdigest(), "tar_bytes": str(self._num_bytes)}

    def _add(self, name: str, content: bytes) -> Member:
        """A header, the content, and zeros up to a whole block."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(content), 0o644
        header.uname = header.gname = "root"
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        member = Member(self._num_bytes, len(content), google_crc32c.value(content))
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return member

    def _write(self, data: bytes) -> None:
        """Hashing takes longer than writing, so a large piece is hashed beside what is done next."""
        self._wait()
        if len(data) < LARGE:
            self._digest.update(data)
        else:
            self._hashing = self._hasher.submit(self._digest.update, data)
        self._file.write(data)
        self._num_bytes += len(data)

    def _wait(self) -> None:
        """Until all that was written is hashed."""
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None


@contextmanager
def writing_shard(column: Place, shard: str) -> Iterator[ShardWriter]:
    """A tar to write samples to; at the end of the block it is `<shard>.tar`, whole, which `commit_shard` commits."""
    with publishing(tar_path(column, shard)) as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish()
        # An old one must not vouch for the new tar. One of another writer of the same shard vouches for the same bytes:
        # it stays, for this writer may be killed before it has committed them.
        if not _is_vouched_for(column, shard, writer.facts):
            sidecar_path(column, shard).unlink(missing_ok=True)


def commit_shard(column: Place, shard: str, row_type: type[Row], rows: Sequence[Row], footer: dict[str, str]) -> None:
    """Publish `<shard>.parquet`, which commits the tar that was written before it.

    Where another writer of the same shard was faster, which happens where Ray takes a living worker for dead, its
    sidecar is as good if it vouches for the same bytes. If not, nobody knows whose tar is there: the shard is not
    committed.
    """
    sidecar = sidecar_path(column, shard)
    try:
        write_records(sidecar, row_type, rows, footer, replace=False)
    except FileExistsError:
        if _is_vouched_for(column, shard, footer):
            write_records(sidecar, row_type, rows, footer)  # it may be an old one that states other facts
        else:
            sidecar.unlink(missing_ok=True)


def _is_vouched_for(column: Place, shard: str, facts: dict[str, str]) -> bool:
    """Whether there is a sidecar for a tar of the very bytes that `facts` tell of."""
    found = committed_footer(column, shard)
    return found is not None and found["tar_sha256"] == facts["tar_sha256"]


def sweep_shards(column: Place, shards: Iterable[str]) -> None:
    """Remove what killed writers of shards left aside, of those beside them too."""
    for folder in {tar_path(column, shard).parent for shard in shards}:
        sweep_folder(folder)


def is_committed(column: Place, shard: str, facts: dict[str, str]) -> bool:
    """Whether a shard's sidecar is there, says `facts` in its footer, and has the tar that it was written for."""
    footer = committed_footer(column, shard)
    return footer is not None and all(footer.get(name) == value for name, value in facts.items())


def committed_footer(column: Place, shard: str) -> dict[str, str] | None:
    """The footer of a committed shard's sidecar; None where that is missing or damaged, or not of the tar's size."""
    try:
        footer = read_metadata(sidecar_path(column, shard))
    except (FileNotFoundError, Unreadable):
        return None
    return footer if footer.get("tar_bytes") == str(size_of(tar_path(column, shard))) else None
