"""Schedule -> batches: members read by byte offset from the tars and collated into one typed batch."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.filter import matches
from pipeline.index import open_index
from pipeline.plan import read_tombstones
from pipeline.recipe import Recipe
from pipeline.records import Sample, TextSample, Video
from pipeline.sample import read_array
from pipeline.schedule import Schedule, Slot, rank_steps
from pipeline.shard import Member
from pipeline.storage import THREADS
from pipeline.tables import read_table
from pipeline.tar_reader import TarReader


@dataclass(frozen=True)
class TrainingSet:
    """The two columns of a cache, row by row the same clips: those that are trained on."""

    cache: Cache
    recipe: Recipe  # of the batches
    stored: Recipe  # of the cache: the same, or another normalization of the same latents
    samples: pa.Table  # of Sample
    texts: pa.Table  # of TextSample
    text_encoder: str
    num_removed: int = 0  # clips left out because their videos left the source
    num_filtered: int = 0  # clips left out by the filter


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; all samples of one bucket."""

    num_frames: int  # of each clip
    latents: Tensor  # (B, c, t, h, w) float16, normalized; float32 where converted from another normalization
    std: Tensor | None  # as latents, where the cache holds moments: the posterior's standard deviation
    filled: Tensor  # (B, t) bool, False = all its frames are padding
    text: Tensor  # (B, L, dim) float16, padded with zeros to the longest caption here
    text_mask: Tensor  # (B, L) bool, True = a token
    fps: Tensor  # (B,) float32
    height: Tensor  # (B,) float32, pixels
    width: Tensor  # (B,) float32, pixels
    weights: Tensor  # (B,) float32, 0 for fillers
    positions: Tensor  # (B,) int64, in the global batch
    keys: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; DataLoader calls it where a GPU will read."""
        return replace(
            self, **{name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        )


def open_training_set(
    cache: Cache, recipe: Recipe, text_encoder: str, stored: Recipe | None = None, filter: str = ""
) -> TrainingSet:
    """Open both columns, without the clips of removed videos and those that `filter` does not match.

    `stored` is the cache's recipe where that is another one that converts to `recipe`: batches are then converted.
    Refused where a column is missing, made by another recipe or behind the other, or where no clip is left.
    """
    stored = stored or recipe
    samples = open_index(cache.index, stored, Sample, "encode")
    texts = open_index(cache.text_index(text_encoder), stored, TextSample, "text")
    if samples["key"] != texts["key"]:
        raise Refused(
            f"{cache.text_index(text_encoder)}: {texts.num_rows} captions for {samples.num_rows} clips of "
            f"{cache.index}, or in another order; run `text` again"
        )
    if not samples.num_rows:
        raise Refused(f"{cache.index}: holds no clips; everything is in the quarantine")
    present = ~_among(samples["video"], read_tombstones(cache))
    wanted = matches(filter, _with_videos(samples, cache)) if filter.strip() else np.ones_like(present)
    kept, num_removed, num_filtered = present & wanted, int((~present).sum()), int((present & ~wanted).sum())
    if not kept.any():
        raise Refused(
            f"{cache.index}: of {len(kept)} clips none is left to train on: {num_removed} are of videos that left the "
            f"source, {num_filtered} do not match train.filter {filter!r}; change that, or bring the videos back"
        )
    samples, texts = (table.filter(pa.array(kept)).combine_chunks() for table in (samples, texts))
    return TrainingSet(cache, recipe, stored, samples, texts, text_encoder, num_removed, num_filtered)


def _among(column: pa.ChunkedArray, values: set[str]) -> np.ndarray:
    return pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(sorted(values), pa.string()))).to_numpy()


def _with_videos(samples: pa.Table, cache: Cache) -> pa.Table:
    """The index with what the manifest says of each clip's video; where both have a column, the index's."""
    if not cache.manifest.exists():
        raise Refused(f"{cache.manifest}: not found, and train.filter needs it; run `scan`, or empty train.filter")
    videos = read_table(cache.manifest, Video)
    rows = pc.call_function("index_in", [samples["video"]], pc.SetLookupOptions(videos["id"]))
    for name in videos.column_names:
        if name not in samples.column_names:
            samples = samples.append_column(name, videos[name].take(rows))
    return samples


class ClipReader(Dataset):
    """Slot -> (slot, latents (C, t, h, w) as cached, text (tokens, dim)); reads exactly the bytes of the members."""

    def __init__(self, training_set: TrainingSet) -> None:
        self.recipe, self.stored = training_set.recipe.latent, training_set.stored.latent
        self.latent_tars = TarReader(training_set.cache.latents)
        self.text_tars = TarReader(training_set.cache.text(training_set.text_encoder))
        self.samples = training_set.samples
        self.texts = training_set.texts

    def __getitem__(self, slot: Slot) -> tuple[Slot, np.ndarray, np.ndarray]:
        latents = self._read(self.latent_tars, self.samples, "latent", slot.row)
        text = self._read(self.text_tars, self.texts, "text", slot.row)
        return slot, latents, text

    def _read(self, tars: TarReader, table: pa.Table, member: str, row: int) -> np.ndarray:
        shard, *where = (
            table[name][row].as_py() for name in ("shard", f"{member}_offset", f"{member}_bytes", f"{member}_crc32c")
        )
        return read_array(tars.read(shard, Member(*where)))

    def collate(self, items: list[tuple[Slot, np.ndarray, np.ndarray]]) -> Batch:
        """Items of one bucket -> a batch; captions padded to the longest."""
        slots, latents, texts = zip(*items, strict=True)
        length = max(1, *(len(text) for text in texts))
        text = np.zeros((len(texts), length, texts[0].shape[1]), np.float16)
        text_mask = np.zeros((len(texts), length), bool)
        for place, tokens in enumerate(texts):
            text[place, : len(tokens)] = tokens
            text_mask[place, : len(tokens)] = True
        rows = self.samples.take([slot.row for slot in slots])
        fps, height, width = (
            torch.tensor(rows[name].to_pylist(), dtype=torch.float32) for name in ("fps", "height", "width")
        )
        cached = torch.from_numpy(np.stack(latents))  # (B, C, t, h, w)
        num_filled = [self.recipe.filled_latents(valid) for valid in rows["valid_frames"].to_pylist()]
        filled = torch.arange(cached.shape[2]) < torch.tensor(num_filled)[:, None]
        if self.stored != self.recipe:
            cached = self.stored.convert(cached, to=self.recipe)
        mean, *std = cached.split(self.recipe.channels, dim=1)
        return Batch(
            num_frames=rows["num_frames"][0].as_py(),
            latents=mean,
            std=std[0] if std else None,
            filled=filled,
            text=torch.from_numpy(text),
            text_mask=torch.from_numpy(text_mask),
            fps=fps,
            height=height,
            width=width,
            weights=torch.tensor([slot.weight for slot in slots]),
            positions=torch.tensor([slot.position for slot in slots]),
            keys=tuple(rows["key"].to_pylist()),
        )


class _Steps:
    """The batch sampler of one rank: a fresh iterator each time, as DataLoader expects."""

    def __init__(self, schedule: Schedule, steps: range, rank: int, num_ranks: int) -> None:
        self.arguments = (schedule, steps, rank, num_ranks)

    def __iter__(self) -> Iterator[list[Slot]]:
        return rank_steps(*self.arguments)


def load_batches(
    training_set: TrainingSet, schedule: Schedule, steps: range, rank: int, num_ranks: int, num_workers: int
) -> Iterator[Batch]:
    """One rank's batches for the given steps, in order, with `num_workers` read ahead.

    By as many processes from a disk; by threads from an object store, whose client does not survive a fork.
    """
    reader = ClipReader(training_set)
    sampler = _Steps(schedule, steps, rank, num_ranks)
    if not isinstance(training_set.cache.root, Path):
        return _load_by_threads(reader, sampler, num_workers)
    loader = DataLoader(
        reader,
        batch_sampler=sampler,  # pyright: ignore[reportArgumentType]  # yields slots where DataLoader says indices
        collate_fn=reader.collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _load_by_threads(reader: ClipReader, batches: Iterable[list[Slot]], num_ahead: int) -> Iterator[Batch]:
    """Batches whose samples are asked for all at once, with those of the next `num_ahead` batches."""
    threads = ThreadPoolExecutor(THREADS)
    pending = ([threads.submit(reader.__getitem__, slot) for slot in slots] for slots in batches)
    try:
        ahead = deque(islice(pending, num_ahead + 1))
        while ahead:
            batch = reader.collate([item.result() for item in ahead.popleft()])
            ahead.extend(islice(pending, 1))
            yield batch.pin_memory() if torch.cuda.is_available() else batch
    finally:
        threads.shutdown(cancel_futures=True)
