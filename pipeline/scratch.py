"""Files that a machine can make again, in a folder of its own for each user; and files without a name."""

import os
import tempfile
from pathlib import Path

from pipeline.errors import Refused


def scratch_folder(name: str) -> Path:
    """This user's folder for one purpose, below TMPDIR. Refused where none can be made, or others could write there."""
    try:
        own = Path(tempfile.gettempdir()) / f"latentmill-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or not own.is_dir():
            raise Refused(f"{own}: belongs to another user, or others can open it; remove it, or set TMPDIR")
        folder = own / name
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused(f"no folder for {name}: {error}; set TMPDIR to one that can be written") from error
    return folder


def open_memory() -> int:
    """A file that has no name and ends with those who hold it; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("latentmill")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
