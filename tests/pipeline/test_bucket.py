"""A video goes to the bucket most like it, and what is cut off is cut evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bucket import bucket_name, choose_bucket, cover_size, crop_offset, enlargement, resolve_buckets
from pipeline.bucket_sets import BUCKET_SETS

SIDES = st.integers(2, 4000)
BUCKETS = st.tuples(st.integers(1, 128).map(lambda n: 8 * n), st.integers(1, 128).map(lambda n: 8 * n))
STRIDE = (8, 8)


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


def test_rounded_sizes_of_one_aspect_ratio_are_one() -> None:
    assert choose_bucket(1080, 1920, [(240, 424), (480, 848), (144, 256)]) == (480, 848)


def test_a_video_goes_to_the_larger_set_that_it_fills_and_there_to_the_nearest_ratio() -> None:
    """144x240 has exactly the ratio of 256x427, and a third of the pixels."""
    buckets = resolve_buckets(["144p", "240p"], STRIDE)
    assert (144, 240) in buckets
    assert choose_bucket(256, 427, buckets) == (248, 400)
    assert choose_bucket(240, 426, buckets) == (240, 424)
    assert choose_bucket(144, 256, buckets) == (144, 256)


def test_a_larger_bucket_of_quite_another_ratio_does_not_win() -> None:
    assert choose_bucket(512, 512, [(256, 256), (320, 512)]) == (256, 256)


def test_a_video_smaller_than_all_fits_none() -> None:
    assert choose_bucket(32, 32, [(512, 512), (64, 64), (128, 128)]) is None


def test_one_side_too_small_is_upscaling() -> None:
    assert choose_bucket(300, 250, [(64, 64), (256, 256)]) == (64, 64)
    assert choose_bucket(250, 300, [(64, 64), (256, 256)]) == (64, 64)


def test_a_bucket_that_does_not_fit_gives_way_to_one_less_alike() -> None:
    assert choose_bucket(180, 320, [(192, 344), (144, 144)]) == (144, 144)


def test_upscaling_goes_as_far_as_asked() -> None:
    buckets = [(64, 64), (128, 128), (256, 256)]
    assert choose_bucket(64, 64, buckets, upscale=2.0) == (128, 128)
    assert choose_bucket(64, 64, buckets, upscale=1.99) == (64, 64)
    assert choose_bucket(20, 64, buckets, upscale=2.0) is None


@given(SIDES, SIDES, st.lists(BUCKETS, min_size=1, max_size=8), st.floats(1, 4))
def test_a_choice_fits_and_does_not_depend_on_the_order(
    height: int, width: int, buckets: list[tuple[int, int]], upscale: float
) -> None:
    chosen = choose_bucket(height, width, buckets, upscale)
    assert chosen == choose_bucket(height, width, buckets[::-1], upscale)
    fitting = [bucket for bucket in buckets if enlargement(height, width, bucket) <= upscale]
    assert chosen in fitting if fitting else chosen is None


def test_sets_are_rounded_down_to_whole_latents() -> None:
    found = resolve_buckets(["240p"], STRIDE)
    assert (240, 424) in found and (196 // 8 * 8, 520) in found
    assert all(height % 8 == 0 and width % 8 == 0 for height, width in found)
    assert resolve_buckets(["256"], STRIDE) == BUCKET_SETS["256"]  # which is made of multiples of 16


@pytest.mark.parametrize("name", BUCKET_SETS)
def test_a_set_is_of_about_one_area_and_of_aspect_ratios_between_one_to_four_and_four_to_one(name: str) -> None:
    sizes = BUCKET_SETS[name]
    areas = [height * width for height, width in sizes]
    assert max(areas) / min(areas) < 1.15
    assert all(0.24 < height / width < 4.1 for height, width in sizes)
    assert any(height == width for height, width in sizes)
    assert [height / width for height, width in sizes] == sorted(height / width for height, width in sizes)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("144p", (144, 256)),
        ("240p", (240, 426)),
        ("360p", (360, 640)),
        ("480p", (480, 854)),
        ("720p", (720, 1280)),
        ("1080p", (1080, 1920)),
        ("256", (256, 256)),
        ("512", (512, 512)),
        ("1024", (1024, 1024)),
    ],
)
def test_a_set_has_the_size_it_is_named_after(name: str, size: tuple[int, int]) -> None:
    assert size in BUCKET_SETS[name]


def test_names_and_sizes_mix_in_the_order_asked_for_each_once() -> None:
    found = resolve_buckets([(64, 64), "256", (256, 256), "256", (64, 64)], STRIDE)
    assert found == ((64, 64), *BUCKET_SETS["256"])
    assert len(set(resolve_buckets(["144p"], STRIDE))) == len(resolve_buckets(["144p"], STRIDE))


def test_explicit_sizes_stay_as_they_are() -> None:
    assert resolve_buckets([(100, 101)], STRIDE) == ((100, 101),)  # the recipe refuses them, saying what would fit


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="'900p' is not the name of a set; known: 144p, 240p, 256, .*1080p"):
        resolve_buckets(["900p"], STRIDE)


@given(SIDES, SIDES, BUCKETS)
def test_the_cover_covers_and_no_more(height: int, width: int, bucket: tuple[int, int]) -> None:
    tall, wide = cover_size(height, width, bucket)
    assert tall >= bucket[0] and wide >= bucket[1]
    assert tall == bucket[0] or wide == bucket[1]
    scale = enlargement(height, width, bucket)
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
