"""`encode`: plan -> latents. Encoder actors own shards; the decode tasks they start feed them frames."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import ray
import torch

from cluster import runtime
from jobs.config import RunConfig
from jobs.configured import configured_recipe, load_configured_vae
from jobs.decode import Decoders, Failed, ShardWork, Slot, VideoWork, reader_limits
from jobs.forecast import compare_forecast
from jobs.intake import Intake
from jobs.plan import read_manifest, read_plan
from jobs.progress import Events, progress, say
from models.vae.interface import VideoVAE
from pipeline.cache import sidecar_path, tar_path
from pipeline.encode import chunk_seed, encode_chunks
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.plan import shards_of
from pipeline.quarantine import read_quarantine, set_aside, too_many
from pipeline.recipe import Recipe, check_recipe
from pipeline.records import Clip, Quarantined, Sample, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample
from pipeline.shard import Member, Packed, is_committed, write_shard
from pipeline.storage import sweep


@dataclass(frozen=True)
class ShardReport:
    """What an encoder returns of a shard: counts and seconds, never pixels."""

    clips: int
    chunks: int
    latent_bytes: int
    failed: tuple[str, ...]  # videos that could not be decoded
    total_s: float
    wait_s: float  # of which waiting for frames
    decode_cpu_s: float


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
    works, reports = [], []
    if missing:
        videos = {video.id: video for video in read_manifest(cache)}
        works = [shard_work(shard, clips, videos, recipe) for shard, clips in missing.items()]
        reports = _encode_shards(config, works, events)
    merge_index(cache.index, cache.latents, list(planned), Sample)
    quarantined = len(read_quarantine(cache))
    events.write("done", encoded=len(missing), quarantined=quarantined)
    say(f"encode: {len(missing)} shards encoded, {len(planned) - len(missing)} were there already -> {cache.index}")
    _tell_costs(config, works, reports)
    return quarantined


def _tell_costs(config: RunConfig, works: list[ShardWork], reports: list[ShardReport]) -> None:
    """Say what was forecast beside what it took."""
    videos = [one for work in works for one in work.videos]
    told = compare_forecast(
        config,
        [clip for one in videos for clip in one.clips],
        {one.video.id: one.video for one in videos},
        written_bytes=sum(report.latent_bytes for report in reports),
        decode_cpu_s=sum(report.decode_cpu_s for report in reports),
        encode_s=sum(report.total_s - report.wait_s for report in reports),
    )
    if told:
        say(told)


def _encode_shards(config: RunConfig, works: list[ShardWork], events: Events) -> list[ShardReport]:
    """Encode and commit shards; Refused as soon as too many of their videos are bad."""
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

    reports, tried, bad = [], set(), set()
    with progress("encode", len(works), "shards") as bar:
        chunks, started_s = 0, time.monotonic()
        for work, report in runtime.share_out(start_encoder, num_encoders, works):
            reports.append(report)
            events.write("shard", shard=work.shard, **vars(report))
            tried |= {one.video.id for one in work.videos}
            bad |= set(report.failed)
            _check_share(config, len(bad), len(tried))
            chunks += report.chunks
            bar.advance(note=f"{chunks / (time.monotonic() - started_s):.1f} chunks/s")
    return reports


def _check_share(config: RunConfig, bad: int, tried: int) -> None:
    """Refuse to go on where too many of the videos are bad."""
    if too_many(bad, tried, config.data.max_bad_fraction):
        reasons = sorted({one.reason for one in read_quarantine(config.cache) if one.stage == "decode"})
        raise Refused(
            f"{bad} of the {tried} videos decoded so far are bad, more than data.max_bad_fraction="
            f"{config.data.max_bad_fraction:g}: {'; '.join(reasons[:3])}. What is committed stays; look at "
            f"`latentmill quarantine list`, mend what is wrong and have them tried again by "
            f"`latentmill quarantine retry`, or raise data.max_bad_fraction"
        )


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
    """The clips of one shard, joined with where their videos lie now; Refused where the manifest has lost one."""
    lost = sorted({clip.video for clip in clips} - videos.keys())
    if lost:
        raise Refused(
            f"{shard}: planned from {len(lost)} videos that the manifest no longer has (content id {lost[0]}); "
            f"bring them back and run `scan`, or encode into a new data.cache"
        )
    by_video = [(videos[video], tuple(cut)) for video, cut in groupby(clips, key=lambda clip: clip.video)]
    return ShardWork(
        shard,
        size=(clips[0].chunk_frames, clips[0].height, clips[0].width),
        videos=tuple(VideoWork(video, cut) for video, cut in by_video if not video.removed),
        removed=tuple(video for video, _ in by_video if video.removed),
        facts=tuple(shard_facts(shard, clips, recipe).items()),
    )


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
        self.decoders = Decoders(config.encode, reader_limits(config.data))

    def do(self, work: ShardWork, upcoming: ShardWork | None) -> ShardReport:
        """Encode and commit `work`; decode tasks that it no longer needs turn to `upcoming`."""
        started_s = time.monotonic()
        intake = Intake(self.decoders.read(work, upcoming))
        clips = [clip for video in work.videos for clip in video.clips]
        slots = [Slot(clip.video, clip.key, number) for clip in clips for number in range(clip.num_chunks)]
        latents: dict[str, list[np.ndarray]] = {clip.key: [] for clip in clips}
        fingerprint = self.recipe.fingerprint()
        frames = np.zeros((self.batch, *work.size, 3), np.uint8)  # (batch, F, H, W, 3)
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
        samples = self._commit(work, latents, intake)
        return ShardReport(
            clips=len(samples),
            chunks=len(slots),
            latent_bytes=sum(sample.latent_bytes for sample in samples),
            failed=tuple(intake.failed),
            total_s=time.monotonic() - started_s,
            wait_s=intake.wait_s,
            decode_cpu_s=intake.decode_cpu_s,
        )

    def _commit(self, work: ShardWork, latents: dict[str, list[np.ndarray]], intake: Intake) -> Sequence[Sample]:
        """Publish the shard without the videos that failed, their quarantine first, the sidecar last."""
        good = [(one.video, clip) for one in work.videos if one.video.id not in intake.failed for clip in one.clips]
        starts_s = {clip.key: clip_start_s(video, clip) for video, clip in good}
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
            return [make_sample(clip, work.shard, starts_s[clip.key], intake.look(clip), where) for _, clip in good]

        set_aside(self.cache, work.shard, left_out(work, intake.failed))
        return write_shard(self.cache.latents, work.shard, packed, Sample, rows, dict(work.facts))


def _prepare_vae(config: RunConfig) -> VideoVAE:
    """The run's VAE on this process's device, within its memory, compiled where that is asked for."""
    vae = load_configured_vae(config).to("cuda" if torch.cuda.is_available() else "cpu")
    vae.memory_bytes = config.encode.vae_bytes
    if config.encode.compile:
        for module in vae.modules_to_compile():
            module.compile()
    return vae


def left_out(work: ShardWork, failed: Mapping[str, Failed]) -> list[Quarantined]:
    """The videos that a shard goes on without: those that failed, and those that have left the source."""

    def aside(video: Video, stage: str, reason: str, attempts: int, stderr: str = "") -> Quarantined:
        return Quarantined(
            video.path, stage, reason, attempts, video.id, work.shard, stderr, video.size_bytes, video.mtime_ns
        )

    bad = [(one.video, failed[one.video.id]) for one in work.videos if one.video.id in failed]
    gone = "removed from the source: bring it back, then `latentmill scan` and `latentmill quarantine retry`"
    return [aside(video, "decode", one.reason, one.attempts, one.stderr) for video, one in bad] + [
        aside(video, "encode", gone, 0) for video in work.removed
    ]
