"""What one would write first instead of `encode`: a loop in one process, and a pipeline of Ray Data.

Both do its work by its functions: every clip is decoded and looked at, encoded, measured and checked, and written with
its facts to a tar and a sidecar, synced. Both let a clip be a batch. What they leave out is what `encode` is there for:
readers that may crash, batches across clips, the same bytes again after a crash.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import ray
import torch

from jobs.config import RunConfig
from jobs.configured import configured_recipe, load_configured_vae
from jobs.plan import read_manifest, read_plan
from models.vae.interface import VideoVAE
from pipeline.encode import encode_chunks
from pipeline.gate import value_problem
from pipeline.location import Place
from pipeline.look import join_looks
from pipeline.looked import decode_and_look
from pipeline.plan import shards_of
from pipeline.recipe import Recipe
from pipeline.records import UNKNOWN, Clip, Look, Sample, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample
from pipeline.shard import Packed, commit_shard, writing_shard
from pipeline.stats import ChannelStats, merge_all

Row = dict[str, Any]  # of Ray Data
Decoded = tuple[Clip, Look, np.ndarray]  # frames (chunks, F, H, W, 3) uint8
Encoded = tuple[Clip, Look, np.ndarray]  # latents (C, t, h, w) float16


def plain_loop(config: RunConfig, column: Place) -> None:
    """Shard after shard, video after video, clip after clip."""
    recipe, vae = configured_recipe(config), load_configured_vae(config)
    videos = {video.id: video for video in read_manifest(config.cache)}
    for shard, clips in shards_of(read_plan(config.cache)).items():
        encoded = ((clip, look, _latents(vae, frames)) for clip, look, frames in _decoded(videos, clips))
        _write_shard(column, shard, recipe, videos, encoded)


def ray_data_pipeline(config: RunConfig, column: Place) -> None:
    """Decoding as a flat_map of tasks, the VAE as an actor that maps batches, writing where the rows come out."""
    recipe, clips = configured_recipe(config), read_plan(config.cache)
    videos = {video.id: video for video in read_manifest(config.cache)}
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # a shard's rows come out together, in plan order
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbered = groupby(range(len(clips)), key=lambda number: (clips[number].shard, clips[number].video))
    works = [{"numbers": list(numbers)} for _, numbers in numbered]
    decode: Any = partial(decode_rows, clips=clips, videos=videos)
    rows = (
        ray.data.from_items(works, override_num_blocks=len(works))
        .flat_map(decode, num_cpus=1)
        .map_batches(
            Encoder, fn_constructor_args=(config,), batch_size=1, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
        )
        .iter_rows()
    )
    encoded = ((clips[row["number"]], Look(*row["look"].tolist()), row["latents"]) for row in rows)
    for shard, members in groupby(encoded, key=lambda one: one[0].shard):
        _write_shard(column, shard, recipe, videos, members)


def decode_rows(row: Row, clips: Sequence[Clip], videos: Mapping[str, Video]) -> Iterator[Row]:
    """The clips of one video, with their looks and frames."""
    decoded = _decoded(videos, [clips[number] for number in row["numbers"]])
    for number, (_, look, frames) in zip(row["numbers"], decoded, strict=True):
        yield {"number": number, "look": np.array([look.luminance, look.motion, look.sharpness]), "frames": frames}


class Encoder:
    """Clips' frames -> their latents."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.encode.encoder_cpus)
        self.vae = load_configured_vae(config)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        latents = np.stack([_latents(self.vae, frames) for frames in batch.pop("frames")])
        return {**batch, "latents": latents}


def _decoded(videos: Mapping[str, Video], clips: Sequence[Clip]) -> Iterator[Decoded]:
    for video, members in groupby(clips, key=lambda clip: clip.video):
        seen: list[tuple[np.ndarray, Look]] = []
        for clip, _, frames, look in decode_and_look(videos[video], list(members)):
            seen.append((frames, look))
            if len(seen) == clip.num_chunks:
                chunks, looks = zip(*seen)
                yield clip, join_looks(looks, [1] * len(looks)), np.stack(chunks)
                seen = []


def _latents(vae: VideoVAE, frames: np.ndarray) -> np.ndarray:
    """Frames of a clip (chunks, F, H, W, 3) uint8 -> its latents (C, t, h, w) float16."""
    latents = np.concatenate(list(encode_chunks(vae, frames, [0] * len(frames))), axis=1)
    if problem := value_problem(latents):
        raise ValueError(problem)
    return latents


def _write_shard(
    column: Place, shard: str, recipe: Recipe, videos: Mapping[str, Video], encoded: Iterable[Encoded]
) -> None:
    rows, stats = [], []
    with writing_shard(column, shard) as tar:
        for clip, look, latents in encoded:
            start_s = clip_start_s(videos[clip.video], clip)
            members = {"latent.npy": array_bytes(latents), "json": clip_facts(clip, start_s, recipe)}
            rows.append(make_sample(clip, shard, start_s, look, UNKNOWN, tar.add(Packed(clip.key, members))))
            stats.append(ChannelStats.of(latents))
    merged = merge_all(stats)
    footer = {"stats": merged.to_json()} if merged else {}
    commit_shard(column, shard, Sample, rows, {"recipe": recipe.fingerprint(), **tar.facts, **footer})
