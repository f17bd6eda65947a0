"""Files that are either wholly there or not there at all."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Refused


def publish(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `content` to `path` whole: aside, fsync, rename, fsync of the folder.

    A reader sees the old file or the new one; a crash leaves at most a hidden `.tmp` file behind. Refused where the
    disk is full, read-only or not ours.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "w+b") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
    finally:
        if aside.exists():
            aside.unlink()


def append(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file, which is made where it is missing; a crash may leave the last one torn. Refused as above."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Refused, with the reason, where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(f"{path}: cannot be written: {reason}; make room or write elsewhere, then run again") from error


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left aside."""
    for aside in path.parent.glob(f".{path.name}.{'?' * 32}.tmp"):
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
