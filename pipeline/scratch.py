"""Files that a machine can make again, in a folder of its own for each user."""

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
