"""What a run trains on: the clips of one cache, or of several that are mixed."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.recipe import Recipe, check_mixable, check_recipe, convertible_recipe
from pipeline.schedule import Rows
from pipeline.split import ALL, Split
from pipeline.text_column import TextOrigin, read_text_origin
from pipeline.view import View, open_view


@dataclass(frozen=True)
class Part:
    """The clips of one cache."""

    cache: Cache
    recipe: Recipe  # that made it: its latents are those of the set's recipe, or convert to them
    view: View
    times: float  # how often each clip is shown per epoch


@dataclass(frozen=True)
class TrainingSet:
    """Clips by number: those of the first part, then those of the second, and so on."""

    recipe: Recipe  # of the batches
    text: TextOrigin
    parts: tuple[Part, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """(parts + 1,) int64: the number of each part's first clip, and how many there are in all."""
        return np.array([0, *accumulate(len(part.view.rows) for part in self.parts)])

    @property
    def num_clips(self) -> int:
        return int(self.starts[-1])

    def rows(self, clips: np.ndarray) -> np.ndarray:
        """Numbers of clips -> their rows: (B,) ROW, copied."""
        found = np.zeros(len(clips), self.parts[0].view.rows.dtype)
        of_part = self.part_of(clips)
        for number, part in enumerate(self.parts):
            own = of_part == number
            found[own] = part.view.rows[clips[own] - self.starts[number]]
        return found

    def part_of(self, clips: np.ndarray) -> np.ndarray:
        """Numbers of clips -> those of their parts: (B,) int64."""
        return np.searchsorted(self.starts, clips, side="right") - 1

    def keys(self, clips: np.ndarray) -> list[str]:
        """Numbers of clips -> their keys."""
        return [key.decode() for key in self.rows(clips)["key"].tolist()]

    def schedule_rows(self) -> Rows:
        """What a schedule needs to know of the clips."""
        if len(self.parts) == 1 and self.parts[0].times == 1:
            view = self.parts[0].view
            return Rows(view.shard_ends, view.kinds, view.kind)
        views = [part.view for part in self.parts]
        first = [0, *accumulate(len(view.kinds) for view in views)]  # kind of each part: they differ in times
        return Rows(
            shard_ends=np.concatenate([view.shard_ends + start for view, start in zip(views, self.starts.tolist())]),
            kinds=tuple(kind for view in views for kind in view.kinds),
            kind=np.concatenate([view.kind + np.uint16(start) for view, start in zip(views, first)]),
            times=tuple(part.times for part in self.parts for _ in part.view.kinds),
        )

    def null_text(self) -> np.ndarray:
        """The null caption, (tokens, dim) float16; Refused where it is missing or not the one that `text` wrote."""
        path = self.parts[0].cache.null_text(self.text.name)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != self.text.null_sha256:
            raise Refused(f"{path}: missing, or not the null caption that `text` wrote; run `text` again")
        return np.load(io.BytesIO(content), allow_pickle=False)


def open_training_set(
    cache: Cache,
    recipe: Recipe,
    text_encoder: str,
    filter: str = "",
    renormalize: bool = False,
    mixed: Mapping[Cache, float] | None = None,
    split: Split = ALL,
) -> TrainingSet:
    """The clips of `cache`, and those of `mixed` with how often each is shown per epoch, as latents of `recipe`.

    Clips of removed videos, those that `filter` does not match and those of the other side of `split` are left out.
    Refused where `recipe` did not make the cache, or where one of the others has latents of another kind or text of
    another encoder; with `renormalize` another normalization is converted.
    """
    named = [(cache, 1.0), *(mixed or {}).items()]
    recipes = [_stored_recipe(one, recipe, renormalize, is_own=not number) for number, (one, _) in enumerate(named)]
    text = read_text_origin(cache, text_encoder)
    parts: dict[Path, Part] = {}  # by the folders of their views: what is in one are the same clips
    for (one, times), stored in zip(named, recipes):
        _check_text(one, read_text_origin(one, text_encoder), text)
        view = open_view(one, stored, text_encoder, filter, split)
        if view.folder in parts:
            raise Refused(
                f"{one.root}: holds the clips of {parts[view.folder].cache.root} again; name each cache once, and how "
                f"often its clips are shown in train.mix"
            )
        parts[view.folder] = Part(one, stored, view, times)
    return TrainingSet(recipe, text, tuple(parts.values()))


def _check_text(cache: Cache, found: TextOrigin, wanted: TextOrigin) -> None:
    """Refuse the text of another encoder, naming what differs."""
    if found.fingerprint != wanted.fingerprint:
        names = ("path", "dim", "max_tokens", "dtype", "clean")
        pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in names]
        lines = [f"text.{name}: found {old!r}, wanted {new!r}" for name, old, new in pairs if old != new]
        raise Refused(
            f"{cache.root}: its text cannot be mixed with that of the other caches: "
            f"{'; '.join(lines) or 'the encoder had other weights'}; run `text` again on one of them"
        )


def _stored_recipe(cache: Cache, wanted: Recipe, renormalize: bool, is_own: bool) -> Recipe:
    """The recipe of a cache that a run can train on."""
    if not is_own:
        return check_mixable(cache, wanted, renormalize)
    if renormalize:
        return convertible_recipe(cache, wanted)
    check_recipe(cache, wanted)
    return wanted
