"""What was read from object stores, kept on this machine for all its processes, in a bounded folder."""

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.location import Place

logger = logging.getLogger(__name__)
BLOCK = 4096  # bytes, of most file systems
SHARE = 64  # a process may write this part of the room before it looks again: 16 together stay within a quarter of it
SPARE = 0.05  # of the disk, left to others


class ShardCache:
    """For each tar a sparse file, in which the members that were read lie where they lie in the tar.

    Nothing says which these are: bytes that are missing, half written or of an older tar do not have the checksum that
    the reader wants. So processes need not agree on anything, and who does not find a member here asks the store. Files
    are opened for each read, in a few microseconds, and may be removed at any time: who has one open reads to its end,
    and what is written to it is lost.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = Lock()
        self._left = 0  # bytes that this process may write before it looks how many are there
        self._is_off = False

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.max_bytes)  # a lock stays in its process

    def read(self, tar: Place, offset: int, buffers: Sequence[Any]) -> int:
        """Fill buffers, one after the other, from a place in a tar: how many bytes are there, right ones or not."""
        try:
            handle = os.open(self._path(tar), os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            os.utime(handle)  # that it was used: the system may not note when a file is read
            return os.preadv(handle, buffers, offset)
        finally:
            os.close(handle)

    def write(self, tar: Place, offset: int, content: bytes) -> None:
        """Keep a part of a tar, if there is room for it."""
        if not self._has_room(len(content) + 2 * BLOCK):
            return
        try:
            handle = os.open(self._path(tar), os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(handle, content, offset)
            finally:
                os.close(handle)
        except OSError as error:
            self._go_without(error.strerror or str(error))

    def _path(self, tar: Place) -> Path:
        return self.folder / sha256(str(tar).encode()).hexdigest()[:32]

    def _has_room(self, num_bytes: int) -> bool:
        """Whether so much may be written, if need be in the place of what was not used for longest."""
        with self._lock:
            self._left -= num_bytes
            if self._left < 0 and not self._is_off:
                free = self._sweep()
                self._left = min(free, self.max_bytes // SHARE) - num_bytes
                if free < num_bytes:
                    self._go_without(f"found room for {max(0, free)} bytes, wanted {num_bytes}")
            return not self._is_off

    def _sweep(self) -> int:
        """Remove files, those first that were not used for longest, until a quarter of the room is free: bytes free."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # others sweep too
                stat = entry.stat()
                found.append((stat.st_mtime_ns, stat.st_blocks * 512, Path(entry.path)))
        used, disk = sum(num_bytes for _, num_bytes, _ in found), shutil.disk_usage(self.folder)
        room = min(self.max_bytes, used + disk.free - int(SPARE * disk.total))
        for _, num_bytes, path in sorted(found):
            if used <= room * 3 // 4:
                break
            path.unlink(missing_ok=True)
            used -= num_bytes
        return room - used

    def _go_without(self, reason: str) -> None:
        """Write nothing more, and say so once; what is there is still read."""
        if not self._is_off:
            self._is_off = True
            logger.warning("%s: %s; reading on without, set TMPDIR or train.shard_cache_bytes", self.folder, reason)
