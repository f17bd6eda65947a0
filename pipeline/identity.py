"""What makes two files the same video: their content, whatever they are called."""

import hashlib
import re
from pathlib import Path
from typing import Literal

Identity = Literal["fast", "full"]

ID = re.compile("[0-9a-f]{16}")
CONTENT_SAMPLE_BYTES = 1 << 20  # the head and the tail that identify a file, beside its size


def content_id(path: Path, identity: Identity) -> str:
    """16 hex digits that name a file by what is in it: SHA-256 of its size, first and last MiB, or of every byte."""
    with open(path, "rb") as file:
        if identity == "full":
            digest = hashlib.sha256()
            while content := file.read(CONTENT_SAMPLE_BYTES):
                digest.update(content)
        else:
            size_bytes = path.stat().st_size
            digest = hashlib.sha256(str(size_bytes).encode())
            digest.update(file.read(CONTENT_SAMPLE_BYTES))
            file.seek(max(0, size_bytes - CONTENT_SAMPLE_BYTES))
            digest.update(file.read(CONTENT_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def is_still(path: Path, identity: str) -> bool:
    """Whether a file has the content that was given this id, of either kind."""
    return content_id(path, "fast") == identity or content_id(path, "full") == identity
