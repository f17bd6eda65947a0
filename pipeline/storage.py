"""Files that are either wholly there or not there at all, on disks and in object stores."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import obstore

from pipeline.errors import Refused
from pipeline.location import Location, Place, plain_errors

Item = TypeVar("Item")
Result = TypeVar("Result")
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

    On disk it is written aside, synced and renamed; an object store is given it in one request. A reader sees the old
    file or the new one; a crash leaves at most a hidden `.tmp` file behind. FileExistsError where there is a file
    already and `replace` is False: of writers that race, one wins. Refused where the disk is full, read-only or not
    ours, or the store does not take it.
    """
    if isinstance(place, Location):
        with writing(place), tempfile.NamedTemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.flush()
            _put(place, Path(file.name) if replace else Path(file.name).read_bytes(), replace)
        return
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        with writing(place):
            _make_folder(place.parent)
            with open(aside, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(aside, place)
            else:
                os.link(aside, place)
            sync_folder(place.parent)
    finally:
        aside.unlink(missing_ok=True)


def _put(location: Location, content: bytes | Path, replace: bool) -> None:
    with plain_errors(location):
        if replace:
            obstore.put(location.store(), location.key, content)
        else:
            obstore.put(location.store(), location.key, content, mode="create")


def _make_folder(folder: Path) -> None:
    """A folder and those above it, whose names survive a power cut."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def append(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a local file, made where it is missing; a crash may leave the last one torn. Refused as above."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
        reason = error.strerror or str(error)
        raise Refused(f"{place}: cannot be written: {reason}; make room or write elsewhere, then run again") from error


def read_range(place: Place, offset: int, num_bytes: int) -> bytes:
    """Part of a file: fewer bytes where it ends before. FileNotFoundError where there is none."""
    if isinstance(place, Location):
        with plain_errors(place):
            return obstore.get_range(place.store(), place.key, start=offset, length=num_bytes).to_bytes()
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
        prefix = f"{folder.key}/"
        with plain_errors(folder):
            found = obstore.list_with_delimiter(folder.store(), prefix)["objects"]
        places: list[Place] = [folder.at(one["path"]) for one in found]
    else:
        places = list(folder.glob("*"))
    return sorted((one for one in places if one.name.endswith(suffix)), key=lambda one: one.name)


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, of many requests at once."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(work, items)


def sweep(place: Place) -> None:
    """Remove what killed writers of a local file left aside; a store has nothing left over."""
    if isinstance(place, Path):
        for aside in place.parent.glob(f".{place.name}.{'?' * 32}.tmp"):
            aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
