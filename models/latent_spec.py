"""What a latent is: its geometry and its normalization. Standard library only, so that planning needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Posterior = Literal["mean", "sample", "moments"]
Dtype = Literal["float32", "bfloat16", "float16"]

# Normalization is affine, so these fields alone can be changed after encoding: see `LatentSpec.convert`.
NORMALIZATION = ("scaling_factor", "shift", "scale")


@dataclass(frozen=True)
class LatentSpec:
    """Geometry and normalization of one VAE's latents; everything that decides their values but the pixels.

    A normalized latent is `(raw * scaling_factor - shift) / scale`, channel by channel; a normalized standard deviation
    is `raw_std * scaling_factor / scale`.
    """

    vae: str  # the family, and the layout within it: "open-sora-v1.2", "diffusers:AutoencoderKLWan"
    channels: int
    stride: tuple[int, int, int]  # pixels per latent in (frames, height, width)
    chunk_frames: int  # frames encoded together: 1 + stride[0] * n, because the first frame is encoded alone
    scaling_factor: float
    shift: tuple[float, ...]  # one per channel
    scale: tuple[float, ...]  # one per channel
    dtype: Dtype  # the VAE computes in; posterior and normalization are float32 whatever it is
    posterior: Posterior  # what is cached of the VAE's Gaussian: its mean, one sample, or mean and std ("moments")
    config_sha256: str  # of what the weights do not say: the layout that the checkpoint's config names
    weights_sha256: str  # of the file of weights, or of the constants of a VAE that has none

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
        if not self.scaling_factor > 0 or not all(value > 0 for value in self.scale):
            raise ValueError(
                f"{self.vae}: scaling factor {self.scaling_factor} and scales {self.scale} must be above 0: latents "
                f"are multiplied by the one and divided by the others"
            )

    @property
    def chunk_latents(self) -> int:
        """Latent frames of one chunk: 17 frames -> 5."""
        return self.latent_frames(self.chunk_frames)

    @property
    def stored_channels(self) -> int:
        """Channels of a cached array: of the latents, or twice as many, mean then std, where moments are cached."""
        return self.channels * (2 if self.posterior == "moments" else 1)

    def latent_frames(self, num_frames: int) -> int:
        """Frames -> latent frames, chunk by chunk: L(F) = 5 * (F // 17) + ceil((F mod 17) / 4) for 17-frame chunks."""
        chunks, rest = divmod(num_frames, self.chunk_frames)
        per_chunk = 1 + (self.chunk_frames - 1) // self.stride[0]
        return per_chunk * chunks + -(-rest // self.stride[0])

    def filled_latents(self, valid_frames: int) -> int:
        """Latent frames that hold any of the first `valid_frames` frames, of chunks that are whole: 18 -> 5 + 1.

        As in a whole chunk, its first latent is of one frame, the others of `stride[0]`: of 17 frames, 2 to 5 fill two.
        """
        chunks, rest = divmod(valid_frames, self.chunk_frames)
        return chunks * self.chunk_latents + (1 - (1 - rest) // self.stride[0] if rest else 0)

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

    def converts_to(self, other: "LatentSpec") -> bool:
        """Whether the two differ in their normalization at most, so that `convert` makes one's latents the other's."""
        return all(
            getattr(self, field.name) == getattr(other, field.name)
            for field in fields(self)
            if field.name not in NORMALIZATION
        )

    def convert(self, latents: Any, to: "LatentSpec") -> Any:
        """Cached latents (..., C, t, h, w), C = stored_channels, a torch tensor, as `to` normalizes them: float32.

        ValueError where the two specs differ in more than their normalization: then only encoding again will do.
        """
        if not self.converts_to(to):
            raise ValueError(
                f"latents of {self.vae} cannot become those of {to.vae}: more differs than {', '.join(NORMALIZATION)}; "
                f"encode again"
            )
        ratio = to.scaling_factor / self.scaling_factor
        gains = [ratio * old / new for old, new in zip(self.scale, to.scale)]
        offsets = [(ratio * old - new) / scale for old, new, scale in zip(self.shift, to.shift, to.scale)]
        if self.posterior == "moments":  # a std has no offset
            gains, offsets = gains * 2, [*offsets, *[0.0] * self.channels]
        latents = latents.float()
        gain, offset = latents.new_tensor(gains), latents.new_tensor(offsets)  # (C,)
        return latents * gain[:, None, None, None] + offset[:, None, None, None]

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
