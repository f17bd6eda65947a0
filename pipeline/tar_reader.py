"""Members of a column's tars, read by offset and checked: from disks and from object stores."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np

from pipeline.cache import tar_path
from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.sample import npy_header
from pipeline.shard import Member
from pipeline.shard_cache import ShardCache
from pipeline.storage import read_range

MAX_OPEN = 128  # tars; systems allow about a thousand open files
TRIES = 2  # at a store: what was damaged on the way may come whole the next time


class Damaged(Refused):
    """A member whose bytes are not those that were written."""


class TarReader:
    """Reads exactly the bytes of members, in any thread.

    The tars of a disk stay open, `max_open` of them; what is read from a store goes into `shard_cache`.
    """

    def __init__(self, column: Place, shard_cache: ShardCache | None = None, max_open: int = MAX_OPEN) -> None:
        self.column, self.shard_cache, self.max_open = column, shard_cache, max_open
        self._open: dict[str, io.FileIO] = {}  # the one used last at the end
        self._lock = Lock()

    def __reduce__(self) -> tuple:
        return type(self), (self.column, self.shard_cache, self.max_open)  # open files stay in their process

    def read(self, shard: str, member: Member) -> bytes:
        """The content of a member. Damaged where it is not what its checksum says, Refused where its tar is gone."""
        try:
            content = np.empty(member.num_bytes, np.uint8)
        except (MemoryError, ValueError) as error:  # no writer of ours has made such an index
            raise self._damaged(shard, member, f"cannot have {member.num_bytes} bytes") from error
        self._fill([content], shard, member)
        return content.tobytes()

    def read_array(self, shard: str, member: Member, array: np.ndarray) -> None:
        """Fill a contiguous array from its .npy member. As above; Damaged too where shape or type are others."""
        wanted = npy_header(array.shape, array.dtype)
        header = np.empty(len(wanted), np.uint8)
        if member.num_bytes == len(wanted) + array.nbytes:
            self._fill([header, array], shard, member)
            if header.tobytes() == wanted:
                return
        raise self._damaged(shard, member, f"is no array of {array.dtype} {array.shape}")

    def _fill(self, buffers: list[Any], shard: str, member: Member) -> None:
        """Fill arrays, one after the other, with the content of a member."""
        if member.offset < 0:
            raise self._damaged(shard, member, "cannot lie there")
        try:
            if isinstance(self.column, Path):
                file = self._opened(shard)
                is_whole = _is_whole(os.preadv(file.fileno(), buffers, member.offset), buffers, member)
            else:
                is_whole = self._fill_from_store(buffers, tar_path(self.column, shard), member)
        except FileNotFoundError as error:
            told = f"{tar_path(self.column, shard)}: in the index but gone; run `encode` and `text` again"
            raise Refused(told) from error
        if not is_whole:
            raise self._damaged(shard, member, "is damaged (its checksum is not the sidecar's)")

    def _fill_from_store(self, buffers: list[Any], tar: Place, member: Member) -> bool:
        """As above: whether it is whole."""
        cache = self.shard_cache
        if cache and _is_whole(cache.read(tar, member.offset, buffers), buffers, member):
            return True
        for _ in range(TRIES):
            content = read_range(tar, member.offset, member.num_bytes)
            if _is_whole(_scatter(content, buffers), buffers, member):
                if cache:
                    cache.write(tar, member.offset, content)
                return True
        return False

    def _damaged(self, shard: str, member: Member, problem: str) -> Damaged:
        return Damaged(
            f"{tar_path(self.column, shard)}: the member at byte {member.offset} {problem}; "
            f"run `verify --repair`, then `encode` and `text` again"
        )

    def _opened(self, shard: str) -> io.FileIO:
        """A tar of a disk, opened; it stays open for who holds it, also when it is no longer kept."""
        with self._lock:
            file = self._open.pop(shard, None)
            if file is None:
                file = open(str(tar_path(self.column, shard)), "rb", buffering=0)  # noqa: SIM115
            self._open[shard] = file
            if len(self._open) > self.max_open:
                del self._open[next(iter(self._open))]
            return file


def _is_whole(num_read: int, buffers: Sequence[np.ndarray], member: Member) -> bool:
    """Whether arrays that were filled with so many bytes hold what was written."""
    checksum = 0
    if num_read == member.num_bytes:
        for buffer in buffers:
            checksum = google_crc32c.extend(checksum, buffer)
    return num_read == member.num_bytes and checksum == member.crc32c


def _scatter(content: bytes, buffers: Sequence[np.ndarray]) -> int:
    """Copy bytes to arrays, one after the other, if there are enough; returns how many there are."""
    at = 0
    if len(content) >= sum(buffer.nbytes for buffer in buffers):
        for buffer in buffers:
            buffer[...] = np.ndarray(buffer.shape, buffer.dtype, content, at)
            at += buffer.nbytes
    return len(content)
