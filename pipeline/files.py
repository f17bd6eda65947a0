"""Source files on this machine and in object stores, listed and read in the same way."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import obstore

from pipeline.location import Location, plain_errors
from pipeline.scratch import scratch_folder
from pipeline.storage import in_parallel, while_room

COPY_BYTES = 8 << 20
ABANDONED_S = 3600.0  # a download this old that no process holds is left from one that was killed


@dataclass(frozen=True)
class Listed:
    """A file as its folder lists it; size and time are -1 where it is listed and cannot be reached."""

    path: str
    size_bytes: int
    mtime_ns: int


def is_folder(path: str) -> bool:
    """Whether a folder is there; FileNotFoundError where nothing is."""
    location = Location.of(path)
    if not location.bucket:
        return stat.S_ISDIR(os.stat(path).st_mode)
    if location.key and location.size() is not None:
        return False
    with plain_errors(location):
        found = obstore.list_with_delimiter(location.store(), location.key)
    if location.key and not found["objects"] and not found["common_prefixes"]:
        raise FileNotFoundError(path)
    return True


def list_folder(folder: str) -> tuple[list[Listed], list[str]]:
    """Every file below a folder, by path, and the folders in it that must not be read.

    Links are followed, each folder once. What cannot be read as a file, such as a dangling link, has a size of -1.
    """
    location = Location.of(folder)
    files, locked = (_list_remote(location), []) if location.bucket else _list_local(folder)
    return sorted(files, key=lambda one: one.path), sorted(locked)


def _list_remote(folder: Location) -> list[Listed]:
    with plain_errors(folder):
        pages = obstore.list(folder.store(), folder.key)
        return [_listed(folder.at(one["path"]), one) for page in pages for one in page]


def _listed(location: Location, found: Any) -> Listed:
    """Whole seconds: a listing and a question for one object must agree."""
    return Listed(str(location), found["size"], int(found["last_modified"].timestamp()) * 10**9)


def _list_local(top: str) -> tuple[list[Listed], list[str]]:
    files: list[Listed] = []
    locked: list[str] = []
    folders, seen = [top], set()
    while folders:
        folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            names = sorted(os.listdir(folder), reverse=True)
        except PermissionError:
            locked.append(folder)
            continue
        for path in (os.path.join(folder, name) for name in names):
            try:
                status = os.stat(path)
            except OSError:
                files.append(Listed(path, -1, -1))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                regular = stat.S_ISREG(status.st_mode)
                files.append(Listed(path, status.st_size, status.st_mtime_ns) if regular else Listed(path, -1, -1))
    return files, locked


def stat_all(paths: Iterable[str]) -> dict[str, Listed]:
    """Files by path, without those that are missing or forbidden; many requests at once."""
    return {one.path: one for one in in_parallel(_stat, paths) if one}


def _stat(path: str) -> Listed | None:
    location = Location.of(path)
    try:
        if not location.bucket:
            status = os.stat(path)
            return Listed(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
        with plain_errors(location):
            return _listed(location, obstore.head(location.store(), location.key))
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None


def open_file(path: str) -> BinaryIO:
    """A file to read from; FileNotFoundError, PermissionError or another OSError where that cannot be."""
    location = Location.of(path)
    if location.bucket:
        return location.open("rb")
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
        raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device", path)
    return open(path, "rb")


def read_all(paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """The contents of many small files, or why one cannot be read, in their order; many requests at once."""
    return in_parallel(_read, paths)


def _read(path: str) -> bytes | OSError:
    location = Location.of(path)
    try:
        if location.bucket:
            return location.read_bytes()
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        return error


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file itself where it is local, else a download that is removed afterwards; errors as of `open_file`."""
    location = Location.of(path)
    with open_file(path) as source:
        if not location.bucket:
            yield Path(path)
            return
        folder = _downloads()
        with tempfile.NamedTemporaryFile(dir=folder, suffix=location.suffix) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with while_room(f"{path}: cannot be downloaded to {folder}", "set TMPDIR"):
                shutil.copyfileobj(source, file, COPY_BYTES)
                file.flush()
            yield Path(file.name)


def _downloads() -> Path:
    """The folder of this user's downloads, without those whose process was killed."""
    folder = scratch_folder("downloads")
    for left in folder.iterdir():
        with suppress(FileNotFoundError, BlockingIOError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()
    return folder
