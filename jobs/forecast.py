"""What encoding will take, from a few chunks timed on this machine; and, once it is done, what it took."""

import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile

import numpy as np
import torch

from jobs.config import RunConfig
from jobs.configured import configured_recipe, load_configured_vae
from jobs.decode import reader_limits
from models.vae.interface import VideoVAE
from pipeline.cache import sidecar_path
from pipeline.decode import at_hand
from pipeline.encode import chunks_at_once, encode_chunks
from pipeline.errors import BadVideo, Refused
from pipeline.looked import decode_and_look
from pipeline.plan import latent_bytes, shards_of
from pipeline.records import Clip, Video
from pipeline.sandbox import Sandbox, sandbox_here
from pipeline.storage import publish

PROBED_VIDEOS = 6
PROBED_SIZES = 4
PROBED_BATCHES = 5  # the first is slow: caches and memory are cold
PROBE_S = 5.0  # for decoding, and as long for encoding: no further one is begun after this
PROBE_MEGAPIXELS = 500.0  # of one video, where its first clip has no more

Work = tuple[Video, list[Clip]]  # a video and the clips of it in one shard


@dataclass(frozen=True)
class TimedSize:
    """How long one encoder takes for a chunk of this size."""

    num_frames: int
    height: int
    width: int
    seconds: float

    @property
    def pixels(self) -> int:
        return self.num_frames * self.height * self.width


@dataclass(frozen=True)
class Rates:
    """What was timed, on one machine."""

    device: str  # that encodes
    decode_s: float | None  # CPU seconds per megapixel of the videos' frames; None where none could be decoded
    encode: tuple[TimedSize, ...]


@dataclass(frozen=True)
class Totals:
    """What encoding some clips takes."""

    clips: int
    video_s: float
    latent_bytes: int
    decode_cpu_s: float | None
    encode_s: float  # of one encoder


def make_forecast(config: RunConfig, clips: Sequence[Clip], videos: Mapping[str, Video]) -> str:
    """Planned clips, and the videos of the manifest by id -> what those not encoded yet will take, in a line.

    Also written to the cache, with the rates, for `compare_forecast`. Empty where all is encoded.
    """
    left = [
        clip
        for shard, members in shards_of(clips).items()
        if not sidecar_path(config.cache.latents, shard).exists()
        for clip in members
        if clip.video in videos and not videos[clip.video].removed
    ]
    if not left:
        return ""
    decode_s = time_decoding(sandbox_here(reader_limits(config.data)), works_of(left, videos))
    device, sizes = time_encoding(config, left)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # encoders on this GPU want its memory
    rates = Rates(device, decode_s, sizes)
    totals = estimate(config, left, videos, rates)
    document = {"rates": asdict(rates), "totals": asdict(totals)}
    publish(config.cache.forecast, (json.dumps(document, indent=2) + "\n").encode())
    decoding = "could not be tried" if decode_s is None else f"takes {_time(totals.decode_cpu_s)} of one core"
    return (
        f"forecast: {totals.clips} clips to encode, {_time(totals.video_s)} of video, "
        f"{_size(totals.latent_bytes)} of latents; decoding {decoding}, "
        f"encoding {_time(totals.encode_s)} of one encoder ({rates.device})"
    )


def compare_forecast(
    config: RunConfig,
    clips: Sequence[Clip],
    videos: Mapping[str, Video],
    written_bytes: int,
    decode_cpu_s: float,
    encode_s: float,
) -> str:
    """What `encode` did, and what was forecast for those clips by the rates of `plan`, in a line; empty without them.

    `encode_s` are the seconds that encoders were busy, without waiting for frames, all together.
    """
    if not config.encode.forecast or not config.cache.forecast.exists() or not clips:
        return ""
    found = json.loads(config.cache.forecast.read_text())["rates"]
    rates = Rates(found["device"], found["decode_s"], tuple(TimedSize(**size) for size in found["encode"]))
    totals = estimate(config, clips, videos, rates)
    return (
        f"forecast against actual: latents {_size(totals.latent_bytes)} and {_size(written_bytes)}, "
        f"decoding {_time(totals.decode_cpu_s)} and {_time(decode_cpu_s)} of one core, "
        f"encoding {_time(totals.encode_s)} and {_time(encode_s)} of one encoder ({rates.device})"
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / 3600:.3g} h" if seconds >= 360 else f"{seconds:.3g} s"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.3g} MB"


def estimate(config: RunConfig, clips: Sequence[Clip], videos: Mapping[str, Video], rates: Rates) -> Totals:
    """What encoding clips takes at these rates."""
    recipe = configured_recipe(config)
    encode_s = sum(clip.num_chunks * chunk_seconds(clip, rates) for clip in clips)
    passed = sum(megapixels(*work) for work in works_of(clips, videos))
    return Totals(
        clips=len(clips),
        video_s=sum(clip.valid_frames / clip.fps for clip in clips),
        latent_bytes=sum(latent_bytes(clip.num_frames, (clip.height, clip.width), recipe) for clip in clips),
        decode_cpu_s=None if rates.decode_s is None else passed * rates.decode_s,
        encode_s=encode_s,
    )


def chunk_seconds(clip: Clip, rates: Rates) -> float:
    """Of one chunk of a clip: as the timed size that is nearest in pixels, in proportion to them."""
    pixels = clip.chunk_frames * clip.height * clip.width
    nearest = min(rates.encode, key=lambda timed: abs(math.log(timed.pixels / pixels)))
    return nearest.seconds * pixels / nearest.pixels


def works_of(clips: Iterable[Clip], videos: Mapping[str, Video]) -> Iterator[Work]:
    """Clips in shard order -> a video's clips in one shard, which are decoded in one go."""
    for (_, video), members in groupby(clips, key=lambda clip: (clip.shard, clip.video)):
        if video in videos:
            yield videos[video], list(members)


def megapixels(video: Video, clips: Sequence[Clip]) -> float:
    """Of the frames that a decoder passes through for these clips: all from the first to the last one wanted."""
    first_s = min(clip.first_frame / clip.fps for clip in clips)
    end_s = max((clip.first_frame + clip.valid_frames) / clip.fps for clip in clips)
    frames = min(video.num_frames, math.ceil((end_s - first_s) * video.fps))
    return frames * video.height * video.width / 1e6


def time_decoding(sandbox: Sandbox, works: Iterable[Work]) -> float | None:
    """CPU seconds per megapixel, from a few videos spread over all; None where none of them can be decoded."""
    all_works = list(works)
    began_s, cpu_s, passed = time.monotonic(), 0.0, 0.0
    for number, (video, clips) in enumerate(all_works[:: math.ceil(len(all_works) / PROBED_VIDEOS)]):
        few = _beginning(video, clips)
        try:
            if number == 0:
                _decode(sandbox, video, few)  # the child starts, and imports
            taken_s = _decode(sandbox, video, few)
        except (BadVideo, Refused):
            continue  # `encode` will tell
        cpu_s, passed = cpu_s + taken_s, passed + megapixels(video, few)
        if time.monotonic() - began_s > PROBE_S:
            break
    return cpu_s / passed if passed else None


def _beginning(video: Video, clips: Sequence[Clip]) -> list[Clip]:
    """The first clips, for which no more than PROBE_MEGAPIXELS are decoded; one in any case."""
    fitting = takewhile(lambda count: megapixels(video, clips[:count]) <= PROBE_MEGAPIXELS, range(1, len(clips) + 1))
    return list(clips[: max(fitting, default=1)])


def _decode(sandbox: Sandbox, video: Video, clips: Sequence[Clip]) -> float:
    """CPU seconds for decoding clips of one video, as `encode` does."""
    with at_hand(video) as here:
        for _ in sandbox.stream(decode_and_look, here, clips, lasts_s=video.duration_s):
            pass
    return sandbox.cpu_s


def time_encoding(config: RunConfig, clips: Sequence[Clip]) -> tuple[str, tuple[TimedSize, ...]]:
    """The device, and the seconds per chunk of the sizes that most pixels go to."""
    pixels: dict[tuple[int, int, int], int] = {}
    for clip in clips:
        size = (clip.chunk_frames, clip.height, clip.width)
        pixels[size] = pixels.get(size, 0) + clip.num_frames * clip.height * clip.width
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    vae = load_configured_vae(config).to("cuda" if on_gpu else "cpu")
    vae.memory_bytes = config.encode.vae_bytes
    began_s, timed = time.monotonic(), []
    torch.set_num_threads(config.encode.encoder_cpus)
    try:
        for size in sorted(pixels, key=lambda size: (-pixels[size], size))[:PROBED_SIZES]:
            most = config.encode.batch or chunks_at_once(size, config.encode.batch_bytes, "cuda" if on_gpu else "cpu")
            timed.append(TimedSize(*size, seconds=_encode(vae, size, most)))
            if time.monotonic() - began_s > PROBE_S:
                break
    finally:
        torch.set_num_threads(threads)
    return torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {config.encode.encoder_cpus}", tuple(timed)


def _encode(vae: VideoVAE, size: tuple[int, int, int], batch: int) -> float:
    """Seconds per chunk: of a few batches, the median, where they are quick; else of one chunk."""

    def seconds(count: int) -> float:
        began_s = time.monotonic()
        encode_chunks(vae, np.zeros((count, *size, 3), np.uint8), [0] * count)
        return time.monotonic() - began_s

    first_s = seconds(1)  # it also brings up the device
    if first_s > PROBE_S:
        return first_s
    if first_s * batch * PROBED_BATCHES > PROBE_S:
        return seconds(1)
    return statistics.median(seconds(batch) for _ in range(PROBED_BATCHES)) / batch
