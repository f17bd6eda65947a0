"""Files on this machine and in object stores, s3:// and gs://, read in the same way."""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import Refused

THREADS = 32  # requests in flight: they wait for the network, not for the processor
COPY_BYTES = 8 << 20
ABANDONED_S = 3600.0  # a download this old that no process holds is left from one that was killed

URI = re.compile(
    r"(?P<bucket>[a-zA-Z][\w+.-]*://[^/?]*)/?(?P<key>.*?)"
    r"(?P<options>\?((region|scheme|endpoint_override|retry_limit_seconds|project_id|allow_bucket_creation)=[^?&]*&?)+)?",
    re.DOTALL,
)
DENIED = re.compile("ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|EXPIRED_TOKEN|PERMISSION_?DENIED|UNAUTHENTICATED", re.I)
MISSING = re.compile("NO_SUCH_BUCKET|NO_SUCH_KEY|NOT_?FOUND", re.I)


@dataclass(frozen=True)
class Listed:
    """A file as its folder lists it; size and time are -1 where it is listed and cannot be reached."""

    path: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Location:
    """A path in its parts: `s3://bucket/key?options`; a local one is all key.

    Keys are written as they are, without percent signs for other characters; options are those of pyarrow, such as
    `endpoint_override=host:port&scheme=http`.
    """

    bucket: str  # with its scheme; empty for a local path
    key: str
    options: str

    @classmethod
    def of(cls, path: str) -> "Location":
        """Refused where the scheme is none of ours, or where a password is in it: manifests and logs repeat paths."""
        parts = URI.fullmatch(path)
        if parts is None:
            return cls("", path, "")
        scheme, _, authority = parts["bucket"].partition("://")
        if scheme not in ("s3", "gs") or not authority:
            raise Refused(f"{path}: found {parts['bucket']}, wanted a local path, s3://BUCKET/... or gs://BUCKET/...")
        if ":" in authority:
            raise Refused(f"{scheme}://...: found a password in a path; give it by the environment of the run instead")
        return cls(parts["bucket"], parts["key"], parts["options"] or "")

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}{self.options}" if self.bucket else self.key

    @property
    def name(self) -> PurePosixPath:
        """The key alone, whose stem and parent are those of the file."""
        return PurePosixPath(self.key)

    @property
    def suffix(self) -> str:
        """In small letters, with its dot."""
        return self.name.suffix.lower()

    def at(self, key: str | PurePosixPath) -> "Location":
        """Another file of the same bucket."""
        return replace(self, key=str(key))

    def store(self) -> tuple[fs.FileSystem, str]:
        """The file system of a remote path, and the path in it."""
        system, bucket = _connect(self.bucket + self.options)
        return system, f"{bucket}/{self.key}".rstrip("/")


@lru_cache
def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise Refused(f"{uri}: cannot be connected to: {error}") from error


@contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """Object stores name what is missing or forbidden in the text of an error: FileNotFoundError or PermissionError."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        if DENIED.search(str(error)):
            raise PermissionError(f"{path}: {error}") from error
        if MISSING.search(str(error)):
            raise FileNotFoundError(f"{path}: {error}") from error
        raise


def is_folder(path: str) -> bool:
    """Whether a folder is there; FileNotFoundError where nothing is."""
    location = Location.of(path)
    if not location.bucket:
        return stat.S_ISDIR(os.stat(path).st_mode)
    with _plain_errors(path):
        system, key = location.store()
        found = system.get_file_info(key)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(path)
    return found.type == fs.FileType.Directory


def list_folder(folder: str) -> tuple[list[Listed], list[str]]:
    """Every file below a folder, by path, and the folders in it that must not be read.

    Links are followed, each folder once. What cannot be read as a file, such as a dangling link, has a size of -1.
    """
    location = Location.of(folder)
    files, locked = (_list_remote(location), []) if location.bucket else _list_local(folder)
    return sorted(files, key=lambda one: one.path), sorted(locked)


def _list_remote(folder: Location) -> list[Listed]:
    with _plain_errors(str(folder)):
        system, key = folder.store()
        found = system.get_file_info(fs.FileSelector(key, recursive=True))
    files = (one for one in found if one.type == fs.FileType.File)
    return [Listed(str(folder.at(one.path.partition("/")[2])), one.size, one.mtime_ns) for one in files]


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
    with ThreadPoolExecutor(THREADS) as threads:
        return {one.path: one for one in threads.map(_stat, paths) if one}


def _stat(path: str) -> Listed | None:
    location = Location.of(path)
    try:
        if not location.bucket:
            status = os.stat(path)
            return Listed(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
        with _plain_errors(path):
            system, key = location.store()
            found = system.get_file_info(key)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    return Listed(path, found.size, found.mtime_ns) if found.type == fs.FileType.File else None


def open_file(path: str) -> BinaryIO:
    """A file to read from; FileNotFoundError, PermissionError or another OSError where that cannot be."""
    location = Location.of(path)
    if not location.bucket:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device", path)
        return open(path, "rb")
    with _plain_errors(path):
        system, key = location.store()
        return cast(BinaryIO, system.open_input_file(key))


def read_all(paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """The contents of many small files, or why one cannot be read, in their order; many requests at once."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(_read, paths)


def _read(path: str) -> bytes | OSError:
    try:
        with open_file(path) as file, _plain_errors(path):
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
        with tempfile.NamedTemporaryFile(dir=folder, suffix=location.name.suffix) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                with _plain_errors(path):
                    shutil.copyfileobj(source, file, COPY_BYTES)
                file.flush()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise Refused(f"{folder}: no room to download {path}; make room, or set TMPDIR") from error
                raise
            yield Path(file.name)


def _downloads() -> Path:
    """The folder of this user's downloads, without those whose process was killed."""
    folder = Path(tempfile.gettempdir()) / f"latentmill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.iterdir():
        with suppress(FileNotFoundError, BlockingIOError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()
    return folder
