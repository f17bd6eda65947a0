"""Manifest + recipe -> plan: which clips are cut from which videos and which shard each goes to, before any pixel."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from pipeline.bucket import bucket_name, choose_bucket
from pipeline.chunk import clip_fps, count_frames, split_clips
from pipeline.recipe import Recipe
from pipeline.records import Clip, Quarantined, Video

LATENT_ITEM_BYTES = 2  # float16


@dataclass(frozen=True)
class Account:
    """Every frame at the sampling rate: used + dropped = frames, exactly."""

    frames: int = 0
    used: int = 0
    dropped_tail: int = 0  # behind the last whole chunk
    dropped_short: int = 0  # of videos shorter than one chunk

    def __add__(self, other: "Account") -> "Account":
        return Account(
            self.frames + other.frames,
            self.used + other.used,
            self.dropped_tail + other.dropped_tail,
            self.dropped_short + other.dropped_short,
        )


@dataclass(frozen=True)
class Plan:
    """One generation: clips in shard order, the videos that give none, and where every frame went."""

    clips: tuple[Clip, ...]
    quarantined: tuple[Quarantined, ...]
    account: Account


def make_plan(videos: Iterable[Video], recipe: Recipe, shard_bytes: int, generation: int) -> Plan:
    """Videos -> plan. The same videos give the same plan, whatever their order."""
    clips, quarantined, account = [], [], Account()
    for video in sorted(videos, key=lambda video: video.id):
        found, reason, frames = _cut(video, recipe)
        clips += found
        account += frames
        if reason:
            quarantined.append(Quarantined(video.path, "plan", reason, 1))
    shards = _into_shards(clips, recipe, shard_bytes, generation)
    return Plan(tuple(shards), tuple(quarantined), account)


def _cut(video: Video, recipe: Recipe) -> tuple[list[Clip], str, Account]:
    """One video -> its clips without a shard, or the reason why there are none, and its account."""
    chunk_frames = recipe.latent.chunk_frames
    fps = clip_fps(video.fps, recipe.fps)
    frames = count_frames(video.start_s, video.end_s, fps)
    pieces, dropped = split_clips(frames, chunk_frames, recipe.max_chunks)
    if not pieces:
        reason = f"too short: {frames} frames at {fps:g} fps, a chunk needs {chunk_frames}"
        return [], reason, Account(frames=frames, dropped_short=frames)
    bucket = choose_bucket(video.height, video.width, recipe.buckets)
    clips = [
        Clip(
            key=clip_key(video.id, first_frame, bucket),
            shard="",
            video=video.id,
            first_frame=first_frame,
            num_chunks=num_chunks,
            num_frames=num_chunks * chunk_frames,
            valid_frames=num_chunks * chunk_frames,
            fps=fps,
            height=bucket[0],
            width=bucket[1],
            scene_start_s=video.start_s,
            scene_end_s=video.end_s,
        )
        for first_frame, num_chunks in pieces
    ]
    return clips, "", Account(frames=frames, used=frames - dropped, dropped_tail=dropped)


def clip_key(video: str, first_frame: int, bucket: tuple[int, int]) -> str:
    """The name of a clip everywhere. No dots: WebDataset cuts keys at the first one."""
    return f"{video}-{first_frame:08d}-{bucket_name(bucket)}"


def latent_bytes(clip: Clip, recipe: Recipe) -> int:
    """Size of a clip's latents in the cache."""
    _, *shape = recipe.latent.latent_shape(clip.num_frames, clip.height, clip.width)  # (t, h, w)
    return LATENT_ITEM_BYTES * recipe.latent.stored_channels * prod(shape)


def _into_shards(clips: Sequence[Clip], recipe: Recipe, shard_bytes: int, generation: int) -> list[Clip]:
    """Give every clip its shard: one bucket each, filled in order up to `shard_bytes` (one clip at the least)."""
    placed = []
    by_bucket = sorted(clips, key=lambda clip: (clip.height, clip.width))  # stable: keeps the order within a bucket
    for bucket, members in groupby(by_bucket, key=lambda clip: (clip.height, clip.width)):
        number, filled = 0, 0
        for clip in members:
            size = latent_bytes(clip, recipe)
            if filled and filled + size > shard_bytes:
                number, filled = number + 1, 0
            filled += size
            name = f"{bucket_name(bucket)}/{generation:04d}-{number:06d}"
            placed.append(replace(clip, shard=name))
    return placed


def shards_of(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Clips by shard, both in plan order."""
    return {shard: list(members) for shard, members in groupby(clips, key=lambda clip: clip.shard)}
