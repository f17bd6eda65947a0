"""What the values of latents are like, channel by channel, in a form that merges exactly: shards into a cache."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import reduce

import numpy as np
from einops import rearrange

from models.latent_spec import LatentSpec


@dataclass(frozen=True)
class ChannelStats:
    """Count, mean, sum of squared deviations from it, least and greatest of each channel's values."""

    count: int  # values per channel
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    least: tuple[float, ...]
    greatest: tuple[float, ...]

    @classmethod
    def of(cls, latents: np.ndarray) -> "ChannelStats":
        """Of one array (C, t, h, w), computed in float64."""
        values = rearrange(latents.astype(np.float64), "c t h w -> c (t h w)")
        mean = values.mean(axis=1)
        m2 = np.square(values - mean[:, None]).sum(axis=1)
        columns = (mean, m2, values.min(axis=1), values.max(axis=1))
        return cls(values.shape[1], *(tuple(column.tolist()) for column in columns))

    def merge(self, other: "ChannelStats") -> "ChannelStats":
        """Of both together: Chan, Golub and LeVeque, 1979."""
        count = self.count + other.count
        mean, m2, other_mean, other_m2 = map(np.asarray, (self.mean, self.m2, other.mean, other.m2))
        apart = other_mean - mean
        merged = (
            mean + apart * (other.count / count),
            m2 + other_m2 + np.square(apart) * (self.count * other.count / count),
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
        )
        return ChannelStats(count, *(tuple(column.tolist()) for column in merged))

    @property
    def std(self) -> tuple[float, ...]:
        """Of the values seen, not an estimate for others."""
        return tuple((np.asarray(self.m2) / self.count) ** 0.5)

    def latents(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std (channels,) of the latents themselves: of the values or, where these are moments, of samples.

        A sample of a posterior with mean m and std s has the variance var(m) + mean(s^2).
        """
        mean, variance = np.asarray(self.mean), np.square(self.std)  # (C,)
        if len(mean) == 2 * channels:
            variance[:channels] += variance[channels:] + np.square(mean[channels:])
        return mean[:channels], np.sqrt(variance[:channels])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ChannelStats":
        fields = json.loads(text)
        return cls(fields.pop("count"), **{name: tuple(values) for name, values in fields.items()})


def merge_all(parts: Iterable[ChannelStats]) -> ChannelStats | None:
    """Of all parts together, in their order; None of none."""
    found = list(parts)
    return reduce(ChannelStats.merge, found) if found else None


def normalization(stats: ChannelStats, spec: LatentSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The shift and scale that would give the latents of `stats`, which `spec` normalized, mean 0 and std 1.

    A channel that is constant keeps its scale.
    """
    mean, std = stats.latents(spec.channels)
    shift = np.asarray(spec.shift) + np.asarray(spec.scale) * mean
    scale = np.asarray(spec.scale) * np.where(std > 0, std, 1)
    return tuple(shift.tolist()), tuple(scale.tolist())
