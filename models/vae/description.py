"""A VAE before its weights are read: what the run asks of it, and what its files say."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from models.latent_spec import Dtype, LatentSpec, Posterior
from models.vae.interface import VideoVAE

DEFAULT_CHUNK_FRAMES = 17  # 1+4+4+4+4 frames, which a VAE of stride 4 turns into 1+4 latents
OVERRIDDEN = "set by the run"


class Normalization(NamedTuple):
    """The three numbers that normalize latents, as fields of LatentSpec, and where each comes from."""

    values: dict[str, Any]
    origins: dict[str, str]


@dataclass(frozen=True)
class Asked:
    """What a run asks of its VAE; None leaves it to the family and the checkpoint."""

    chunk_frames: int | None = None
    dtype: Dtype | None = None
    posterior: Posterior | None = None
    scaling_factor: float | None = None
    shift: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def normalization(
        self,
        channels: int,
        *,
        scaling_factor: tuple[float, str],
        shift: tuple[float | Sequence[float], str] = (0.0, "none in this family"),
        scale: tuple[float | Sequence[float], str] = (1.0, "none in this family"),
    ) -> Normalization:
        """What the run asks for, else what the family says, given with its origin; one number is for all channels."""
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name, (value, origin) in (("scaling_factor", scaling_factor), ("shift", shift), ("scale", scale)):
            asked = getattr(self, name)
            values[name], origins[name] = (
                (value, origin) if asked is None else (asked, f"{OVERRIDDEN}; {origin}: {value}")
            )
        for name in ("shift", "scale"):
            one = values[name]
            values[name] = tuple(float(v) for v in one) if isinstance(one, Sequence) else (float(one),) * channels
        values["scaling_factor"] = float(values["scaling_factor"])
        return Normalization(values, origins)


NOTHING_ASKED = Asked()


@dataclass(frozen=True)
class Description:
    """A VAE that can be loaded: its latents, and where their numbers come from."""

    spec: LatentSpec
    origins: Mapping[str, str]  # field of the spec, or another name worth showing -> where its value comes from
    build: Callable[[], VideoVAE]  # reads the weights
    frame_step: int | None = None  # as VideoVAE has it

    def __post_init__(self) -> None:
        step = self.frame_step or self.spec.stride[0]
        if beyond := (self.spec.chunk_frames - 1) % step:
            lower = self.spec.chunk_frames - beyond
            raise ValueError(
                f"{self.spec.chunk_frames} frames do not fit {self.spec.vae}: it takes 1+{step}n frames, the first "
                f"alone and the others {step} at a time; use {lower} or {lower + step}"
            )

    def load(self) -> VideoVAE:
        """The VAE, ready to use: eval mode, no gradients, on the CPU. ValueError where its weights do not fit."""
        return self.build().eval().requires_grad_(False)


def digest(document: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
