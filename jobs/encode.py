"""`encode`: plan -> latents. Encoder actors own shards; the decode tasks they start feed them frames."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import ray
import torch

from cluster import runtime
from jobs.config import RunConfig, configured_recipe, load_configured_vae
from jobs.decode import Decoded, Decoders, Failed, ShardWork, VideoWork
from jobs.plan import read_manifest, read_plan
from jobs.progress import Events, progress, say
from models.vae.interface import VideoVAE
from pipeline.cache import sidecar_path, tar_path
from pipeline.chunk import frame_times
from pipeline.encode import chunk_seed, encode_chunks
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.plan import shards_of
from pipeline.quarantine import read_quarantine, set_aside
from pipeline.recipe import Recipe, check_recipe
from pipeline.records import Clip, Quarantined, Sample, Video
from pipeline.sample import array_bytes, clip_facts
from pipeline.shard import Member, Packed, is_committed, write_shard
from pipeline.storage import sweep


@dataclass(frozen=True)
class ShardReport:
    """What an encoder returns of a shard: counts and seconds, never pixels."""

    clips: int
    chunks: int
    quarantined: int
    total_s: float
    wait_s: float  # of which waiting for frames


def encode(config: RunConfig) -> int:
    """Encode every planned shard that is not committed, then merge the sidecars into the index.

    Returns how many inputs are in the quarantine.
    """
    cache, recipe = config.cache, configured_recipe(config)
    check_recipe(cache.root, recipe)
    planned = shards_of(read_plan(cache))
    if not planned:
        raise Refused(f"{cache.root}: no plan; run `plan` first, or set data.cache")
    missing = {
        shard: clips
        for shard, clips in planned.items()
        if not is_committed(cache.latents, shard, shard_facts(shard, clips, recipe))
    }
    events = Events(cache.events, "encode")
    events.write("start", shards=len(planned), committed=len(planned) - len(missing))
    if missing:
        videos = {video.id: video for video in read_manifest(cache)}
        works = [shard_work(shard, clips, videos, recipe) for shard, clips in missing.items()]
        _encode_shards(config, works, events)
    merge_index(cache.index, cache.latents, list(planned), Sample)
    quarantined = len(read_quarantine(cache))
    events.write("done", encoded=len(missing), quarantined=quarantined)
    say(f"encode: {len(missing)} shards encoded, {len(planned) - len(missing)} were there already -> {cache.index}")
    return quarantined


def _encode_shards(config: RunConfig, works: list[ShardWork], events: Events) -> None:
    runtime.connect(config.cluster.address, num_cpus=config.encode.encoder_cpus + 1)
    num_gpus = runtime.count("GPU")
    num_encoders = min(config.encode.encoders or num_gpus or runtime.count_nodes(), len(works))
    _check_room(config, num_encoders)
    for work in works:
        sweep(tar_path(config.cache.latents, work.shard))
        sweep(sidecar_path(config.cache.latents, work.shard))

    def start_encoder() -> Any:
        actor: Any = Encoder
        return actor.options(num_cpus=config.encode.encoder_cpus, num_gpus=min(1, num_gpus)).remote(config)

    with progress("encode", len(works), "shards") as bar:
        chunks, started_s = 0, time.monotonic()
        for work, report in runtime.share_out(start_encoder, num_encoders, works):
            chunks += report.chunks
            events.write("shard", shard=work.shard, **vars(report))
            bar.advance(note=f"{chunks / (time.monotonic() - started_s):.1f} chunks/s")


def _check_room(config: RunConfig, num_encoders: int) -> None:
    """Refuse what would wait for ever: encoders that leave no CPU for a decode task."""
    found, wanted = runtime.count("CPU"), num_encoders * config.encode.encoder_cpus + 1
    if found < wanted:
        raise Refused(
            f"encode.encoders: {num_encoders} encoders of {config.encode.encoder_cpus} CPUs and one decode task want "
            f"{wanted} CPUs, the cluster has {found}; lower encode.encoders or encode.encoder_cpus"
        )


def shard_facts(shard: str, clips: list[Clip], recipe: Recipe) -> dict[str, str]:
    """What a shard's sidecar states: made by which recipe, in which generation of the plan, from which clips."""
    return {
        "recipe": recipe.fingerprint(),
        "generation": shard.rpartition("/")[2].partition("-")[0],
        "clips_sha256": hashlib.sha256("\n".join(clip.key for clip in clips).encode()).hexdigest(),
    }


def shard_work(shard: str, clips: list[Clip], videos: dict[str, Video], recipe: Recipe) -> ShardWork:
    """The clips of one shard, joined with where their videos lie now; Refused where one is gone."""
    gone = sorted({clip.video for clip in clips} - videos.keys())
    if gone:
        raise Refused(
            f"{shard}: planned from {len(gone)} videos that the manifest no longer has (content id {gone[0]}); "
            f"bring them back and run `scan`, or encode into a new data.cache"
        )
    by_video = groupby(clips, key=lambda clip: clip.video)
    works = tuple(VideoWork(videos[video], tuple(cut)) for video, cut in by_video)
    return ShardWork(shard, works, tuple(shard_facts(shard, clips, recipe).items()))


@dataclass(frozen=True)
class Slot:
    """One chunk's place in the shard's plan."""

    video: str
    key: str
    number: int


class Intake:
    """Takes what the decode tasks yield, and hands out the frames of each slot when they are there."""

    def __init__(self, items: Iterator[Decoded | Failed]) -> None:
        self.items = items
        self.arrived: dict[tuple[str, int], np.ndarray] = {}
        self.failed: dict[str, Failed] = {}
        self.wait_s = 0.0

    def frames(self, slot: Slot) -> np.ndarray | None:
        """(chunk_frames, H, W, 3) uint8, or None where the slot's video has failed."""
        started_s = time.monotonic()
        while (slot.key, slot.number) not in self.arrived and slot.video not in self.failed:
            item = next(self.items)
            if isinstance(item, Failed):
                self.failed[item.video] = item
            else:
                self.arrived[item.key, item.number] = item.frames
        self.wait_s += time.monotonic() - started_s
        return self.arrived.pop((slot.key, slot.number), None)

    def finish(self) -> None:
        """Read the tasks to their end."""
        for item in self.items:
            if isinstance(item, Failed):
                self.failed[item.video] = item


@ray.remote
class Encoder:
    """Owns one shard at a time: has it decoded, encodes it, writes it and commits it.

    The plan alone decides which chunks meet in a call of the VAE, and every call has the same size: the bits of a
    latent must not depend on which decode task was faster.
    """

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.encode.encoder_cpus)
        self.batch = config.encode.batch
        self.cache = config.cache
        self.recipe = configured_recipe(config)
        self.vae = _prepare_vae(config)
        self.decoders = Decoders(config.encode, self.recipe.latent.chunk_frames)

    def do(self, work: ShardWork, upcoming: ShardWork | None) -> ShardReport:
        """Encode and commit `work`; decode tasks that it no longer needs turn to `upcoming`."""
        started_s = time.monotonic()
        intake = Intake(self.decoders.read(work, upcoming))
        clips = [clip for video in work.videos for clip in video.clips]
        slots = [Slot(clip.video, clip.key, number) for clip in clips for number in range(clip.num_chunks)]
        latents: dict[str, list[np.ndarray]] = {clip.key: [] for clip in clips}
        fingerprint = self.recipe.fingerprint()
        frames = np.zeros((self.batch, self.recipe.latent.chunk_frames, clips[0].height, clips[0].width, 3), np.uint8)
        for first in range(0, len(slots), self.batch):
            members = slots[first : first + self.batch]
            for place, slot in enumerate(members):
                arrived = intake.frames(slot)
                frames[place] = 0 if arrived is None else arrived
            seeds = [chunk_seed(fingerprint, slot.key, slot.number) for slot in members]
            encoded = encode_chunks(self.vae, frames, seeds + [0] * (self.batch - len(seeds)))  # (batch, C, t, h, w)
            for slot, latent in zip(members, encoded):
                latents[slot.key].append(latent)
        intake.finish()
        self._commit(work, latents, intake.failed)
        good = sum(clip.video not in intake.failed for clip in clips)
        return ShardReport(good, len(slots), len(intake.failed), time.monotonic() - started_s, intake.wait_s)

    def _commit(self, work: ShardWork, latents: dict[str, list[np.ndarray]], failed: dict[str, Failed]) -> None:
        """Publish the shard without the videos that failed, their quarantine first, the sidecar last."""
        good = [(one.video, clip) for one in work.videos if one.video.id not in failed for clip in one.clips]
        starts_s = {
            clip.key: float(frame_times(video.start_s, clip.first_frame, 1, clip.fps)[0]) for video, clip in good
        }
        packed = [
            Packed(
                clip.key,
                {
                    "latent.npy": array_bytes(np.concatenate(latents[clip.key], axis=1)),  # (C, t, h, w) of all chunks
                    "json": clip_facts(clip, starts_s[clip.key], self.recipe),
                },
            )
            for _, clip in good
        ]

        def rows(where: dict[str, Member]) -> list[Sample]:
            return [make_sample(clip, work.shard, starts_s[clip.key], self.recipe, where) for _, clip in good]

        paths = {one.video.id: one.video.path for one in work.videos}
        set_aside(
            self.cache,
            work.shard,
            [Quarantined(paths[bad.video], "decode", bad.reason, bad.attempts) for bad in failed.values()],
        )
        write_shard(self.cache.latents, work.shard, packed, Sample, rows, dict(work.facts))


def _prepare_vae(config: RunConfig) -> VideoVAE:
    """The run's VAE on this process's device, within its memory, compiled where that is asked for."""
    vae = load_configured_vae(config).to("cuda" if torch.cuda.is_available() else "cpu")
    vae.memory_bytes = config.encode.vae_bytes
    if config.encode.compile:
        for module in vae.modules_to_compile():
            module.compile()
    return vae


def make_sample(clip: Clip, shard: str, start_s: float, recipe: Recipe, where: dict[str, Member]) -> Sample:
    """A clip's row in the sidecar."""
    latent, facts = where[f"{clip.key}.latent.npy"], where[f"{clip.key}.json"]
    return Sample(
        key=clip.key,
        shard=shard,
        video=clip.video,
        start_s=start_s,
        fps=clip.fps,
        height=clip.height,
        width=clip.width,
        num_chunks=clip.num_chunks,
        num_frames=clip.num_frames,
        valid_frames=clip.valid_frames,
        latent_offset=latent.offset,
        latent_bytes=latent.num_bytes,
        latent_crc32c=latent.crc32c,
        json_offset=facts.offset,
        json_bytes=facts.num_bytes,
    )
