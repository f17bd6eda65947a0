"""Buckets: which (height, width) a video is encoded at, and how its frames are brought there."""

import math
from collections.abc import Sequence
from math import prod

from pipeline.bucket_sets import BUCKET_SETS

# Of two aspect ratios, as a difference of logarithms: a larger picture is worth a tenth of it, cropped. Small buckets,
# rounded to whole latents, lie that far from the ratio they are meant to have.
SAME_ASPECT = 0.1
SAME_AREA = 0.8  # of two areas; the sizes of a set differ by less


def resolve_buckets(asked: Sequence[tuple[int, int] | str], stride: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes and names of sets -> sizes, each once, in the order asked for; ValueError where a name is not known.

    Sizes of sets are rounded down to whole latents of `stride` (height, width) pixels: 240x426 -> 240x424. Rounded up,
    a video of just that size would have to be enlarged.
    """
    found: list[tuple[int, int]] = []
    for one in asked:
        if not isinstance(one, str):
            found.append(one)
        elif one in BUCKET_SETS:
            found += [(height - height % stride[0], width - width % stride[1]) for height, width in BUCKET_SETS[one]]
        else:
            known = ", ".join(BUCKET_SETS)
            raise ValueError(f"{one!r} is not the name of a set; known: {known}; or give [height, width]")
    return tuple(dict.fromkeys(found))


def choose_bucket(
    height: int, width: int, buckets: Sequence[tuple[int, int]], upscale: float = 1.0
) -> tuple[int, int] | None:
    """The bucket that shows most of a video, among those it fills when enlarged by no more than `upscale`.

    Of those with about the nearest aspect ratio, and then of the largest of them, the one whose ratio is nearest. None
    where the video is too small for every bucket.
    """
    fitting = [bucket for bucket in buckets if enlargement(height, width, bucket) <= upscale]
    if not fitting:
        return None

    def aspect_error(bucket: tuple[int, int]) -> float:
        return abs(math.log((bucket[0] / bucket[1]) / (height / width)))

    nearest = min(map(aspect_error, fitting))
    alike = [bucket for bucket in fitting if aspect_error(bucket) <= nearest + SAME_ASPECT]
    largest = [bucket for bucket in alike if prod(bucket) >= SAME_AREA * max(map(prod, alike))]
    return min(largest, key=lambda bucket: (aspect_error(bucket), -prod(bucket), bucket))


def enlargement(height: int, width: int, bucket: tuple[int, int]) -> float:
    """The factor by which a video is resized to cover the bucket; above 1 pixels are invented."""
    return max(bucket[0] / height, bucket[1] / width)


def cover_size(height: int, width: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of the source's aspect ratio that covers the bucket."""
    scale = max(bucket[0] / height, bucket[1] / width)
    return max(bucket[0], round(height * scale)), max(bucket[1], round(width * scale))


def crop_offset(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the centre crop."""
    return (size[0] - bucket[0]) // 2, (size[1] - bucket[1]) // 2


def bucket_name(bucket: tuple[int, int]) -> str:
    """(240, 426) -> 240x426: height first, as everywhere."""
    return f"{bucket[0]}x{bucket[1]}"
