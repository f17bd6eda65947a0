"""Buckets: which (height, width) a video is encoded at, and how its frames are brought there."""

import math
from collections.abc import Sequence

SAME_ASPECT = 0.02  # difference of the logarithms of two aspect ratios


def resolve_buckets(asked: Sequence[tuple[int, int] | str], stride: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes and names of sets -> sizes; ValueError where a name is not known."""
    return tuple(bucket for bucket in asked if not isinstance(bucket, str))


def choose_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket of the nearest aspect ratio; of several the largest that needs no upscaling, else the smallest.

    Tables of one aspect ratio round their sizes (240x426, 480x854), so ratios within 2 % of the nearest count as equal.
    """

    def aspect_error(bucket: tuple[int, int]) -> float:
        return abs(math.log((bucket[0] / bucket[1]) / (height / width)))

    def preference(bucket: tuple[int, int]) -> tuple[bool, int, float, tuple[int, int]]:
        upscales = bucket[0] > height or bucket[1] > width
        area = bucket[0] * bucket[1]
        return upscales, area if upscales else -area, aspect_error(bucket), bucket

    nearest = min(map(aspect_error, buckets))
    return min((bucket for bucket in buckets if aspect_error(bucket) <= nearest + SAME_ASPECT), key=preference)


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
