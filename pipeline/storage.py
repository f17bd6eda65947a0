"""Files that are either wholly there or not there at all, on disks and in object stores."""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError

from pipeline.errors import Refused
from pipeline.location import Location, Place, plain_errors

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what a disk says that takes no more
COPY_BYTES = 16 << 20
THREADS = 32  # requests in flight: they wait for the disk or the network, not for the processor


def publish(place: Place, content: bytes | Callable[[BinaryIO], None], replace: bool = True) -> None:
    """Write `content` to `place` whole, as `publishing` does."""
    if isinstance(place, Location) and isinstance(content, bytes):
        with writing(place):
            _put(place, content, replace)
        return
    with publishing(place, replace) as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


@contextmanager
def publishing(place: Place, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, and to read back from, that is at `place` when the block ends: whole, or not at all.

    On disk it is written aside, synced and renamed; an object store is given it when it is whole. A reader sees the old
    file or the new one; a crash leaves at most a hidden `.tmp` file behind. FileExistsError where another file is there
    already and `replace` is False: of writers that race and differ, one wins. Refused where the disk is full, read-only
    or not ours, or the store does not take it.
    """
    if isinstance(place, Location):
        told = f"{place}: cannot be put together in {tempfile.gettempdir()}"
        with while_room(told, "set TMPDIR"), tempfile.TemporaryFile() as file:  # nameless: a crash leaves nothing of it
            yield cast(BinaryIO, file)
            file.seek(0)
            with writing(place):
                _put(place, cast(BinaryIO, file) if replace else file.read(), replace)
        return
    with writing(place):
        _make_folder(place.parent)
        sweep(place)
        aside, file = _open_aside(place)
    try:
        with while_room(f"{place}: cannot be written"), file:
            yield file
            with writing(place):
                file.flush()
                os.fsync(file.fileno())
                if replace:
                    os.replace(aside, place)
                else:
                    _link(aside, place)
                sync_folder(place.parent)
    finally:
        aside.unlink(missing_ok=True)


def _open_aside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, and its name; as long as it is open it is locked, and `sweep` leaves it."""
    while True:
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        file = open(aside, "w+b")  # noqa: SIM115
        if _lock(file) and os.fstat(file.fileno()).st_nlink:
            return aside, file
        file.close()  # it was taken for a leftover before it was locked


def _link(aside: Path, path: Path) -> None:
    """Give a file its name; FileExistsError where another one has it."""
    try:
        os.link(aside, path)
    except FileExistsError:
        if path.read_bytes() != aside.read_bytes():
            raise


def _put(location: Location, content: bytes | BinaryIO, replace: bool) -> None:
    """Give an object store a file; FileExistsError where another one is there and `replace` is False."""
    with plain_errors(location):
        if replace:
            obstore.put(location.store(), location.key, content)
            return
        try:
            obstore.put(location.store(), location.key, content, mode="create")
        except AlreadyExistsError:  # perhaps by this very request, which is sent again where its answer got lost
            if location.read_bytes() != content:
                raise


def _make_folder(folder: Path) -> None:
    """A folder and those above it, whose names survive a power cut."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the place of its folder", str(folder)) from error
    for one in missing:
        sync_folder(one.parent)


def append(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a local file, made where it is missing; a crash may leave the last one torn. Refused as above."""
    with writing(path):
        _make_folder(path.parent)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """Refused, with the reason, where `place` cannot be written; FileExistsError is left to the caller."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused(f"{place}: cannot be written", error) from error


@contextmanager
def while_room(told: str, then: str = "write elsewhere") -> Iterator[None]:
    """Refused where a disk takes no more; other errors of the block are not those of writing."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _refused(told, error, then) from error


def _refused(told: str, error: OSError, then: str = "write elsewhere") -> Refused:
    return Refused(f"{told}: {error.strerror or error}; make room or {then}, then run again")


def read_range(place: Place, offset: int, num_bytes: int) -> bytes:
    """Part of a file: fewer bytes where it ends before. FileNotFoundError where there is none."""
    if isinstance(place, Location):
        return place.read_range(offset, num_bytes)
    with open(place, "rb") as file:
        return os.pread(file.fileno(), num_bytes, offset)


def size_of(place: Place) -> int | None:
    """How many bytes a file has; None where there is none."""
    if isinstance(place, Location):
        return place.size()
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return None


def list_files(folder: Place, suffix: str) -> list[Place]:
    """The files of a folder, not of those below it, by name. A store is asked for a listing."""
    if isinstance(folder, Location):
        with plain_errors(folder):
            found = obstore.list_with_delimiter(folder.store(), folder.key)["objects"]
        places: list[Place] = [folder.at(one["path"]) for one in found]
    else:
        places = list(folder.glob("*"))
    return sorted((one for one in places if one.name.endswith(suffix)), key=lambda one: one.name)


def list_folders(folder: Place) -> list[Place]:
    """The folders in a folder, by name; none where it is not there. A store is asked for a listing."""
    if isinstance(folder, Location):
        with plain_errors(folder):
            found = obstore.list_with_delimiter(folder.store(), folder.key)["common_prefixes"]
        places: list[Place] = [folder.at(one) for one in found]
    else:
        places = [one for one in folder.glob("*") if one.is_dir()]
    return sorted(places, key=lambda one: one.name)


def copy_file(source: Place, place: Place) -> None:
    """Bring a file to another place, whole, a piece at a time. Refused where it cannot be written."""
    with source.open("rb") as file:
        if isinstance(place, Location) and isinstance(source, Path):  # which can be sent as it lies there
            with writing(place):
                _put(place, cast(BinaryIO, file), replace=True)
            return
        publish(place, lambda copy: shutil.copyfileobj(file, copy, COPY_BYTES))


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, of many requests at once."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(work, items)


def sweep(place: Place) -> None:
    """Remove what killed writers of a local file left aside; a store has nothing left over."""
    _sweep(place.parent, glob.escape(place.name))


def sweep_folder(folder: Place) -> None:
    """Remove what killed writers left aside in a local folder."""
    _sweep(folder, "*")


def _sweep(folder: Place, names: str) -> None:
    for aside in folder.glob(f".{names}.{'?' * 32}.tmp") if isinstance(folder, Path) else []:
        with suppress(FileNotFoundError), open(aside, "r+b") as file:  # another may sweep, or its writer be done
            if _lock(file):
                aside.unlink()


def _lock(file: BinaryIO) -> bool:
    """Take a file for this process, until it is closed; False where another has it.

    Where a file system knows no locks nobody has it, and two who write the same file at once disturb each other.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
