"""A plan depends on the videos and the recipe alone, fills shards of one bucket, and accounts for every frame."""

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from models.vae import load_vae
from pipeline.plan import Account, clip_key, latent_bytes, make_plan, shards_of
from pipeline.recipe import Recipe
from pipeline.records import Clip, Video
from pipeline.tables import write_records

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 64), (64, 96)), max_chunks=3, tail="drop")
CHUNK_BYTES = 2 * 16 * 5 * 8 * 8  # float16, of 64x64
SHARD_BYTES = 4 * CHUNK_BYTES


def video(number: int, frames: int = 60, fps: float = 24.0, width: int = 64) -> Video:
    identity = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    end_s = 1.5 + (frames - 1) / fps
    return Video(identity, f"/{number}.mp4", "", 1, 1, "h264", 0, 64, width, frames, 1.5, end_s, fps)


VIDEOS = st.lists(
    st.builds(video, st.integers(0, 10**6), st.integers(1, 400), st.floats(1, 60), st.sampled_from([64, 96])),
    max_size=12,
    unique_by=lambda one: one.id,
)


@given(VIDEOS)
def test_every_frame_is_accounted_for(videos: list[Video]) -> None:
    plan = make_plan(videos, RECIPE, SHARD_BYTES, 0)
    account = plan.account
    assert account.frames == account.used + account.dropped_tail + account.dropped_short
    assert account.used == 17 * sum(clip.num_chunks for clip in plan.clips)
    short = {one.path for one in plan.quarantined}
    counted = [one.num_frames if one.fps <= 24 else int((one.end_s - 1.5) * 24 + 0.5) + 1 for one in videos]
    assert account.frames == sum(counted)
    assert account.dropped_short == sum(n for n, one in zip(counted, videos) if one.path in short)
    assert {one.path for one in videos} - short == {one.path for one in videos if one.id in _planned(plan.clips)}


def _planned(clips: tuple[Clip, ...]) -> set[str]:
    return {clip.video for clip in clips}


@given(VIDEOS, st.randoms())
def test_the_order_of_the_videos_does_not_matter(videos: list[Video], random) -> None:
    shuffled = random.sample(videos, len(videos))
    assert make_plan(videos, RECIPE, SHARD_BYTES, 0) == make_plan(shuffled, RECIPE, SHARD_BYTES, 0)


def test_the_same_videos_give_the_same_file(tmp_path: Path) -> None:
    videos = [video(n) for n in range(9)]
    for name, order in (("a", videos), ("b", videos[::-1])):
        write_records(tmp_path / name, Clip, make_plan(order, RECIPE, SHARD_BYTES, 0).clips)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(VIDEOS, st.integers(1, 10 * CHUNK_BYTES))
def test_a_shard_has_one_bucket_and_keeps_to_its_size(videos: list[Video], shard_bytes: int) -> None:
    clips = make_plan(videos, RECIPE, shard_bytes, 7).clips
    shards = shards_of(clips)
    assert [clip for members in shards.values() for clip in members] == list(clips)
    assert len(set(shards)) == len({clip.shard for clip in clips})  # no shard is begun twice
    for shard, members in shards.items():
        assert {f"{clip.height}x{clip.width}" for clip in members} == {shard.split("/")[0]}
        assert len(members) == 1 or sum(latent_bytes(clip, RECIPE) for clip in members) <= shard_bytes
    names = list(shards)
    for before, after in zip(names, names[1:]):  # and none could have taken the next one's first clip
        if before.split("/")[0] == after.split("/")[0]:
            filled = sum(latent_bytes(clip, RECIPE) for clip in shards[before])
            assert filled + latent_bytes(shards[after][0], RECIPE) > shard_bytes


def test_shards_are_named_by_bucket_generation_and_number() -> None:
    clips = make_plan([video(1, frames=17 * 5), video(2, frames=17, width=96)], RECIPE, SHARD_BYTES, 12).clips
    assert list(shards_of(clips)) == ["64x64/0012-000000", "64x64/0012-000001", "64x96/0012-000000"]


def test_a_shard_may_be_exactly_full() -> None:
    clips = make_plan([video(1, frames=17 * 4)], RECIPE, SHARD_BYTES, 0).clips  # of three chunks and of one
    assert [(shard, len(members)) for shard, members in shards_of(clips).items()] == [("64x64/0000-000000", 2)]


def test_a_clip_larger_than_a_shard_has_one_of_its_own() -> None:
    clips = make_plan([video(1, frames=17 * 6)], RECIPE, 1, 0).clips
    assert [clip.shard for clip in clips] == ["64x64/0000-000000", "64x64/0000-000001"]


def test_a_later_generation_leaves_earlier_shards_alone() -> None:
    first = make_plan([video(n) for n in range(5)], RECIPE, SHARD_BYTES, 0)
    second = make_plan([video(n) for n in range(5, 9)], RECIPE, SHARD_BYTES, 1)
    assert shards_of(first.clips).keys().isdisjoint(shards_of(second.clips))


@given(VIDEOS)
def test_keys_are_unique_and_have_no_dots(videos: list[Video]) -> None:
    keys = [clip.key for clip in make_plan(videos, RECIPE, SHARD_BYTES, 0).clips]
    assert len(set(keys)) == len(keys)
    assert not any("." in key for key in keys)


def test_a_key_says_which_frames_of_what_at_which_size() -> None:
    assert clip_key("0123456789abcdef", 34, (240, 426)) == "0123456789abcdef-00000034-240x426"


def test_a_short_video_is_set_aside_with_the_reason() -> None:
    plan = make_plan([video(1, frames=16, fps=10.0)], RECIPE, SHARD_BYTES, 0)
    assert plan.clips == ()
    assert [one.reason for one in plan.quarantined] == ["too short: 16 frames at 10 fps, a chunk needs 17"]
    assert [(one.path, one.stage) for one in plan.quarantined] == [("/1.mp4", "plan")]
    assert plan.account == Account(frames=16, dropped_short=16)


def test_a_clip_carries_its_rate_and_bucket() -> None:
    (clip,) = make_plan([video(1, frames=40, fps=48.0, width=100)], RECIPE, SHARD_BYTES, 0).clips
    assert (clip.fps, clip.height, clip.width, clip.first_frame, clip.num_chunks) == (24.0, 64, 96, 0, 1)


def test_latents_are_two_bytes_each() -> None:
    (clip,) = make_plan([video(1, frames=34)], RECIPE, SHARD_BYTES, 0).clips
    assert latent_bytes(clip, RECIPE) == 2 * CHUNK_BYTES
