"""A video goes to the bucket most like it, and what is cut off is cut evenly."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.bucket import bucket_name, choose_bucket, cover_size, crop_offset

SIDES = st.integers(2, 4000)
BUCKETS = st.tuples(st.integers(1, 128).map(lambda n: 8 * n), st.integers(1, 128).map(lambda n: 8 * n))


def test_the_nearest_aspect_ratio_wins() -> None:
    buckets = [(256, 256), (192, 320), (320, 192)]
    assert choose_bucket(1080, 1920, buckets) == (192, 320)
    assert choose_bucket(1920, 1080, buckets) == (320, 192)
    assert choose_bucket(500, 480, buckets) == (256, 256)


def test_aspect_ratios_are_compared_as_ratios() -> None:
    # 1:2 is nearer to 1:1 by difference (0.5 against 1.0), yet as far as 2:1; 1.5:1 is nearer to 1:1 than 1:2 is.
    assert choose_bucket(100, 150, [(64, 64), (64, 136)]) == (64, 136)
    assert choose_bucket(150, 100, [(64, 64), (136, 64)]) == (136, 64)


def test_of_one_aspect_ratio_the_largest_without_upscaling_wins() -> None:
    buckets = [(64, 64), (512, 512), (128, 128), (256, 256)]
    assert choose_bucket(300, 300, buckets) == (256, 256)
    assert choose_bucket(256, 256, buckets) == (256, 256)
    assert choose_bucket(255, 255, buckets) == (128, 128)


def test_a_video_smaller_than_all_takes_the_smallest() -> None:
    assert choose_bucket(32, 32, [(512, 512), (64, 64), (128, 128)]) == (64, 64)


def test_one_side_too_small_is_upscaling() -> None:
    assert choose_bucket(300, 250, [(64, 64), (256, 256)]) == (64, 64)


@given(SIDES, SIDES, BUCKETS)
def test_the_cover_covers_and_no_more(height: int, width: int, bucket: tuple[int, int]) -> None:
    tall, wide = cover_size(height, width, bucket)
    assert tall >= bucket[0] and wide >= bucket[1]
    assert tall == bucket[0] or wide == bucket[1]
    scale = max(bucket[0] / height, bucket[1] / width)
    assert abs(tall - height * scale) <= 0.5 + 1e-6 and abs(wide - width * scale) <= 0.5 + 1e-6  # the same aspect ratio


def test_a_wide_video_overhangs_at_its_sides() -> None:
    assert cover_size(100, 300, (64, 64)) == (64, 192)
    assert cover_size(300, 100, (64, 64)) == (192, 64)


@given(BUCKETS, st.integers(0, 300), st.integers(0, 300))
def test_the_crop_is_centred(bucket: tuple[int, int], over_height: int, over_width: int) -> None:
    top, left = crop_offset((bucket[0] + over_height, bucket[1] + over_width), bucket)
    assert 0 <= (over_height - top) - top <= 1
    assert 0 <= (over_width - left) - left <= 1


def test_height_comes_first_in_a_name() -> None:
    assert bucket_name((240, 426)) == "240x426"
