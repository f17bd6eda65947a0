"""How long a cached clip is shown at a time, how often, and how many such samples make a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from pipeline.bucket import resolve_buckets
from pipeline.bucket_sets import BUCKET_SETS
from pipeline.errors import Refused


class Bucket(NamedTuple):
    """Size and length: of a clip as it is cached, which decides how it can be shown, or of the samples of a batch.

    Its fields are columns of the index.
    """

    height: int  # pixels
    width: int
    num_frames: int
    num_chunks: int

    @property
    def chunk_frames(self) -> int:
        return self.num_frames // self.num_chunks


class Entry(NamedTuple):
    """What a table says of one length at one size."""

    share: float  # how often per epoch a clip is shown that is to be shown at this length
    keep: float  # of the clips that are long enough, how many are; the others go to the next shorter length
    batch: int  # samples of a global batch; 0 = as the run says


Table = Mapping[str, Mapping[int, Entry]]  # by size ("256x256", a set's name such as "240p", or "*") and frames


@dataclass(frozen=True)
class Length:
    """One way to show a clip."""

    num_chunks: int
    probability: float
    batch: int


@dataclass(frozen=True)
class Lengths:
    """The ways to show clips of one kind, the longest first; their probabilities add up to 1."""

    share: float
    ways: tuple[Length, ...]


BatchOf = Callable[[int, int, int], int]  # (frames, height, width) of a sample -> samples of a global batch


def whole(kind: Bucket, batch: int) -> Lengths:
    """A clip as it is cached."""
    return Lengths(1.0, (Length(kind.num_chunks, 1.0, batch),))


def lengths_of(kind: Bucket, table: Table, stride: tuple[int, int], batch_of: BatchOf) -> Lengths:
    """How clips of a kind are shown by a table; whole where it says nothing of their size.

    `batch_of` says how many make a batch where the table does not. Sizes of sets are rounded down to multiples of
    `stride`, as they were when clips were planned. A clip that is shorter than every length is shown whole, by the
    entry of the shortest, so that none is left out. Refused where a length is not made of whole chunks, or nothing
    would ever be shown.
    """
    is_image = kind.num_frames == 1
    entries = _entries(kind, table, stride)
    suiting = {frames: entry for frames, entry in entries.items() if (frames == 1) == is_image}
    if not suiting:
        return whole(kind, batch_of(kind.num_frames, kind.height, kind.width))
    if odd := [frames for frames in suiting if frames % kind.chunk_frames]:
        raise Refused(
            f"train.buckets: {odd[0]} frames at {kind.height}x{kind.width}, whose chunks have {kind.chunk_frames}; "
            f"wanted multiples of that, or 1 for images"
        )
    fitting = {frames: entry for frames, entry in suiting.items() if frames <= kind.num_frames}
    fitting = fitting or {kind.num_frames: suiting[min(suiting)]}
    shown, left = {}, 1.0  # the share of the clips that each length is meant for
    for frames in sorted(fitting, reverse=True):
        shown[frames] = left * (fitting[frames].keep if frames != min(fitting) else 1.0)
        left -= shown[frames]
    if not any(shown[frames] * entry.share for frames, entry in fitting.items()):
        raise Refused(f"train.buckets: no clip of {kind.height}x{kind.width} is ever shown; give one length a share")
    share = 1 - sum(shown[frames] * (1 - entry.share) for frames, entry in fitting.items())  # just 1 where all are 1
    ways = [
        Length(
            frames // kind.chunk_frames,
            part * fitting[frames].share / share,
            fitting[frames].batch or batch_of(frames, kind.height, kind.width),
        )
        for frames, part in shown.items()
        if part * fitting[frames].share
    ]
    return Lengths(share, tuple(ways))


def check_table(table: Table) -> None:
    """ValueError where a table of the user's own has unknown sizes or numbers that cannot be."""
    for size, entries in table.items():
        height, _, width = size.partition("x")
        if not (size == "*" or size in BUCKET_SETS or (height.isdecimal() and width.isdecimal())):
            raise ValueError(f"{size!r} is no size; wanted HEIGHTxWIDTH, * or one of {', '.join(BUCKET_SETS)}")
        for frames, (share, keep, batch) in entries.items():
            if not (frames >= 1 and 0 <= share < inf and 0 <= keep <= 1 and batch >= 0):
                raise ValueError(
                    f"{size}: {frames} = [{share:g}, {keep:g}, {batch}] cannot be; wanted frames = [share, keep, "
                    f"batch]: a share of at least 0, a keep in 0..1, a batch of at least 0"
                )


def _entries(kind: Bucket, table: Table, stride: tuple[int, int]) -> Mapping[int, Entry]:
    """The part of a table for a size: that of the size itself, else of the first set that has it, else of `*`."""
    if (exact := table.get(f"{kind.height}x{kind.width}")) is not None:
        return exact
    for name, entries in table.items():
        if name in BUCKET_SETS and (kind.height, kind.width) in resolve_buckets([name], stride):
            return entries
    return table.get("*", {})
