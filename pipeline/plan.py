"""Manifest, scenes and recipe -> plan: which clips are cut from which videos, and which shard each goes to."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby, repeat
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from pipeline.bucket import bucket_name, choose_bucket, enlargement
from pipeline.cache import Cache
from pipeline.chunk import IMAGE_FPS, clip_fps, count_frames, split_clips, split_scenes
from pipeline.errors import Refused
from pipeline.filter import matches, names_in
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Quarantined, Scene, Tombstone, Video
from pipeline.tables import add_columns, read_records, read_table, table_of

LATENT_ITEM_BYTES = 2  # float16
LOOKS = tuple(field.name for field in fields(Look))

# Why frames are dropped: a field of the account, and how it is told.
DROPPED = {
    "dropped_short": "in scenes shorter than the shortest clip",
    "dropped_tail": "behind the last whole chunk",
    "dropped_rest": "in chunks too few for a clip of recipe.min_chunks",
    "dropped_filter": "in scenes that recipe.filter leaves out",
    "dropped_small": "of videos too small for every bucket",
}

Bucket = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Account:
    """Every frame at the sampling rate: used + padded + dropped = frames, exactly."""

    container: int = 0  # frames in the files; the others were left out by the sampling rate
    frames: int = 0
    used: int = 0  # in whole chunks; once, also where clips overlap
    padded: int = 0  # in chunks that are filled up by repeating the last frame
    dropped_short: int = 0
    dropped_tail: int = 0
    dropped_rest: int = 0
    dropped_filter: int = 0
    dropped_small: int = 0


@dataclass(frozen=True)
class Plan:
    """One generation: clips in shard order, the videos that cannot give one, and where every frame went."""

    clips: tuple[Clip, ...]
    quarantined: tuple[Quarantined, ...]
    account: Account


class Piece(NamedTuple):
    """A clip without a shard."""

    video: Video
    scene: Scene
    fps: float
    first_frame: int
    num_chunks: int
    valid_frames: int


def make_plan(
    videos: Iterable[Video],
    scenes: Mapping[str, Sequence[Scene]],
    recipe: Recipe,
    shard_bytes: int,
    generation: int,
) -> Plan:
    """Videos and the scenes of each, by its id -> plan; a video without scenes is one. Removed videos are left out.

    The same videos give the same plan, whatever their order. Refused where the filter names columns that are unknown.
    """
    present = sorted((video for video in videos if not video.removed), key=lambda video: video.id)
    wanted = iter(_wanted(present, scenes, recipe))
    bucket_of = lru_cache(None)(lambda height, width: choose_bucket(height, width, recipe.buckets, recipe.upscale))
    pieces: dict[tuple[int, int, int], list[Piece]] = defaultdict(list)
    quarantined, account = [], Counter()
    for video in present:
        marked = [(scene, next(wanted)) for scene in scenes_of(video, scenes)]
        bucket = bucket_of(video.height, video.width)
        cut, counts = _cut(video, marked, bucket, recipe)
        account.update(counts)
        if bucket and cut:
            pieces[(*bucket, chunk_frames_of(video, recipe))] += cut
        elif counts["dropped_filter"] < counts["frames"]:  # else it is the user who does not want it
            reason = _reason(video, len(marked), counts, recipe)
            quarantined.append(
                Quarantined(
                    video.path, "plan", reason, 1, video.id, size_bytes=video.size_bytes, mtime_ns=video.mtime_ns
                )
            )
    clips = _into_shards(pieces, recipe, shard_bytes, generation)
    return Plan(tuple(clips), tuple(quarantined), Account(**account))


def scenes_of(video: Video, scenes: Mapping[str, Sequence[Scene]]) -> Sequence[Scene]:
    """A video's scenes by time; the whole of it where there are none."""
    found = scenes.get(video.id)
    if not found:
        return [Scene(video.id, 0, 0, video.num_frames, video.start_s, video.end_s)]
    return sorted(found, key=lambda scene: scene.start_s) if len(found) > 1 else found


def chunk_frames_of(video: Video, recipe: Recipe) -> int:
    """Frames that are encoded together: the recipe's, or one of an image."""
    return recipe.latent.chunk_frames if video.num_frames > 1 else 1


def _wanted(videos: Sequence[Video], scenes: Mapping[str, Sequence[Scene]], recipe: Recipe) -> Iterable[bool]:
    """Whether the filter keeps each scene, video by video. One table for all, so that no batch lacks a column."""
    if not recipe.filter.strip():
        return repeat(True)
    unseen = sorted(set(names_in(recipe.filter)) & set(LOOKS))
    if unseen and recipe.scenes == "off":
        raise Refused(
            f"recipe.filter: {recipe.filter!r} asks for {', '.join(unseen)}, and with recipe.scenes=off nobody has "
            f"looked; set recipe.scenes to adaptive or content and run `scan` again, or filter by train.filter"
        )
    rows = [(row, scene) for row, video in enumerate(videos) for scene in scenes_of(video, scenes)]
    columns: dict[str, list[float]] = {name: [getattr(scene, name) for _, scene in rows] for name in LOOKS}
    columns["scene_s"] = [scene_length_s(videos[row], scene) for row, scene in rows]
    table = table_of(Video, videos).take(np.array([row for row, _ in rows], np.int64))
    return matches(recipe.filter, add_columns(table, columns)).tolist()


def scene_length_s(video: Video, scene: Scene) -> float:
    """How long a scene is shown: to its last frame and one frame more; 0 for an image."""
    return scene.end_s - scene.start_s + 1 / video.fps if video.num_frames > 1 else 0.0


def _cut(
    video: Video, marked: Sequence[tuple[Scene, bool]], bucket: Bucket | None, recipe: Recipe
) -> tuple[list[Piece], dict[str, int]]:
    """A video and its scenes, each wanted or not -> its pieces, and its part of the account."""
    image = video.num_frames == 1
    fps = IMAGE_FPS if image else clip_fps(video.fps, recipe.fps)
    frames = count_frames(video.start_s, video.end_s, fps)
    counts = Counter(container=video.num_frames, frames=frames)
    if bucket is None:
        counts["dropped_small"] = frames
        return [], counts
    shape = (1, 1, 1) if image else (recipe.latent.chunk_frames, recipe.min_chunks, recipe.max_chunks)
    pieces = []
    starts_s = [scene.start_s for scene, _ in marked]
    for (scene, wanted), (first, end) in zip(marked, split_scenes(starts_s, video.start_s, fps, frames), strict=True):
        if not wanted:
            counts["dropped_filter"] += end - first
            continue
        split = split_clips(end - first, *shape, recipe.tail)
        counts["padded"] += split.padded
        counts["dropped_short"] += split.short
        counts["dropped_rest"] += split.rest
        counts["dropped_tail"] += split.tail
        counts["used"] += end - first - split.padded - split.short - split.rest - split.tail
        pieces += [Piece(video, scene, fps, first + at, chunks, valid) for at, chunks, valid in split.clips]
    return pieces, counts


def _reason(video: Video, num_scenes: int, counts: Mapping[str, int], recipe: Recipe) -> str:
    """Why a video gives no clip."""
    frames = counts["frames"]
    if counts["dropped_small"]:
        height, width = min(recipe.buckets, key=lambda bucket: enlargement(video.height, video.width, bucket))
        factor = ceil(100 * enlargement(video.height, video.width, (height, width))) / 100
        return (
            f"too small: {video.height}x{video.width}, the bucket {height}x{width} would enlarge it by {factor:g}, "
            f"recipe.upscale is {recipe.upscale:g}"
        )
    fps, chunk_frames = clip_fps(video.fps, recipe.fps), recipe.latent.chunk_frames
    needed = recipe.min_chunks * chunk_frames if recipe.tail != "pad" else (recipe.min_chunks - 1) * chunk_frames + 1
    left_out = f", {counts['dropped_filter']} of them left out by recipe.filter" if counts["dropped_filter"] else ""
    within = f" in {num_scenes} scenes" if num_scenes > 1 else ""
    return f"too short: {frames} frames at {fps:g} fps{within}{left_out}; a clip needs {needed}"


def clip_key(video: str, first_frame: int, bucket: Bucket) -> str:
    """The name of a clip everywhere. No dots: WebDataset cuts keys at the first one."""
    return f"{video}-{first_frame:08d}-{bucket_name(bucket)}"


def latent_bytes(num_frames: int, bucket: Bucket, recipe: Recipe) -> int:
    """Size of the latents in the cache of frames at a bucket."""
    _, *shape = recipe.latent.latent_shape(num_frames, *bucket)  # (t, h, w)
    return LATENT_ITEM_BYTES * recipe.latent.stored_channels * prod(shape)


def _into_shards(
    pieces: Mapping[tuple[int, int, int], Sequence[Piece]], recipe: Recipe, shard_bytes: int, generation: int
) -> list[Clip]:
    """Pieces by bucket and chunk length -> clips: a shard has one of each, and is filled in order to `shard_bytes`.

    A shard has one clip at the least. The numbers of a bucket's shards count on from one chunk length to the next.
    """
    clips = []
    for bucket, lengths in groupby(sorted(pieces), key=lambda group: group[:2]):
        number = -1
        for group in lengths:
            chunk_bytes, filled = latent_bytes(group[2], bucket, recipe), shard_bytes
            for piece in pieces[group]:
                size = chunk_bytes * piece.num_chunks
                if filled + size > shard_bytes:
                    number, filled = number + 1, 0
                filled += size
                clips.append(_place(piece, group, f"{bucket_name(bucket)}/{generation:04d}-{number:06d}"))
    return clips


def _place(piece: Piece, group: tuple[int, int, int], shard: str) -> Clip:
    height, width, chunk_frames = group
    return Clip(
        key=clip_key(piece.video.id, piece.first_frame, (height, width)),
        shard=shard,
        video=piece.video.id,
        first_frame=piece.first_frame,
        num_chunks=piece.num_chunks,
        num_frames=piece.num_chunks * chunk_frames,
        valid_frames=piece.valid_frames,
        fps=piece.fps,
        height=height,
        width=width,
        scene_start_s=piece.scene.start_s,
        scene_end_s=piece.scene.end_s,
    )


def shards_of(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Clips by shard, both in plan order."""
    return {shard: list(members) for shard, members in groupby(clips, key=lambda clip: clip.shard)}


def planned_videos(cache: Cache) -> set[str]:
    """The ids of the videos of every generation."""
    return {video for path in cache.plans() for video in read_table(path, Clip)["video"].unique().to_pylist()}


def planned_shards(cache: Cache) -> list[str]:
    """The names of the shards of every generation, in plan order."""
    generations = (read_table(path, Clip, ["shard"])["shard"].unique() for path in cache.plans())
    return [shard for generation in generations for shard in generation.to_pylist()]


def find_tombstones(planned: Collection[str], videos: Iterable[Video]) -> list[Tombstone]:
    """The planned videos that have left the source, by id; those that the manifest has forgotten have no path."""
    known = {video.id: video for video in videos}
    return [
        Tombstone(video, known[video].path if video in known else "")
        for video in sorted(planned)
        if video not in known or known[video].removed
    ]


def read_tombstones(cache: Cache) -> set[str]:
    """The ids of the videos whose clips are no longer trained on."""
    return {one.video for one in read_records([cache.tombstones], Tombstone)} if cache.tombstones.exists() else set()
