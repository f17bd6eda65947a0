"""Which videos are held out of training: those that a hash of their id picks, whatever else is in the cache."""

from typing import NamedTuple

import numpy as np
from einops import rearrange

WORD_BYTES = 8
ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: the usual multiplier of such hashes


class Split(NamedTuple):
    """One side of the division of all videos into those that are trained on and those that are held out."""

    share: float = 0.0  # of the videos that are held out
    held_out: bool = False  # these, else the others

    def takes(self, videos: np.ndarray) -> np.ndarray:
        """Ids (n,) S<bytes> -> which of them are of this side, (n,) bool; a larger share holds out those of a smaller
        one too."""
        return (hash_ids(videos) < self.share) == self.held_out


ALL = Split()


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """Ids (n,) S<bytes>, whole words of eight -> (n,) float64, evenly in 0..1; the same on every machine."""
    words = np.frombuffer(ids.tobytes(), "<u8")
    mixed = np.zeros(len(ids), np.uint64)
    for word in rearrange(words, "(ids words) -> words ids", words=ids.itemsize // WORD_BYTES):
        mixed = (mixed ^ word) * ODD
        mixed ^= mixed >> np.uint64(32)
    return (mixed >> np.uint64(11)) / 2.0**53
