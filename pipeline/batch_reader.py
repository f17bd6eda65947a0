"""Slots of one bucket -> a typed batch: members read by byte offset, straight to where they belong in its tensors."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from models.latent_spec import LatentSpec
from pipeline.buffers import Buffers
from pipeline.schedule import Slot
from pipeline.shard import Member
from pipeline.shard_cache import ShardCache
from pipeline.tar_reader import Damaged, TarReader
from pipeline.training_set import TrainingSet
from pipeline.view import MEMBER

MAX_OPEN = 256  # tars, over all columns; systems allow about a thousand open files


class DamagedSample(NamedTuple):
    """One whose members could not be used."""

    key: str
    problem: str


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; all samples of one bucket."""

    num_frames: int  # of each sample
    latents: Tensor  # (B, c, t, h, w) float16, normalized; float32 where converted from another normalization
    std: Tensor | None  # as latents, where the cache holds moments: the posterior's standard deviation
    filled: Tensor  # (B, t) bool, False = all its frames are padding
    text: Tensor  # (B, L, dim) float16, padded with zeros to the longest caption here
    text_mask: Tensor  # (B, L) bool, True = a token
    fps: Tensor  # (B,) float32
    height: Tensor  # (B,) float32, pixels
    width: Tensor  # (B,) float32, pixels
    weights: Tensor  # (B,) float32, in the mean over the global batch; 0 for fillers and for damaged samples
    positions: Tensor  # (B,) int64, in the global batch
    keys: tuple[str, ...]
    damaged: tuple[DamagedSample, ...] = ()  # their tensors are zeros; fillers are not told of


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as `parts` smaller ones of nearly the same size, or one of each sample where it has fewer."""
    ends = np.linspace(0, len(batch.keys), min(parts, len(batch.keys)) + 1).round().astype(int).tolist()
    return [_cut(batch, slice(first, end)) for first, end in pairwise(ends)]


def _cut(batch: Batch, some: slice) -> Batch:
    cut = {field.name: getattr(batch, field.name) for field in fields(batch)}
    per_sample = {name: value[some] for name, value in cut.items() if isinstance(value, (Tensor, tuple))}
    return Batch(**{**cut, **per_sample, "damaged": ()})


class BatchReader(Dataset):
    """A torch dataset for a DataLoader with a batch sampler of slots.

    A clip's chunks were encoded independently of each other, so a few of them are what they would be on their own.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        threads: Executor | None = None,
        shard_cache: ShardCache | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Samples are read by `threads`, many at once, or one after the other; what comes from a store is kept in
        `shard_cache`. `pin_memory` reads to page-locked memory, from which a GPU copies while it computes."""
        self.data, self.threads, self.buffers = training_set, threads, Buffers(pin_memory)
        converted = any(part.recipe.latent != self.latent for part in training_set.parts)
        self.dtype = np.float32 if converted else np.float16
        max_open = max(1, MAX_OPEN // (2 * len(training_set.parts)))
        columns = [(part.cache.latents, part.cache.text(training_set.text.name)) for part in training_set.parts]
        self.tars = [tuple(TarReader(column, shard_cache, max_open) for column in both) for both in columns]

    @property
    def latent(self) -> LatentSpec:
        return self.data.recipe.latent

    def __getitems__(self, slots: Sequence[Slot]) -> Batch:
        """Slots of one bucket -> their batch. A sample with a damaged member gets weight zero, and is told of."""
        clips = np.array([slot.row for slot in slots])
        rows, parts = self.data.rows(clips), self.data.part_of(clips).tolist()
        chunk_frames = int(rows["num_frames"][0] // rows["num_chunks"][0])
        num_frames = slots[0].num_chunks * chunk_frames
        latents, text = self._buffers(rows, num_frames)
        read = self.threads.map if self.threads else map
        members = zip(_members(rows, "latent"), _members(rows, "text"))
        problems = list(read(self._read, slots, rows, parts, members, latents.numpy(), text.numpy()))
        keys = [key.decode() for key in rows["key"].tolist()]
        told = [
            DamagedSample(key, problem) for key, problem, slot in zip(keys, problems, slots) if problem and slot.weight
        ]
        valid = rows["valid_frames"] - chunk_frames * np.array([slot.first_chunk for slot in slots])
        num_filled = torch.tensor([self.latent.filled_latents(count) for count in valid.tolist()])
        num_tokens = torch.from_numpy(rows["num_tokens"].copy())
        mean, *std = latents.split(self.latent.channels, dim=1)
        return Batch(
            num_frames=num_frames,
            latents=mean,
            std=std[0] if std else None,
            filled=torch.arange(latents.shape[2]) < rearrange(num_filled, "b -> b 1"),
            text=text,
            text_mask=torch.arange(text.shape[1]) < rearrange(num_tokens, "b -> b 1"),
            fps=torch.from_numpy(rows["fps"].copy()),
            height=torch.from_numpy(rows["height"].astype(np.float32)),
            width=torch.from_numpy(rows["width"].astype(np.float32)),
            weights=torch.tensor([0.0 if problem else slot.weight for slot, problem in zip(slots, problems)]),
            positions=torch.tensor([slot.position for slot in slots]),
            keys=tuple(keys),
            damaged=tuple(told),
        )

    def _buffers(self, rows: np.ndarray, num_frames: int) -> tuple[Tensor, Tensor]:
        """Room for the latents of a batch, (B, C, t, h, w), and for its text, (B, L, dim)."""
        _, *shape = self.latent.latent_shape(num_frames, int(rows["height"][0]), int(rows["width"][0]))  # (t, h, w)
        length = max(1, int(rows["num_tokens"].max()))
        return (
            self.buffers.lend((len(rows), self.latent.stored_channels, *shape), self.dtype),
            self.buffers.lend((len(rows), length, self.data.text.dim), np.float16),
        )

    def _read(
        self,
        slot: Slot,
        row: np.void,
        part: int,
        members: tuple[Member, Member],
        latents: np.ndarray,
        text: np.ndarray,
    ) -> str:
        """Fill one sample's place in the batch: (C, t, h, w), and (L, dim); returns what is damaged, if anything."""
        of_part, num_tokens = self.data.parts[part], int(row["num_tokens"])
        shard, num_chunks = of_part.view.shards[row["shard"]], int(row["num_chunks"])
        latent_tars, text_tars = self.tars[part]
        try:
            text_tars.read_array(shard, members[1], text[:num_tokens])
            text[num_tokens:] = 0
            if slot.num_chunks == num_chunks and self.dtype == np.float16:
                latent_tars.read_array(shard, members[0], latents)
            else:
                # All of it, for that is what has a checksum.
                channels, num_latents, *size = latents.shape
                clip = np.empty((channels, num_latents // slot.num_chunks * num_chunks, *size), np.float16)
                latent_tars.read_array(shard, members[0], clip)
                latents[:] = self._shown(clip, num_chunks, slot, of_part.recipe.latent)
        except Damaged as error:
            latents[:] = text[:] = 0
            return str(error)
        return ""

    def _shown(self, clip: np.ndarray, num_chunks: int, slot: Slot, stored: LatentSpec) -> np.ndarray:
        """A whole clip (C, T, h, w) as cached -> the latents of a slot's chunks, (C, t, h, w), as the run has them."""
        chunks = rearrange(clip, "c (chunks t) h w -> chunks c t h w", chunks=num_chunks)
        own = rearrange(chunks[slot.first_chunk :][: slot.num_chunks], "chunks c t h w -> c (chunks t) h w")
        return own if stored == self.latent else stored.convert(torch.from_numpy(own), to=self.latent).numpy()


def _members(rows: np.ndarray, name: str) -> list[Member]:
    return [Member(*facts) for facts in zip(*(rows[f"{name}_{fact}"].tolist() for fact in MEMBER))]
