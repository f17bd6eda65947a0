"""What the pipeline needs of a text encoder, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from models.latent_spec import Dtype
from models.text.clean import clean_caption

SHOWN = 60  # characters of a caption in an error message


@dataclass(frozen=True)
class TextSettings:
    """What a run decides about its embeddings, whatever encoder it has: to be recorded with them and with the model."""

    max_tokens: int = 300  # as Open-Sora; longer captions are cut
    dtype: Dtype | None = None  # of the arithmetic; None = bfloat16 where there is a GPU, else float32
    clean: bool = False  # captions go through `clean_caption` first; Open-Sora did not in training

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a caption needs at least one token")
        if self.dtype not in (None, *get_args(Dtype)):
            raise ValueError(f"dtype is {self.dtype!r}; known: {', '.join(get_args(Dtype))}")


DEFAULT_SETTINGS = TextSettings()


@dataclass(frozen=True)
class TextDescription:
    """A text encoder before its weights are read; all that training on cached embeddings asks of it. Can be pickled."""

    name: str  # also of the folder with its embeddings
    dim: int
    settings: TextSettings  # as asked, but with the dtype that was left open
    fingerprint: Callable[[], str]  # SHA-256 of all that decides an embedding; reads the files, without loading them
    load: Callable[[], "TextEncoder"]  # reads the weights; in eval mode, without gradients, on the CPU

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens


class TextEncoder(ABC):
    """Captions -> token embeddings. A subclass embeds; cleaning and the check of the numbers are here, once."""

    name: str

    def __init__(self, dim: int, settings: TextSettings) -> None:
        self.dim = dim
        self.settings = settings

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Each caption -> (tokens, dim) float16, unpadded, at most `max_tokens`; the same whatever stands beside it.

        ValueError where an embedding is not finite in float16.
        """
        texts = [clean_caption(caption) if self.settings.clean else caption for caption in captions]
        encoded = self.embed(texts)
        for caption, tokens in zip(captions, encoded, strict=True):
            if not np.isfinite(tokens).all():
                raise ValueError(
                    f"the embedding of {caption[:SHOWN]!r} by {self.name} in {self.settings.dtype} is not finite in "
                    f"float16, as which it is kept; use bfloat16 or float32, and where that is so already, fetch the "
                    f"weights again"
                )
        return encoded

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that decides an embedding."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> (tokens, dim) float16, unpadded."""

    def to(self, device: Any) -> "TextEncoder":
        """The same encoder with its weights, if it has any, on a device of torch."""
        return self
