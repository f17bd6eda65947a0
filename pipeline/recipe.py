"""What a cache is made of. Its fingerprint travels with every shard, and caches of two recipes never mix."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from models.latent_spec import LatentSpec
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.storage import publish

Tail = Literal["drop", "pad", "overlap"]
Scenes = Literal["content", "adaptive", "off"]

# What decides which clips there are, and not what a latent means.
CUTTING = ("fps", "buckets", "max_chunks", "tail", "min_chunks", "upscale", "scenes", "scene_threshold", "filter")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which latents a video becomes, and their values."""

    latent: LatentSpec
    fps: float  # clips are sampled at this rate, or at the video's own where that is lower
    buckets: tuple[tuple[int, int], ...]  # (height, width) in pixels
    max_chunks: int  # of one clip
    tail: Tail = "drop"  # what becomes of the frames behind the last whole chunk
    min_chunks: int = 1
    upscale: float = 1.0  # frames are enlarged by this factor at the most
    scenes: Scenes = "off"  # how cuts are found, which no clip crosses
    scene_threshold: float | None = None  # of the detector; None = its own default
    filter: str = ""  # scenes that are kept, by their columns and their video's
    dtype: Literal["float16"] = "float16"  # of the cached latents
    frames: str = "nearest presentation timestamp"
    resize: str = "cover, bicubic, centre crop"
    pixels: str = "RGB in [-1, 1]"

    def __post_init__(self) -> None:
        for height, width in self.buckets:
            self.latent.latent_shape(self.latent.chunk_frames, height, width)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """The recipe that `to_dict` wrote; TypeError on unknown or missing fields."""
        buckets = tuple((height, width) for height, width in fields["buckets"])
        return cls(**{**fields, "latent": LatentSpec.from_dict(fields["latent"]), "buckets": buckets})

    def converts_to(self, other: "Recipe") -> bool:
        """Whether the two differ in the normalization of latents at most, so that `LatentSpec.convert` bridges them."""
        return replace(self, latent=other.latent) == other and self.latent.converts_to(other.latent)

    def fingerprint(self) -> str:
        """SHA-256 over every field."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:  # asked for each clip, and it takes a millisecond
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def differences(found: Recipe, wanted: Recipe) -> list[str]:
    """One line per field that differs, named by its dotted path."""
    return [
        f"{name}: found {old!r}, wanted {new!r}"
        for (name, old), (_, new) in zip(leaves(found.to_dict()), leaves(wanted.to_dict()), strict=True)
        if old != new
    ]


def leaves(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested fields as (dotted path, value)."""
    found = []
    for name, value in fields.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def read_recipe(cache: Cache) -> Recipe:
    """The recipe of a cache; Refused where there is none or it was edited."""
    path = cache.recipe
    try:
        document = json.loads(path.read_text())
        recipe = Recipe.from_dict(document["recipe"])
    except FileNotFoundError as error:
        raise Refused(
            f"{path}: not found, so {cache.root} is not a cache yet; run `plan` first or set data.cache"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path}: not a recipe of this version ({error!r}); restore it or encode anew") from error
    if recipe.fingerprint() != document["fingerprint"]:
        raise Refused(
            f"{path}: its fields have fingerprint {recipe.fingerprint()[:16]}, it says {document['fingerprint'][:16]}; "
            f"it was edited or written by another version: restore it, or encode into a new data.cache"
        )
    return recipe


def check_recipe(cache: Cache, wanted: Recipe) -> None:
    """Refuse a cache that another recipe made, naming the fields that differ."""
    found = read_recipe(cache)
    if found != wanted:
        lines = "; ".join(f"recipe.{line}" for line in differences(found, wanted))
        bridge = ". That is normalization only: `train` can convert, with train.renormalize=true"
        raise Refused(
            f"{cache.root} was made by another recipe: {lines}{bridge if found.converts_to(wanted) else ''}. "
            f"Change [recipe] back, or use another data.cache"
        )


def convertible_recipe(cache: Cache, wanted: Recipe) -> Recipe:
    """The recipe of a cache whose latents can be read as `wanted` makes them; Refused where more than that differs."""
    found = read_recipe(cache)
    if not found.converts_to(wanted):
        check_recipe(cache, wanted)
    return found


def check_mixable(cache: Cache, wanted: Recipe, renormalize: bool) -> Recipe:
    """The recipe of a cache that is trained on beside one of recipe `wanted`; Refused where its latents are of another
    kind. Which clips were cut, and at which rates and sizes, may differ; the normalization only with `renormalize`."""
    found = read_recipe(cache)
    lines = [line for line in differences(found, wanted) if line.partition(":")[0] not in CUTTING]
    bridged = all(line.startswith("latent.") for line in lines) and found.latent.converts_to(wanted.latent)
    if lines and not (bridged and renormalize):
        bridge = ". That is normalization only: set train.renormalize=true" if bridged else ""
        told = "; ".join(f"recipe.{line}" for line in lines)
        raise Refused(f"{cache.root}: cannot be mixed with caches of this recipe: {told}{bridge}")
    return found


def bind_recipe(cache: Cache, recipe: Recipe) -> None:
    """Make `cache` a cache of this recipe: write recipe.json if there is none, refuse another one."""
    document = {"fingerprint": recipe.fingerprint(), "recipe": recipe.to_dict()}
    try:
        publish(cache.recipe, (json.dumps(document, indent=2) + "\n").encode(), replace=False)
    except FileExistsError:
        check_recipe(cache, recipe)
