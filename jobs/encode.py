"""`encode`: plan -> latents. Encoder actors own shards; the decode tasks they start feed them frames."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import ray
import torch

from cluster import runtime
from cluster.actors import PINGS, share_out
from cluster.capacity import capacity
from cluster.sharing import IN_FLIGHT
from jobs.batches import ChunkBatch, batches, computed
from jobs.config import RunConfig
from jobs.configured import configured_recipe, load_configured_vae
from jobs.decode import Decoders, Failed, ShardWork, VideoWork, Yielded, reader_limits
from jobs.draft import ShardDraft
from jobs.enter import enter
from jobs.events import Events
from jobs.forecast import compare_forecast
from jobs.intake import Intake
from jobs.placement import ask_decoding, ask_encoding, count_encoders, least_cpus
from jobs.plan import read_manifest, read_plan
from jobs.progress import progress, run_meters, say, say_waiting
from jobs.shard_report import ShardReport, measure_shard, oddities
from jobs.stages import Stages
from jobs.turns import Turns
from models.vae.interface import VideoVAE
from pipeline.cache import Cache
from pipeline.encode import batch_size, chunk_seed, chunks_at_once, encode_chunks
from pipeline.errors import Refused
from pipeline.gate import RoundTrips, drift, value_problem
from pipeline.index import merge_index
from pipeline.plan import shards_of
from pipeline.quarantine import read_quarantine, set_aside, too_many
from pipeline.recipe import Recipe, check_recipe
from pipeline.records import Clip, Quarantined, Sample, Video
from pipeline.shard import commit_shard, is_committed, sweep_shards, writing_shard
from pipeline.stats import merge_all
from pipeline.storage import in_parallel


def encode(config: RunConfig, limit: int | None = None, only: str = "*") -> int:
    """Encode planned shards that are not committed, then merge the sidecars of those that are into the index.

    Of the missing shards the first `limit`, and those with clips of a video whose path or id matches `only`. Returns
    how many inputs are in the quarantine.
    """
    cache, recipe = config.cache, configured_recipe(config)
    check_recipe(cache, recipe)
    planned = shards_of(read_plan(cache))
    if not planned:
        raise Refused(f"{cache.root}: no plan; run `plan` first, or set data.cache")
    missing = find_missing(cache, planned, recipe)
    videos = {video.id: video for video in read_manifest(cache)} if missing else {}
    chosen = choose_shards(missing, videos, limit, only)
    events = Events(cache.events, "encode")
    events.write("start", shards=len(planned), committed=len(planned) - len(missing), chosen=len(chosen))
    works = [shard_work(shard, clips, videos, recipe) for shard, clips in chosen.items()]
    reports = _encode_shards(config, works, events) if works else []
    sweep_shards(cache.latents, planned)
    left = missing.keys() - chosen.keys()
    merge_index(cache.index, cache.latents, [shard for shard in planned if shard not in left], Sample)
    quarantined = len(read_quarantine(cache))
    events.write("done", encoded=len(chosen), left=len(left), quarantined=quarantined)
    there, later = len(planned) - len(missing), f", {len(left)} are left for later" if left else ""
    say(f"encode: {len(chosen)} shards encoded, {there} were there already{later} -> {cache.index}")
    _tell_costs(config, works, reports)
    return quarantined


def find_missing(cache: Cache, planned: Mapping[str, list[Clip]], recipe: Recipe) -> dict[str, list[Clip]]:
    """The planned shards that are not committed, by looking for each where it should be."""

    def is_there(shard: str) -> bool:
        return is_committed(cache.latents, shard, shard_facts(shard, planned[shard], recipe))

    return {shard: planned[shard] for shard, there in zip(planned, in_parallel(is_there, planned)) if not there}


def choose_shards(
    missing: Mapping[str, list[Clip]], videos: Mapping[str, Video], limit: int | None, only: str
) -> dict[str, list[Clip]]:
    """The first `limit` shards with a clip of a video whose path or id matches; Refused where no video does."""
    wanted = {one.id for one in videos.values() if fnmatchcase(one.path, only) or fnmatchcase(one.id, only)}
    if videos and not wanted:
        raise Refused(f"--only {only}: found no such video among {len(videos)}; give its path, its id, or a pattern")
    chosen = [shard for shard, clips in missing.items() if only == "*" or not wanted.isdisjoint(c.video for c in clips)]
    return {shard: missing[shard] for shard in chosen[:limit]}


def _tell_costs(config: RunConfig, works: list[ShardWork], reports: list[ShardReport]) -> None:
    """Say what was forecast beside what it took."""
    videos = [one for work in works for one in work.videos]
    told = compare_forecast(
        config,
        [clip for one in videos for clip in one.clips],
        {one.video.id: one.video for one in videos},
        written_bytes=sum(report.latent_bytes for report in reports),
        decode_cpu_s=sum(report.decode_cpu_s for report in reports),
        encode_s=sum(report.encode_s for report in reports),
    )
    if told:
        say(told)


def _encode_shards(config: RunConfig, works: list[ShardWork], events: Events) -> list[ShardReport]:
    """Encode and commit shards; Refused as soon as too many of their videos are bad."""
    settings, found = config.encode, enter(config, "encode", num_cpus=least_cpus(config))
    encoder, decode = ask_encoding(config, found), ask_decoding(config, found, "encode")

    def count() -> int:
        return count_encoders(encoder, decode, capacity(), settings.encoders)

    def start_encoder() -> Any:
        started: dict[str, Any] = {"max_concurrency": IN_FLIGHT}
        if runtime.is_joined(config.cluster.address):  # on this machine alone nobody is cut off
            started["runtime_env"] = {"env_vars": PINGS}  # with one, Ray's waiting processes cannot be taken
        return Encoder.options(**encoder.options, **started).remote(config, decode.labels)

    reports, tried, bad, said, meters = [], set(), set(), False, run_meters("encode", config)
    with progress("encode", len(works), "shards", config) as bar:
        chunks, started_s = 0, time.monotonic()
        for work, report in share_out(start_encoder, count, works, partial(say_waiting, "encode")):
            reports.append(report)
            events.write("shard", often=True, shard=work.shard, **asdict(report))
            measure_shard(meters, report)
            if (odd := oddities(report, settings.min_psnr)) and not said:  # of other shards the events tell
                say(f"encode: {work.shard}: {odd}")
                said = True
            tried |= {one.video.id for one in work.videos}
            bad |= set(report.failed)
            _check_share(config, len(bad), len(tried))
            chunks += report.chunks
            bar.advance(note=f"{chunks / (time.monotonic() - started_s):.1f} chunks/s")
    return reports


def _check_share(config: RunConfig, bad: int, tried: int) -> None:
    """Refuse to go on where too many of the videos are bad."""
    if too_many(bad, tried, config.data.max_bad_fraction):
        reasons = sorted({one.reason for one in read_quarantine(config.cache) if one.stage in ("decode", "encode")})
        raise Refused(
            f"{bad} of the {tried} videos decoded so far are bad, more than data.max_bad_fraction="
            f"{config.data.max_bad_fraction:g}: {'; '.join(reasons[:3])}. What is committed stays; look at "
            f"`latentmill quarantine list`, mend what is wrong and have them tried again by "
            f"`latentmill quarantine retry`, or raise data.max_bad_fraction"
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
    lost = sorted({clip.video for clip in clips if clip.video not in videos})
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


@dataclass
class Taken:
    """Seconds that a shard has taken so far."""

    turn_s: float = 0.0
    encode_s: float = 0.0


class ShardEncoder:
    """Has shards decoded, encodes, writes and commits them; one is begun as soon as all frames of another are there.

    The plan alone decides which chunks meet in a call of the VAE, and every call for a shard has the same size: the
    bits of a latent must not depend on which decode task was faster.
    """

    def __init__(self, config: RunConfig, decode_labels: Mapping[str, str] | None = None) -> None:
        torch.set_num_threads(config.encode.encoder_cpus)
        self.config = config
        self.recipe = configured_recipe(config)
        self.decoders = Decoders(config.encode, reader_limits(config.data), decode_labels)
        self.turns = Turns()
        self.stages = Stages()
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.encode.encoder_cpus,))

    @cached_property
    def vae(self) -> VideoVAE:
        """Made when the first frames are on their way already. Used by the thread alone: some keep state of a call."""
        return _prepare_vae(self.config)

    def do(self, work: ShardWork, upcoming: ShardWork | None, turn: int) -> ShardReport:
        """Encode and commit `work`; decode tasks that it no longer needs turn to `upcoming`."""
        taken = Taken()
        settings, column = self.config.encode, self.config.cache.latents
        intake = Intake(self._awaited(self.decoders.read(work, upcoming)))
        trips = RoundTrips(len(work.slots), settings.checked_chunks, settings.min_psnr)
        self.turns.begin(turn)
        with ExitStack() as ending, writing_shard(column, work.shard) as tar:
            draft = ShardDraft(self.recipe, work, intake, tar)
            found = self._found(work, intake, taken)
            for batch, encoded in computed(found, partial(self._encode, taken), self.thread):
                for number, (slot, seen, latents) in enumerate(zip(batch.slots, batch.frames, encoded), batch.first):
                    if problem := value_problem(latents) if slot.video not in intake.failed else "":
                        self._check(trips.check_bad, seen, latents, problem)
                        intake.fail(Failed(slot.video, problem, attempts=1, stage="encode"))
                    elif slot.video not in intake.failed and trips.wants(number):
                        draft.psnr[slot.key].append(self._check(trips.check, seen, latents))
                    draft.take(slot, latents)
                with self.stages.doing("write"):
                    draft.write_settled()
            trips.finish()
            ending.enter_context(self.stages.doing("write"))  # also the tar, which is published at the end of the block
            set_aside(self.config.cache, work.shard, left_out(work, intake.failed))
        with self.stages.doing("write"):
            commit_shard(column, work.shard, Sample, draft.rows, {**dict(work.facts), **tar.facts, **draft.footer()})
        return ShardReport(
            clips=len(draft.rows),
            chunks=len(work.slots),
            latent_bytes=sum(sample.latent_bytes for sample in draft.rows),
            failed=tuple(intake.failed),
            total_s=taken.turn_s,
            encode_s=taken.encode_s,
            wait_s=intake.wait_s,
            decode_cpu_s=intake.decode_cpu_s,
            stages=self.stages.take(),
            psnr=tuple(trips.found),
            drift=tuple(drift(stats, self.recipe.latent.channels)) if (stats := merge_all(draft.stats)) else (),
        )

    def _awaited(self, items: Iterator[Yielded]) -> Iterator[Yielded]:
        """The same, and the time until each is there is that of decoding."""
        while True:
            with self.stages.doing("decode"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _check(self, check: Callable[..., Any], seen: np.ndarray, latents: np.ndarray, *more: str) -> Any:
        """What one of RoundTrips' checks says of a chunk, in the VAE's thread."""
        with self.stages.doing("encode"):
            return self.thread.submit(check, self.vae, seen, latents, *more).result()

    def _found(self, work: ShardWork, intake: Intake, taken: Taken) -> Iterator[ChunkBatch]:
        """A shard's batches; when all are there, it is the next shard's turn."""
        started_s = time.monotonic()
        yield from batches(work, intake, self._batch_size(work))
        intake.finish()
        taken.turn_s = time.monotonic() - started_s
        self.turns.end()

    def _batch_size(self, work: ShardWork) -> int:
        settings = self.config.encode
        most = settings.batch or chunks_at_once(work.size, settings.batch_bytes, device_here())
        return batch_size(len(work.slots), most)

    def _encode(self, taken: Taken, batch: ChunkBatch) -> np.ndarray:
        """(batch, C, t, h, w) float16. The seeds of fillers do not matter."""
        fingerprint, count = self.recipe.fingerprint(), len(batch.frames)
        seeds = [chunk_seed(fingerprint, slot.key, slot.number) for slot in batch.slots]
        vae = self.vae
        started_s = time.monotonic()
        with self.stages.doing("encode"):
            encoded = encode_chunks(vae, batch.frames, seeds + [0] * (count - len(seeds)))
        taken.encode_s += time.monotonic() - started_s
        return encoded


Encoder: Any = ray.remote(ShardEncoder)


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prepare_vae(config: RunConfig) -> VideoVAE:
    """The run's VAE on this process's device, within its memory, compiled where that is asked for."""
    vae = load_configured_vae(config).to(device_here())
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
    return [aside(video, one.stage, one.reason, one.attempts, one.stderr) for video, one in bad] + [
        aside(video, "encode", gone, 0) for video in work.removed
    ]
