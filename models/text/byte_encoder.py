"""UTF-8 bytes as tokens: a text encoder without weights, for first runs and tests."""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from einops import rearrange

from models.text.clean import CLEANING
from models.text.interface import DEFAULT_SETTINGS, TextDescription, TextEncoder, TextSettings

WINDOW_BYTES = 4  # a token sees its own byte and the three before it
POSITION_SHARE = 0.5  # standard deviation of the position part beside the bytes' part of 1


class ByteEncoder(TextEncoder):
    """Captions -> one fixed embedding per byte: what the last four bytes were, and where in the text it stands.

    Each byte at each place of the window has a fixed vector of +1 and -1, taken from the bits of SHAKE-256, so that
    it is the same on every machine and any two are nearly orthogonal; a token is their sum, scaled to unit variance,
    plus a sinusoid of its position. A window of four lets a linear layer tell "red" from "der".
    """

    name = "bytes"

    def __init__(self, dim: int = 256, settings: TextSettings = DEFAULT_SETTINGS) -> None:
        if dim % 2:
            raise ValueError(f"dim is {dim}; half of it are sines and half cosines, so it must be even")
        super().__init__(dim, settings)
        self._bytes = np.stack([self._signs(place) for place in range(WINDOW_BYTES)])  # (window, 256, dim)
        self._positions = self._sinusoids()  # (max_tokens, dim)

    def _signs(self, place: int) -> np.ndarray:
        rows = [hashlib.shake_256(f"{place}/{byte}".encode()).digest(-(-self.dim // 8)) for byte in range(256)]
        packed = rearrange(np.frombuffer(b"".join(rows), np.uint8), "(byte part) -> byte part", byte=256)
        bits = np.unpackbits(packed, axis=1)[:, : self.dim]
        return (2.0 * bits - 1) / math.sqrt(WINDOW_BYTES)  # (256, dim)

    def _sinusoids(self) -> np.ndarray:
        half = self.dim // 2
        angles = np.outer(np.arange(self.max_tokens), 10000.0 ** (-np.arange(half) / half))  # (max_tokens, half)
        return POSITION_SHARE * math.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides an embedding."""
        facts = f"{self.name}/{self.dim}/{self.max_tokens}/{WINDOW_BYTES}/{POSITION_SHARE}"
        if self.settings.clean:
            facts += f"/clean-{CLEANING}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> (tokens, dim) float16, one token per byte, unpadded; an empty text has no tokens."""
        return [self._embed(text.encode()[: self.max_tokens]) for text in texts]

    def _embed(self, text: bytes) -> np.ndarray:
        codes = np.frombuffer(text, np.uint8)
        tokens = self._positions[: len(codes)].copy()
        for place in range(min(WINDOW_BYTES, len(codes))):
            tokens[place:] += self._bytes[place, codes[: len(codes) - place]]
        return tokens.astype(np.float16)


def describe_bytes(path: str | Path | None, settings: TextSettings) -> TextDescription:
    """`bytes`: computed in float64 whatever `settings.dtype`. ValueError where there is a path."""
    if path is not None:
        raise ValueError(f"bytes has no weights to read from {path}; leave the path out")
    encoder = ByteEncoder(settings=settings)
    return TextDescription(
        encoder.name, encoder.dim, settings, encoder.fingerprint, partial(ByteEncoder, settings=settings)
    )
