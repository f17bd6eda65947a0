"""What a latent is: its geometry and its normalization. Standard library only, so that planning needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Posterior = Literal["mean", "sample"]


@dataclass(frozen=True)
class LatentSpec:
    """Geometry and normalization of one VAE's latents; everything that decides their values but the pixels.

    A normalized latent is `(raw * scaling_factor - shift) / scale`, channel by channel.
    """

    vae: str  # the name `load_vae` knows it by
    channels: int
    stride: tuple[int, int, int]  # pixels per latent in (frames, height, width)
    chunk_frames: int  # frames encoded together: 1 + stride[0] * n, because the first frame is encoded alone
    scaling_factor: float
    shift: tuple[float, ...]  # one per channel
    scale: tuple[float, ...]  # one per channel
    posterior: Posterior  # what the cache holds of the VAE's Gaussian
    weights_sha256: str  # of the weights, or of the constants of a VAE that has none

    def __post_init__(self) -> None:
        time_stride = self.stride[0]
        if self.chunk_frames < 1 or self.chunk_frames % time_stride != 1 % time_stride:
            raise ValueError(
                f"{self.chunk_frames} frames do not fit {self.vae}: a causal VAE encodes the first frame alone and the "
                f"others {time_stride} at a time, so a chunk has 1+{time_stride}n frames "
                f"(17 = 1+4+4+4+4 frames become 5 = 1+4 latents; 16 and 18 do not divide)"
            )
        if not len(self.shift) == len(self.scale) == self.channels:
            raise ValueError(
                f"{self.vae} has {self.channels} channels but {len(self.shift)} shifts and {len(self.scale)} scales; "
                f"give one of each per channel"
            )

    @property
    def chunk_latents(self) -> int:
        """Latent frames of one chunk: 17 frames -> 5."""
        return self.latent_frames(self.chunk_frames)

    def latent_frames(self, num_frames: int) -> int:
        """Frames -> latent frames, chunk by chunk: L(F) = 5 * (F // 17) + ceil((F mod 17) / 4) for 17-frame chunks."""
        chunks, rest = divmod(num_frames, self.chunk_frames)
        per_chunk = 1 + (self.chunk_frames - 1) // self.stride[0]
        return per_chunk * chunks + -(-rest // self.stride[0])

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(frames, height, width) in pixels -> (c, t, h, w); ValueError where the stride does not divide the size."""
        for name, size, stride in (("height", height, self.stride[1]), ("width", width, self.stride[2])):
            if size < stride or size % stride:
                lower = max(size // stride, 1) * stride
                raise ValueError(
                    f"{name} {size} is not a multiple of {stride}, the {name} of one {self.vae} latent in pixels; "
                    f"use {lower} or {lower + stride}"
                )
        return (self.channels, self.latent_frames(num_frames), height // self.stride[1], width // self.stride[2])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LatentSpec":
        """The spec that `to_dict` wrote; TypeError on unknown or missing fields."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**known)

    def fingerprint(self) -> str:
        """SHA-256 over every field: two VAEs with the same fingerprint make the same latents."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
