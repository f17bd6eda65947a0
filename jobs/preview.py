"""`preview`: clips of the cache decoded again, beside their source: mp4s, and a page that shows them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from jobs.config import ConfigError, RunConfig
from jobs.configured import configured_recipe, load_configured_vae
from jobs.decode import reader_limits
from jobs.events import read_events
from jobs.mp4 import write_mp4
from jobs.overview import (
    Table,
    count_buckets,
    count_lengths,
    count_reasons,
    describe_clips,
    describe_encoding,
    describe_recipe,
)
from jobs.page import Card, Page, Rows, render
from jobs.plan import read_manifest, read_plan
from jobs.progress import progress, say
from models.latent_spec import LatentSpec
from models.vae.interface import VideoVAE
from pipeline.cache import Cache
from pipeline.decode import at_hand, decode_clips
from pipeline.encode import decode_to_frames, psnr
from pipeline.errors import BadVideo, Refused
from pipeline.index import open_index
from pipeline.plan import read_tombstones
from pipeline.quarantine import read_quarantine
from pipeline.recipe import convertible_recipe, read_recipe
from pipeline.records import Clip, Sample, TextSample, Video
from pipeline.sample import read_array
from pipeline.sandbox import Sandbox
from pipeline.shard import Member
from pipeline.storage import publish
from pipeline.tables import read_table
from pipeline.tar_reader import TarReader

MOST_CLIPS = 100  # on a page
MOST_PIXELS = 150_000_000  # of a clip (frames x height x width) that are shown, such as four chunks of 1080p
PAGE_BYTES = 48 * 2**20  # of mp4s on the page; the others lie beside it


@dataclass(frozen=True)
class Restored:
    """A clip, or the first chunks of a long one, decoded from the cache, beside what it was made of."""

    sample: Sample
    clip: Clip  # as long as the frames are
    path: str  # of its video
    caption: str
    decoded: np.ndarray  # (T, H, W, 3) uint8
    source: np.ndarray | None  # as `decoded`; None where the video cannot be read any more
    no_source: str = ""  # why

    @property
    def psnr_db(self) -> float | None:
        return None if self.source is None else psnr(self.source, self.decoded)


def preview(config: RunConfig, out: Path, keys: Sequence[str], count: int) -> None:
    """Write mp4s and a page of the clips with these keys or, without keys, of `count` clips spread over the cache."""
    wanted = len(keys) or count
    if not 1 <= wanted <= MOST_CLIPS:
        raise ConfigError(f"found {wanted} clips to show, wanted 1 to {MOST_CLIPS}; change --clips or name fewer")
    cache, samples = config.cache, open_clips(config)
    chosen = named_clips(cache, samples, keys) if keys else spread_clips(cache, samples, count)
    cards, quality, room = [], [], PAGE_BYTES
    with progress("preview", len(chosen), "clips", config) as bar:
        for one in restore(config, chosen):
            card = make_card(one, out, room)
            cards.append(card)
            quality.append(one.psnr_db)
            room -= len(card.mp4 or b"")
            bar.advance()
    shown = describe_shown(samples.num_rows, quality)
    page = Page(
        cache=str(cache.root),
        summary=[*describe_clips(samples), f"Below: {shown}."],
        cards=cards,
        buckets=count_buckets(samples),
        durations=count_lengths(samples),
        quarantine=count_reasons(read_quarantine(cache)),
        encoding=describe_encoding(read_events(cache.events)),
        recipe=describe_recipe(read_recipe(cache)),
    )
    content = render(page).encode()
    publish(out / "index.html", content)
    say(f"preview: {shown} -> {out / 'index.html'}, {len(content) / 1e6:.1f} MB")


def open_clips(config: RunConfig) -> Table:
    """The index; Refused where the run's VAE does not decode what is in the cache."""
    recipe = convertible_recipe(config.cache, configured_recipe(config))
    return open_index(config.cache.index, recipe, Sample, "encode")


def spread_clips(cache: Cache, samples: Table, count: int) -> list[Sample]:
    """`count` rows of the index, evenly spread over those that are trained on."""
    removed = read_tombstones(cache)
    rows = [row for row, video in enumerate(samples["video"].to_pylist()) if video not in removed]
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return _rows(samples, [rows[place] for place in places])


def named_clips(cache: Cache, samples: Table, keys: Sequence[str]) -> list[Sample]:
    """The rows of the index with these keys, in their order; Refused where there is none."""
    rows = {key: row for row, key in enumerate(samples["key"].to_pylist())}
    for key in keys:
        if key not in rows:
            raise Refused(f"{key}: {why_missing(cache, key)}")
    return _rows(samples, [rows[key] for key in dict.fromkeys(keys)])


def _rows(samples: Table, rows: Sequence[int]) -> list[Sample]:
    return [Sample(**row) for row in samples.take(rows).to_pylist()] if rows else []


def why_missing(cache: Cache, key: str) -> str:
    """Why a clip is not in the index, and what to do."""
    clips = read_plan(cache)
    clip = next((clip for clip in clips if clip.key == key), None)
    video = clip.video if clip else key.partition("-")[0]
    if video in read_tombstones(cache):
        return "its video has left the source; bring it back, then run `scan` and `quarantine retry`"
    for one in read_quarantine(cache):
        if one.video == video and (clip is None or one.shard in ("", clip.shard)):
            return f"in the quarantine: {one.path}: {one.stage}: {one.reason}; mend it, then run `quarantine retry`"
    if clip is None:
        return f"no such clip among the {len(clips)} planned ones; take a key of index.parquet, or none to see some"
    return f"planned for shard {clip.shard}, which is not encoded yet; run `encode`"


def restore(config: RunConfig, samples: Sequence[Sample]) -> Iterator[Restored]:
    """Clips of the cache decoded again, one after the other, with the frames of their videos where these are there."""
    cache = config.cache
    vae = load_configured_vae(config).to("cuda" if torch.cuda.is_available() else "cpu")
    vae.memory_bytes = config.encode.vae_bytes
    stored, tars = read_recipe(cache).latent, TarReader(cache.latents)
    keys = {sample.key for sample in samples}
    clips = {clip.key: clip for clip in read_plan(cache) if clip.key in keys}
    videos = {video.id: video for video in read_manifest(cache)}
    captions = read_captions(config, keys)
    with Sandbox(reader_limits(config.data)) as sandbox:
        for sample in samples:
            clip, video = beginning(clips[sample.key]), videos[sample.video]
            decoded = decode_again(vae, stored, tars, sample, clip)
            source, no_source = read_source(sandbox, video, clip)
            caption = captions.get(sample.key, video.caption)
            yield Restored(sample, clip, video.path, caption, decoded, source, no_source)


def read_captions(config: RunConfig, keys: set[str]) -> dict[str, str]:
    """The captions of clips as the text column has them; of none where there is no column."""
    index = config.cache.text_index(config.text.encoder)
    if not index.exists():
        return {}
    texts = read_table(index, TextSample)
    rows = zip(texts["key"].to_pylist(), texts["caption"].to_pylist())
    return {key: caption for key, caption in rows if key in keys}


def beginning(clip: Clip) -> Clip:
    """As many of its first chunks as `MOST_PIXELS` hold, one at the least."""
    chunks = max(1, min(clip.num_chunks, MOST_PIXELS // (clip.chunk_frames * clip.height * clip.width)))
    frames = chunks * clip.chunk_frames
    return replace(clip, num_chunks=chunks, num_frames=frames, valid_frames=min(frames, clip.valid_frames))


def decode_again(vae: VideoVAE, stored: LatentSpec, tars: TarReader, sample: Sample, clip: Clip) -> np.ndarray:
    """What the cache holds of a clip, normalized as `stored` says -> frames (T, H, W, 3) uint8."""
    member = Member(sample.latent_offset, sample.latent_bytes, sample.latent_crc32c)
    cached = torch.from_numpy(read_array(tars.read(sample.shard, member)))  # (C, t, h, w), C = c or 2c
    latents = stored.convert(cached, to=vae.spec)[: vae.spec.channels, : vae.spec.latent_frames(clip.num_frames)]
    return decode_to_frames(vae, latents[None].to(vae.device), clip.num_frames)[0]


def read_source(sandbox: Sandbox, video: Video, clip: Clip) -> tuple[np.ndarray | None, str]:
    """The frames of a clip (T, H, W, 3) uint8 from its video again; or None, and why."""
    try:
        with at_hand(video) as here:
            chunks = [frames for *_, frames in sandbox.stream(decode_clips, here, [clip], lasts_s=video.duration_s)]
    except (BadVideo, Refused) as error:
        return None, str(error)
    return np.concatenate(chunks), ""


def make_card(one: Restored, out: Path, room: int) -> Card:
    """Write a clip as an mp4, source to the left, and tell of it; its bytes are on the page where `room` holds them."""
    link = f"clips/{one.clip.key}.mp4"
    halves = [one.decoded] if one.source is None else [one.source, one.decoded]
    write_mp4(out / link, np.concatenate(halves, axis=2), one.clip.fps)  # (T, H, 2W, 3)
    content = (out / link).read_bytes()
    return Card(one.caption, clip_facts(one), content if len(content) <= room else None, link, one.no_source)


def clip_facts(one: Restored) -> Rows:
    """What is told of a clip: quality, time, size, and where it comes from."""
    sample, clip = one.sample, one.clip
    quality = "unknown" if one.psnr_db is None else f"{one.psnr_db:.1f} dB"
    if one.psnr_db is None and np.isfinite(sample.psnr):
        quality = f"{sample.psnr:.1f} dB when it was encoded"
    end_s = sample.start_s + sample.valid_frames / sample.fps
    still = sample.num_frames == 1
    padding = sample.num_frames - sample.valid_frames
    frames = f"{sample.num_frames} of {sample.height}×{sample.width} at {sample.fps:.5g} fps"
    frames += f", {padding} of them padding" * (padding > 0)
    frames += f"; the first {clip.num_frames} are shown" * (clip.num_frames < sample.num_frames)
    return [
        ("PSNR", quality),
        ("time", f"{sample.start_s:.2f} s" if still else f"{sample.start_s:.2f} to {end_s:.2f} s"),
        ("frames", f"image of {sample.height}×{sample.width}" if still else frames),
        ("video", one.path),
        ("key", sample.key),
    ]


def describe_shown(num_clips: int, quality: Sequence[float | None]) -> str:
    """How many clips are shown, and how well they come back."""
    known = [one for one in quality if one is not None]
    told = [f"{len(quality)} of {num_clips:,} clips"]
    if known:
        told.append(f"PSNR {median(known):.1f} dB in the median, {min(known):.1f} dB at the least")
    if len(known) < len(quality):
        told.append(f"{len(quality) - len(known)} without their source")
    return "; ".join(told)
