"""`schedule`: what will be trained on, step by step, and what an epoch holds."""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from rich import box
from rich.table import Table

from jobs.config import ConfigError, RunConfig
from jobs.configured import configured_recipe, configured_schedule, count_tokens, describe_part, open_configured_set
from jobs.progress import console, say
from models.dit import DITS
from pipeline.schedule import Bucket, Count, GlobalBatch, Schedule
from pipeline.training_set import TrainingSet

COLUMNS = 80
Tokens = Callable[[Bucket], int]  # of one sample


def show_schedule(config: RunConfig, epoch: int, steps: str) -> None:
    """Print the batches of some steps of an epoch, given as A:B, and what the epoch holds in all."""
    first, end = parse_steps(steps)
    recipe = configured_recipe(config)
    data = open_configured_set(config, recipe)
    schedule = configured_schedule(config, data)
    patch = DITS[config.model.name].patch_size

    def tokens(bucket: Bucket) -> int:
        return count_tokens(recipe.latent, patch, bucket.num_frames, bucket.height, bucket.width)

    num_steps = schedule.num_steps(epoch)
    if num_steps <= first < end:
        raise ConfigError(
            f"--steps: found {steps}, but epoch {epoch} has {num_steps} steps; wanted some of 0:{num_steps}"
        )
    for part in data.parts:
        say(f"schedule: {describe_part(part)}")
    for step in range(first, min(end, num_steps)):
        batch = schedule.batch(epoch, step)
        say(f"epoch {epoch}, step {step}: {describe_batch(batch, tokens(batch.bucket))}")
        for line in list_keys(data, batch):
            say(line)
    console.print(epoch_table(epoch, schedule.counts(epoch), padding_of(data, schedule, epoch), tokens))


def parse_steps(steps: str) -> tuple[int, int]:
    """A:B -> (A, B); ConfigError where it is not that."""
    first, colon, end = steps.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) <= int(end)):
        raise ConfigError(f"--steps: found {steps!r}, wanted A:B, such as 0:10 for the first ten")
    return int(first), int(end)


def describe_batch(batch: GlobalBatch, tokens: int) -> str:
    """The bucket, how full the batch is, and its tokens, where a sample has so many."""
    bucket, samples = batch.bucket, int((batch.weights > 0).sum())
    size = f"{bucket.height}x{bucket.width}, {bucket.num_frames} frames"
    return f"{size}, {samples} of {len(batch.rows)} samples, {samples * tokens:,} tokens"


def list_keys(data: TrainingSet, batch: GlobalBatch) -> Iterator[str]:
    """Lines with the keys of a batch, by cache where there are several; KEY+34 begins 34 frames into its clip."""
    counted = batch.weights > 0
    rows, of_part = batch.rows[counted], data.part_of(batch.rows[counted])
    begins = [
        f"+{first * batch.bucket.chunk_frames}" if first else "" for first in batch.first_chunks[counted].tolist()
    ]
    keys = [key + begin for key, begin in zip(data.keys(rows), begins)]
    for number, part in enumerate(data.parts):
        own = [key for key, place in zip(keys, of_part.tolist()) if place == number]
        if own and len(data.parts) > 1:
            yield f"  of {part.cache.root}:"
        yield from textwrap.wrap(
            "  ".join(own), COLUMNS, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )


def padding_of(data: TrainingSet, schedule: Schedule, epoch: int) -> Mapping[Bucket, float]:
    """How much of an epoch's samples is latents of padding only, in samples; looked for only where there may be any."""
    padding: defaultdict[Bucket, float] = defaultdict(float)
    if all(part.recipe.tail != "pad" for part in data.parts):
        return padding
    latent = data.recipe.latent
    for step in range(schedule.num_steps(epoch)):
        batch = schedule.batch(epoch, step)
        counted, bucket = batch.weights > 0, batch.bucket
        valid = data.rows(batch.rows[counted])["valid_frames"] - batch.first_chunks[counted] * bucket.chunk_frames
        filled = sum(latent.filled_latents(frames) for frames in valid.clip(max=bucket.num_frames).tolist())
        padding[bucket] += len(valid) - filled / latent.filled_latents(bucket.num_frames)
    return padding


def epoch_table(epoch: int, counts: list[Count], padding: Mapping[Bucket, float], tokens: Tokens) -> Table:
    """A row per bucket and one for all: samples, their tokens, batches, and how much is computed for nothing."""
    title, caption = f"epoch {epoch}", "fillers and padding: shares of the tokens that are computed"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0)
    for name in ("size", "frames", "samples", "tokens", "batch", "batches", "fillers", "padding"):
        table.add_column(name, justify="right")
    total = np.zeros(5)
    for bucket, batch_size, samples, batches in counts:
        size, places = tokens(bucket), batches * batch_size
        sums = np.array([samples, batches, samples * size, (places - samples) * size, padding.get(bucket, 0) * size])
        total += sums
        if samples:
            _add_row(table, f"{bucket.height}x{bucket.width}", f"{bucket.num_frames}", f"{batch_size:,}", *sums)
    _add_row(table, "all", "", "", *total)
    return table


def _add_row(table: Table, size: str, frames: str, batch: str, samples: float, batches: float, *tokens: float) -> None:
    """`tokens` are those of samples, of fillers, and of padding."""
    useful, fillers, padded = tokens
    shares = (f"{one / max(1, useful + fillers):.1%}" for one in (fillers, padded))
    table.add_row(size, frames, f"{samples:,.0f}", f"{useful:,.0f}", batch, f"{batches:,.0f}", *shares)
