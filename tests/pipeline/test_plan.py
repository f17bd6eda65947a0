"""A plan depends on the videos and the recipe alone, fills shards of one bucket, and accounts for every frame."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vae import load_vae
from pipeline.cache import Cache
from pipeline.chunk import SAME_TIME_S, clip_fps, count_frames
from pipeline.errors import Refused
from pipeline.plan import (
    DROPPED,
    Account,
    Plan,
    clip_key,
    find_tombstones,
    latent_bytes,
    make_plan,
    planned_videos,
    read_tombstones,
    shards_of,
)
from pipeline.recipe import Recipe
from pipeline.records import Clip, Scene, Tombstone, Video
from pipeline.tables import write_records

SPEC = load_vae("dct").spec
RECIPE = Recipe(SPEC, fps=24.0, buckets=((64, 64), (64, 96)), max_chunks=3, tail="drop", scenes="content")
CHUNK_BYTES = 2 * 16 * 5 * 8 * 8  # float16, of 64x64
SHARD_BYTES = 4 * CHUNK_BYTES
START_S = 1.5


def video(number: int, frames: int = 60, fps: float = 24.0, width: int = 64, height: int = 64, **more) -> Video:
    identity = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    end_s = START_S + (frames - 1) / fps
    facts = (identity, f"/{number}.mp4", "", 1, 1, "h264", 0, height, width, frames, START_S, end_s, fps)
    return Video(*facts, **more)


def cut(one: Video, firsts: list[int], **looks: list[float]) -> list[Scene]:
    """Scenes of a video of constant rate that begin at these frames."""
    firsts = sorted({0, *(first for first in firsts if first < one.num_frames)})
    return [
        Scene(
            one.id,
            number,
            first,
            end - first,
            one.start_s + first / one.fps,
            one.start_s + (end - 1) / one.fps,
            **{name: values[number] for name, values in looks.items()},
        )
        for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], one.num_frames]))
    ]


def plan_of(
    videos: list[Video],
    recipe: Recipe = RECIPE,
    shard_bytes: int = SHARD_BYTES,
    scenes: dict[str, list[Scene]] | None = None,
) -> Plan:
    return make_plan(videos, scenes or {}, recipe, shard_bytes, 0)


VIDEOS = st.lists(
    st.builds(
        video,
        st.integers(0, 10**6),
        st.one_of(st.just(1), st.integers(1, 400)),
        st.floats(1, 60),
        st.sampled_from([32, 64, 96]),
    ),
    max_size=8,
    unique_by=lambda one: one.id,
)
RECIPES = st.builds(
    lambda chunks, **fields: replace(RECIPE, min_chunks=chunks[0], max_chunks=chunks[1], **fields),
    st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
    tail=st.sampled_from(["drop", "pad", "overlap"]),
    fps=st.sampled_from([8.0, 23.976, 24.0]),
    latent=st.sampled_from([SPEC, replace(SPEC, chunk_frames=5), replace(SPEC, chunk_frames=81)]),
    upscale=st.sampled_from([1.0, 2.0]),
    filter=st.sampled_from(["", "motion > 0.5", "width > 64"]),
)


@st.composite
def ingests(draw: st.DrawFn) -> tuple[list[Video], dict[str, list[Scene]], Recipe]:
    """Videos, scenes of some of them, and a recipe."""
    videos, scenes = draw(VIDEOS), {}
    for one in videos:
        if draw(st.booleans()):
            firsts = draw(st.lists(st.integers(1, one.num_frames), max_size=4))
            motion = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5))
            scenes[one.id] = cut(one, firsts, motion=motion)
    return videos, scenes, draw(RECIPES)


def slots_of(clip: Clip) -> range:
    return range(clip.first_frame, clip.first_frame + clip.valid_frames)


@given(ingests())
def test_every_frame_is_accounted_for(ingest: tuple[list[Video], dict[str, list[Scene]], Recipe]) -> None:
    videos, scenes, recipe = ingest
    made = make_plan(videos, scenes, recipe, SHARD_BYTES, 0)
    account = made.account
    assert account.frames == account.used + account.padded + sum(getattr(account, name) for name in DROPPED)
    assert account.container == sum(one.num_frames for one in videos)
    counted = {one.id: count_frames(one.start_s, one.end_s, clip_fps(one.fps, recipe.fps)) for one in videos}
    assert account.frames == sum(counted.values()) <= account.container
    shown = {(clip.video, slot) for clip in made.clips for slot in slots_of(clip)}
    assert len(shown) == account.used + account.padded
    assert all(slot < counted[video] for video, slot in shown)
    without = {one.video for one in made.quarantined}
    assert without.isdisjoint(clip.video for clip in made.clips)
    left = set(counted) - without - {clip.video for clip in made.clips}  # nobody wants these
    assert not left or (recipe.filter and account.dropped_filter >= sum(counted[video] for video in left))


@given(ingests())
def test_no_clip_crosses_a_cut(ingest: tuple[list[Video], dict[str, list[Scene]], Recipe]) -> None:
    videos, scenes, recipe = ingest
    known = {one.id: one for one in videos}
    for clip in make_plan(videos, scenes, recipe, SHARD_BYTES, 0).clips:
        one = known[clip.video]
        cuts = [scene.start_s for scene in scenes.get(clip.video, [])[1:]]
        first_s, last_s = (one.start_s + slots_of(clip)[place] / clip.fps for place in (0, -1))
        assert not [cut_s for cut_s in cuts if first_s < cut_s - SAME_TIME_S - 1e-9 and last_s >= cut_s]
        within = [one.start_s, *(cut_s for cut_s in cuts if cut_s <= first_s + SAME_TIME_S + 1e-9)][-1]
        assert clip.scene_start_s == within
        assert clip.scene_start_s <= clip.scene_end_s <= one.end_s


@given(ingests())
def test_clips_share_frames_only_where_one_overlaps(
    ingest: tuple[list[Video], dict[str, list[Scene]], Recipe],
) -> None:
    videos, scenes, recipe = ingest
    by_scene: dict[tuple[str, float], list[Clip]] = {}
    for clip in make_plan(videos, scenes, recipe, SHARD_BYTES, 0).clips:
        by_scene.setdefault((clip.video, clip.scene_start_s), []).append(clip)
    for clips in by_scene.values():
        *body, last = sorted(clips, key=lambda clip: clip.first_frame)
        for one, other in zip([*body, last], [*body, last][1:]):
            apart = slots_of(one).stop <= slots_of(other).start
            assert apart or (recipe.tail == "overlap" and other is last)


@given(ingests())
def test_clips_are_as_long_as_the_recipe_says(ingest: tuple[list[Video], dict[str, list[Scene]], Recipe]) -> None:
    videos, scenes, recipe = ingest
    images = {one.id for one in videos if one.num_frames == 1}
    for clip in make_plan(videos, scenes, recipe, SHARD_BYTES, 0).clips:
        if clip.video in images:
            assert (clip.num_chunks, clip.num_frames, clip.valid_frames, clip.fps) == (1, 1, 1, 120.0)
        else:
            assert recipe.min_chunks <= clip.num_chunks <= recipe.max_chunks
            assert clip.num_frames == clip.num_chunks * recipe.latent.chunk_frames
            missing = clip.num_frames - clip.valid_frames
            assert 0 <= missing < recipe.latent.chunk_frames  # a chunk of padding alone would be invented
            assert recipe.tail == "pad" or not missing


@given(ingests())
def test_keys_are_unique_and_have_no_dots(ingest: tuple[list[Video], dict[str, list[Scene]], Recipe]) -> None:
    videos, scenes, recipe = ingest
    keys = [clip.key for clip in make_plan(videos, scenes, recipe, SHARD_BYTES, 0).clips]
    assert len(set(keys)) == len(keys)
    assert not any("." in key for key in keys)


@given(ingests(), st.randoms())
def test_the_order_of_videos_and_scenes_does_not_matter(
    ingest: tuple[list[Video], dict[str, list[Scene]], Recipe], random
) -> None:
    videos, scenes, recipe = ingest
    shuffled = {name: random.sample(scenes[name], len(scenes[name])) for name in random.sample([*scenes], len(scenes))}
    made = make_plan(videos, scenes, recipe, SHARD_BYTES, 0)
    assert make_plan(random.sample(videos, len(videos)), shuffled, recipe, SHARD_BYTES, 0) == made


def test_the_same_videos_give_the_same_file(tmp_path: Path) -> None:
    videos = [video(n) for n in range(9)]
    for name, order in (("a", videos), ("b", videos[::-1])):
        write_records(tmp_path / name, Clip, plan_of(order).clips)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(ingests(), st.integers(1, 10 * CHUNK_BYTES))
def test_a_shard_has_one_bucket_and_chunk_length_and_keeps_to_its_size(
    ingest: tuple[list[Video], dict[str, list[Scene]], Recipe], shard_bytes: int
) -> None:
    videos, scenes, recipe = ingest
    clips = make_plan(videos, scenes, recipe, shard_bytes, 7).clips
    shards = shards_of(clips)
    assert [clip for members in shards.values() for clip in members] == list(clips)
    assert len(set(shards)) == len({clip.shard for clip in clips})  # no shard is begun twice
    assert list(shards) == sorted(shards)
    kinds = []
    for shard, members in shards.items():
        assert {f"{clip.height}x{clip.width}" for clip in members} == {shard.split("/")[0]}
        [frames] = {clip.chunk_frames for clip in members}
        kinds.append((members[0].height, members[0].width, frames))
        assert len(members) == 1 or sum(size_of(clip, recipe) for clip in members) <= shard_bytes
    assert kinds == sorted(kinds)
    names = list(shards)
    for before, after, kind, next_kind in zip(names, names[1:], kinds, kinds[1:]):
        if kind == next_kind:  # and none could have taken the next one's first clip
            filled = sum(size_of(clip, recipe) for clip in shards[before])
            assert filled + size_of(shards[after][0], recipe) > shard_bytes


def size_of(clip: Clip, recipe: Recipe) -> int:
    return latent_bytes(clip.num_frames, (clip.height, clip.width), recipe)


def test_shards_are_named_by_bucket_generation_and_number() -> None:
    videos = [video(1, frames=17 * 5), video(2, frames=17, width=96)]
    clips = make_plan(videos, {}, RECIPE, SHARD_BYTES, 12).clips
    assert list(shards_of(clips)) == ["64x64/0012-000000", "64x64/0012-000001", "64x96/0012-000000"]


def test_images_have_shards_of_their_own_beside_those_of_clips() -> None:
    clips = plan_of([video(1, frames=1), video(2, frames=17), video(3, frames=1)]).clips
    assert [(clip.shard, clip.num_frames) for clip in clips] == [
        ("64x64/0000-000000", 1),
        ("64x64/0000-000000", 1),
        ("64x64/0000-000001", 17),
    ]


def test_an_image_needs_no_chunk() -> None:
    for tail in ("drop", "pad", "overlap"):
        (clip,) = plan_of([video(1, frames=1, fps=1.0)], replace(RECIPE, tail=tail, min_chunks=3)).clips
        assert (clip.num_chunks, clip.num_frames, clip.valid_frames, clip.fps) == (1, 1, 1, 120.0)


def test_a_shard_may_be_exactly_full() -> None:
    clips = plan_of([video(1, frames=17 * 4)]).clips  # of three chunks and of one
    assert [(shard, len(members)) for shard, members in shards_of(clips).items()] == [("64x64/0000-000000", 2)]


def test_a_clip_larger_than_a_shard_has_one_of_its_own() -> None:
    clips = plan_of([video(1, frames=17 * 6)], shard_bytes=1).clips
    assert [clip.shard for clip in clips] == ["64x64/0000-000000", "64x64/0000-000001"]


def test_a_key_says_which_frames_of_what_at_which_size() -> None:
    assert clip_key("0123456789abcdef", 34, (240, 426)) == "0123456789abcdef-00000034-240x426"


def test_a_clip_tells_its_scene() -> None:
    one = video(1, frames=60)
    clips = plan_of([one], scenes={one.id: cut(one, [20])}).clips
    assert [(clip.first_frame, clip.num_chunks) for clip in clips] == [(0, 1), (20, 2)]
    spans = [(clip.scene_start_s, clip.scene_end_s) for clip in clips]
    assert spans == [(START_S, START_S + 19 / 24), (START_S + 20 / 24, START_S + 59 / 24)]


@pytest.mark.parametrize(
    ("one", "firsts", "change", "reason"),
    [
        (video(1, frames=16, fps=10.0), [], {}, "too short: 16 frames at 10 fps; a clip needs 17"),
        (video(1, frames=33), [], {"min_chunks": 2}, "too short: 33 frames at 24 fps; a clip needs 34"),
        (
            video(1, frames=17),
            [],
            {"min_chunks": 2, "tail": "pad"},
            "too short: 17 frames at 24 fps; a clip needs 18",
        ),
        (video(1, frames=40), [15, 30], {}, "too short: 40 frames at 24 fps in 3 scenes; a clip needs 17"),
        (
            video(1, height=36, width=64),
            [],
            {},
            "too small: 36x64, the bucket 64x64 would enlarge it by 1.78, recipe.upscale is 1",
        ),
    ],
    ids=["short", "below min_chunks", "short for padding", "short scenes", "small"],
)
def test_a_video_without_a_clip_is_set_aside_with_the_reason(
    one: Video, firsts: list[int], change: dict, reason: str
) -> None:
    made = plan_of([one], replace(RECIPE, **change), scenes={one.id: cut(one, firsts)})
    assert made.clips == ()
    assert [aside.reason for aside in made.quarantined] == [reason]
    assert [(aside.path, aside.stage, aside.video) for aside in made.quarantined] == [("/1.mp4", "plan", one.id)]


def test_a_video_that_the_filter_leaves_out_is_accounted_for_and_not_bad() -> None:
    made = plan_of([video(1)], replace(RECIPE, filter="width > 64"))
    assert made == Plan((), (), Account(container=60, frames=60, dropped_filter=60))


def test_a_video_too_short_for_what_the_filter_leaves_says_so() -> None:
    one = video(1, frames=60)
    made = plan_of([one], replace(RECIPE, filter="motion > 0.5"), scenes={one.id: cut(one, [50], motion=[0.0, 1.0])})
    assert [aside.reason for aside in made.quarantined] == [
        "too short: 60 frames at 24 fps in 2 scenes, 50 of them left out by recipe.filter; a clip needs 17"
    ]
    assert made.account == Account(container=60, frames=60, dropped_short=10, dropped_filter=50)


def test_the_account_tells_the_reasons_apart() -> None:
    recipe = replace(RECIPE, min_chunks=2, filter="motion > 0.5", fps=12.0)
    one, small = video(1, frames=2 * 200 - 1), video(2, frames=9, width=32)
    scenes = {one.id: cut(one, [2 * 100, 2 * 110, 2 * 130], motion=[1.0, 1.0, 0.0, 1.0])}
    # At 12 fps: 100 = 51 + 34 in clips + 15 over; 10 too short; 20 filtered; 70 = 51 in a clip + 17 too few + 2 over.
    account = make_plan([one, small], scenes, recipe, SHARD_BYTES, 0).account
    assert account == Account(
        container=408,
        frames=205,
        used=51 + 34 + 51,
        dropped_short=10,
        dropped_tail=15 + 2,
        dropped_rest=17,
        dropped_filter=20,
        dropped_small=5,
    )


def test_a_filter_knows_videos_scenes_their_length_and_the_columns_of_the_user() -> None:
    one, other = video(1, extra='{"aesthetic": 5.5}'), video(2, extra='{"aesthetic": 4}')
    scenes = {one.id: cut(one, [20], luminance=[0.1, 0.9]), other.id: cut(other, [], luminance=[0.9])}
    for text, wanted in {
        "": [(one.id, 0), (one.id, 20), (other.id, 0), (other.id, 51)],
        "luminance > 0.5": [(one.id, 20), (other.id, 0), (other.id, 51)],
        "aesthetic >= 5": [(one.id, 0), (one.id, 20)],
        "scene_s > 1 and num_frames == 60 and codec == 'h264'": [(one.id, 20), (other.id, 0), (other.id, 51)],
        "scene_s < 0.84 and scene_s > 0.83": [(one.id, 0)],  # 20 frames at 24 fps
    }.items():
        recipe = replace(RECIPE, filter=text, tail="pad")
        clips = make_plan([one, other], scenes, recipe, SHARD_BYTES, 0).clips
        found = sorted((clip.video, clip.first_frame) for clip in clips)
        assert found == sorted(wanted), text


def test_an_image_lasts_no_time() -> None:
    image = video(1, frames=1, fps=1.0)
    assert plan_of([image], replace(RECIPE, filter="scene_s > 0")).clips == ()
    assert len(plan_of([image], replace(RECIPE, filter="scene_s == 0")).clips) == 1


def test_a_filter_has_nothing_to_say_where_nothing_is_new() -> None:
    assert plan_of([], replace(RECIPE, filter="motion > 0.5")) == Plan((), (), Account())


def test_a_filter_on_looks_wants_scenes() -> None:
    recipe = replace(RECIPE, scenes="off", filter="width > 2 and motion > 0.1")
    with pytest.raises(Refused, match="asks for motion, and with recipe.scenes=off nobody has looked; set recipe"):
        plan_of([video(1)], recipe)


def test_a_filter_on_what_nobody_knows_is_refused() -> None:
    with pytest.raises(Refused, match="beauty"):
        plan_of([video(1)], replace(RECIPE, filter="beauty > 1"))


def test_a_small_video_is_taken_where_upscaling_is_asked_for() -> None:
    (clip,) = plan_of([video(1, frames=17, width=32)], replace(RECIPE, upscale=2.0)).clips
    assert (clip.height, clip.width) == (64, 64)


def test_a_clip_carries_its_rate_and_bucket() -> None:
    (clip,) = plan_of([video(1, frames=40, fps=48.0, width=100)]).clips
    assert (clip.fps, clip.height, clip.width, clip.first_frame, clip.num_chunks) == (24.0, 64, 96, 0, 1)


def test_latents_are_two_bytes_each() -> None:
    assert latent_bytes(34, (64, 64), RECIPE) == 2 * CHUNK_BYTES


def test_removed_videos_are_not_planned() -> None:
    made = plan_of([video(1), video(2, removed=True)])
    assert {clip.video for clip in made.clips} == {video(1).id}
    assert made.quarantined == () and made.account.container == 60


def test_a_tombstone_stands_for_a_planned_video_that_was_removed_or_forgotten() -> None:
    stays, removed, forgotten, never = (video(n) for n in range(4))
    planned = {stays.id, removed.id, forgotten.id}
    found = find_tombstones(planned, [stays, replace(removed, removed=True), replace(never, removed=True)])
    assert found == sorted([Tombstone(removed.id, "/1.mp4"), Tombstone(forgotten.id, "")], key=lambda one: one.video)


def test_tombstones_and_planned_videos_are_read_from_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert read_tombstones(cache) == planned_videos(cache) == set()
    write_records(cache.tombstones, Tombstone, [Tombstone("a", "/a.mp4"), Tombstone("b", "")])
    assert read_tombstones(cache) == {"a", "b"}
    for generation in (0, 1):
        write_records(cache.plan(generation), Clip, plan_of([video(generation, frames=100)]).clips)
    assert planned_videos(cache) == {video(0).id, video(1).id}
