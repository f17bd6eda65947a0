"""Text encoders: captions in, token embeddings out, behind one interface."""

from collections.abc import Callable
from pathlib import Path

from models.text.byte_encoder import describe_bytes
from models.text.interface import DEFAULT_SETTINGS, TextDescription, TextEncoder, TextSettings
from models.text.t5 import describe_t5

# Name -> description from (path or hub id of the weights or None, the run's settings).
TEXT_ENCODERS: dict[str, Callable[[str | Path | None, TextSettings], TextDescription]] = {
    "bytes": describe_bytes,
    "t5": describe_t5,
}


def describe_text_encoder(
    name: str, path: str | Path | None = None, settings: TextSettings = DEFAULT_SETTINGS
) -> TextDescription:
    """A text encoder without its weights; ValueError on an unknown name, and where path or files do not fit."""
    if name not in TEXT_ENCODERS:
        raise ValueError(f"text encoder {name!r} is not known; known: {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name](path, settings)


def load_text_encoder(
    name: str, path: str | Path | None = None, settings: TextSettings = DEFAULT_SETTINGS
) -> TextEncoder:
    """A text encoder ready to use, on the CPU. ValueError as `describe_text_encoder`, and on wrong weights."""
    return describe_text_encoder(name, path, settings).load()
