"""`explain KEY`: where a clip comes from, where it lies, and commands that show and read it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config import RunConfig
from jobs.decode import reader_limits
from jobs.plan import read_plan
from jobs.progress import say
from jobs.quarantine import describe
from jobs.shell_lines import ffmpeg_line, member_lines
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.decode import ClipFrames, at_hand, find_frames
from pipeline.errors import BadVideo, Refused
from pipeline.plan import read_tombstones
from pipeline.quarantine import read_quarantine
from pipeline.recipe import Recipe, read_recipe
from pipeline.records import Clip, Quarantined, Sample, Scene, TextSample, Video
from pipeline.sandbox import Limits, Sandbox
from pipeline.shard import Member, committed_footer
from pipeline.tables import find_records

INDENT = 12  # of the text behind the names of rows


@dataclass(frozen=True)
class Explained:
    """All that a cache and a file say of one clip."""

    clip: Clip
    video: Video
    scenes: tuple[Scene, ...]  # of its video; none where scenes are off
    recipe: Recipe
    committed: bool  # its shard
    sample: Sample | None  # None where it is not encoded
    text: TextSample | None  # its caption as encoded
    removed: bool  # its video left the source
    quarantined: tuple[Quarantined, ...]  # what became of its video
    frames: ClipFrames | None
    problem: str  # why the frames cannot be told


def explain(config: RunConfig, key: str) -> None:
    """Print what is known of a clip; Refused where none is planned by that name."""
    found = look_up(config.cache, key, config.text.encoder, reader_limits(config.data))
    say(found.clip.key)
    for name, text in rows(found):
        say(f"  {name:<{INDENT - 2}}{text}")
    if found.sample:
        latent = Member(found.sample.latent_offset, found.sample.latent_bytes, found.sample.latent_crc32c)
        tar = tar_path(config.cache.latents, found.sample.shard)
        say(f"latents: {tar}, {latent.num_bytes} bytes from byte {latent.offset} on")
        for line in member_lines(tar, f"{found.clip.key}.latent.npy", latent):
            say(line)
    if found.frames:
        say("frames, as they were encoded:")
        say(ffmpeg_line(found.video, found.clip, found.frames))


def look_up(cache: Cache, key: str, encoder: str, limits: Limits) -> Explained:
    """What the cache's tables say of a clip, and what its file does, which is read in a sandbox."""
    recipe, clip = read_recipe(cache), find_clip(cache, key)
    videos = find_records([cache.manifest], Video, "id", clip.video)
    if not videos:
        raise Refused(f"{key}: planned from video {clip.video}, which the manifest no longer has; run `scan` with it")
    quarantined = tuple(
        one for one in read_quarantine(cache) if one.video == clip.video and one.shard in ("", clip.shard)
    )
    committed = committed_footer(cache.latents, clip.shard) is not None
    samples = find_records([sidecar_path(cache.latents, clip.shard)], Sample, "key", key) if committed else []
    written = committed_footer(cache.text(encoder), clip.shard) is not None
    texts = find_records([sidecar_path(cache.text(encoder), clip.shard)], TextSample, "key", key) if written else []
    frames, problem = read_frame_numbers(videos[0], clip, limits)
    return Explained(
        clip=clip,
        video=videos[0],
        scenes=tuple(find_records([cache.scenes], Scene, "video", clip.video) if cache.scenes.exists() else []),
        recipe=recipe,
        committed=committed,
        sample=next(iter(samples), None),
        text=next(iter(texts), None),
        removed=clip.video in read_tombstones(cache),
        quarantined=quarantined,
        frames=frames,
        problem=problem,
    )


def find_clip(cache: Cache, key: str) -> Clip:
    """The planned clip of that key; Refused with the other keys of its video, where it is none."""
    if found := find_records(cache.plans(), Clip, "key", key):
        return found[0]
    alike = [clip.key for clip in read_plan(cache) if key and clip.video == key.partition("-")[0]]
    known = f"found {', '.join(alike[:5])} of this video" if alike else "found none of its video"
    raise Refused(f"{key}: no clip of this name is planned, {known}; keys are in {cache.index}, column `key`")


def read_frame_numbers(video: Video, clip: Clip, limits: Limits) -> tuple[ClipFrames | None, str]:
    """Which frames make the clip, or why that cannot be told."""
    try:
        with at_hand(video) as here, Sandbox(limits) as sandbox:
            return ClipFrames(*sandbox.call(find_frames, here, clip, lasts_s=video.duration_s)), ""
    except (BadVideo, Refused) as error:
        return None, str(error)


def rows(found: Explained) -> Iterator[tuple[str, str]]:
    """(name, text) of every line of an explanation but the commands."""
    clip, video = found.clip, found.video
    yield "video", video.path
    rate = f"{'about ' if video.variable else ''}{video.fps:g} fps"
    turned = f", turned by {video.rotation} degrees" if video.rotation else ""
    yield "", f"{video.id}: {video.codec}, {video.height}x{video.width}{turned}, {video.num_frames} frames, {rate}"
    yield "clip", describe_span(clip, video)
    yield "", f"{describe_size(clip)}; {describe_scene(found)}"
    yield from frame_rows(found)
    yield "caption", in_one_line(video.caption)
    if found.text and found.text.caption != video.caption:
        yield "", f"the text column has another one: {in_one_line(found.text.caption)}; run `text`"
    yield "recipe", found.recipe.fingerprint()
    yield "", describe_recipe(found.recipe)
    yield "state", describe_state(found)
    for one in found.quarantined:
        for number, line in enumerate(describe(one, full=False).splitlines()[1:]):
            yield "quarantine" if number == 0 else "", line.strip()


def in_one_line(caption: str) -> str:
    return " ".join(caption.split()) or "(none)"


def describe_span(clip: Clip, video: Video) -> str:
    """When a clip begins and ends, on the clock of its container."""
    start_s = video.start_s + clip.first_frame / clip.fps
    end_s = start_s + (clip.valid_frames - 1) / clip.fps
    padding = clip.num_frames - clip.valid_frames
    padded = f", the last one {padding} times more to fill the chunk" if padding else ""
    return f"{start_s:.3f} to {end_s:.3f} s: {clip.valid_frames} frames at {clip.fps:g} fps{padded}"


def describe_size(clip: Clip) -> str:
    return f"{clip.num_chunks} chunk{'s' * (clip.num_chunks > 1)} at {clip.height}x{clip.width} (height, width)"


def describe_scene(found: Explained) -> str:
    """Where the clip's scene lies in its video."""
    clip = found.clip
    number = next((n for n, one in enumerate(found.scenes, start=1) if one.start_s == clip.scene_start_s), None)
    named = f"scene {number} of {len(found.scenes)}" if number else "the whole video"
    return f"{named}, {clip.scene_start_s:.3f} to {clip.scene_end_s:.3f} s"


def frame_rows(found: Explained) -> Iterator[tuple[str, str]]:
    """The frames of each chunk, as numbers in the file and as times."""
    if found.frames is None:
        yield "frames", found.problem
        return
    for first in range(0, found.clip.num_frames, found.clip.chunk_frames):
        chunk = slice(first, first + found.clip.chunk_frames)
        yield ("" if first else "frames"), " ".join(str(index) for index in found.frames.indices[chunk])
        yield "", " ".join(f"{shown_s:.3f}" for shown_s in found.frames.times_s[chunk]) + " s"


def describe_recipe(recipe: Recipe) -> str:
    """The fields that say most of what the latents are."""
    latent = recipe.latent
    return (
        f"{latent.vae} in {latent.dtype}, posterior {latent.posterior}, cached as {recipe.dtype}; {recipe.pixels}, "
        f"{recipe.resize}; {recipe.frames} at {recipe.fps:g} fps, tail {recipe.tail}, scenes {recipe.scenes}"
    )


def describe_state(found: Explained) -> str:
    """What has become of the clip in the cache."""
    if not found.committed:
        return f"planned, its shard {found.clip.shard} is not encoded; run `encode`"
    if found.sample is None:
        return f"left out of its shard {found.clip.shard}; `latentmill quarantine retry` has it tried again"
    if found.removed:
        return f"encoded in shard {found.sample.shard}; its video left the source, so it is not trained on"
    quality = "" if math.isnan(found.sample.psnr) else f", comes back with {found.sample.psnr:.1f} dB"
    text = "its text too" if found.text else "its text is not; run `text`"
    return f"encoded in shard {found.sample.shard}{quality}, {text}"
