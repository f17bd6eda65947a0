"""Members of a column's tars, read by offset and checked: from disks and from object stores."""

import os
from pathlib import Path

import google_crc32c

from pipeline.cache import tar_path
from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.shard import Member
from pipeline.storage import read_range

MAX_OPEN_SHARDS = 128  # per reader; systems allow about a thousand open files


class Damaged(Refused):
    """A member whose bytes are not those that were written."""


class TarReader:
    """Reads exactly the bytes of members; keeps the tars of a disk open."""

    def __init__(self, column: Place) -> None:
        self.column = column
        self._handles: dict[Path, int] = {}

    def read(self, shard: str, member: Member) -> bytes:
        """The content of a member. Damaged where it is not what its checksum says, Refused where its tar is gone."""
        path = tar_path(self.column, shard)
        try:
            if isinstance(path, Path):
                content = os.pread(self._handle(path), member.num_bytes, member.offset)
            else:
                content = read_range(path, member.offset, member.num_bytes)
        except FileNotFoundError as error:
            raise Refused(f"{path}: in the index but gone; run `encode` and `text` again") from error
        if len(content) != member.num_bytes or google_crc32c.value(content) != member.crc32c:
            raise Damaged(
                f"{path}: the member at byte {member.offset} is damaged (its checksum is not the sidecar's); "
                f"run `verify --repair`, then `encode` and `text` again"
            )
        return content

    def _handle(self, path: Path) -> int:
        handle = self._handles.pop(path, None)
        if handle is None:
            handle = os.open(path, os.O_RDONLY)
        self._handles[path] = handle  # the newest last
        if len(self._handles) > MAX_OPEN_SHARDS:
            os.close(self._handles.pop(next(iter(self._handles))))
        return handle

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}}  # workers open their own
