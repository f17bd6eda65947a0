"""A cache in a few numbers, for the page of `preview`: its clips, its quarantine, its last encoding, its recipe."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Any

import numpy as np

from jobs.page import Reason, Rows, count_durations
from pipeline.bucket import bucket_name
from pipeline.recipe import Recipe, leaves
from pipeline.records import Quarantined

MOST_BARS = 12  # of a chart
MOST_REASONS = 30  # of the quarantine

Table = Any  # of Sample, in Arrow: pyarrow stays in pipeline/


def describe_clips(samples: Table) -> list[str]:
    """What all clips of the cache come to, in sentences."""
    seconds = sum(_seconds(samples))
    latents, shards = sum(samples["latent_bytes"].to_pylist()), len(samples["shard"].unique())
    chunks = sum(samples["num_chunks"].to_pylist())
    told = [
        f"{samples.num_rows:,} clips of {chunks:,} chunks in {shards:,} shards: {seconds:,.0f} s of video, "
        f"{latents / 1e6:,.1f} MB of latents."
    ]
    checked = [one for one in samples["psnr"].to_pylist() if np.isfinite(one)]
    if checked:
        told.append(
            f"{len(checked):,} clips were compared with their frames when they were encoded: "
            f"{median(checked):.1f} dB in the median, {min(checked):.1f} dB at the least."
        )
    return told


def count_buckets(samples: Table) -> dict[str, int]:
    """Clips by bucket, the most frequent first, and the rare ones together."""
    names = map(bucket_name, zip(samples["height"].to_pylist(), samples["width"].to_pylist()))
    ranked = Counter(names).most_common()
    rest = ranked[MOST_BARS - 1 :] if len(ranked) > MOST_BARS else []
    kept = dict(ranked[: len(ranked) - len(rest)])
    return {**kept, f"{len(rest)} others": sum(count for _, count in rest)} if rest else kept


def count_lengths(samples: Table) -> dict[str, int]:
    """Clips by duration; images apart."""
    images = sum(num_frames == 1 for num_frames in samples["num_frames"].to_pylist())
    moving = [one for one, frames in zip(_seconds(samples), samples["num_frames"].to_pylist()) if frames > 1]
    return {**({"image": images} if images else {}), **count_durations(moving, MOST_BARS)}


def _seconds(samples: Table) -> list[float]:
    frames, rates = samples["valid_frames"].to_pylist(), samples["fps"].to_pylist()
    return [num_frames / fps for num_frames, fps in zip(frames, rates)]


def count_reasons(quarantined: Sequence[Quarantined]) -> list[Reason]:
    """The quarantine by stage and reason, the most frequent first; reasons that differ in numbers only are one."""
    alike: dict[tuple[str, str], list[Quarantined]] = {}
    for one in quarantined:
        alike.setdefault((one.stage, re.sub(r"\d[\d.]*", "N", one.reason)), []).append(one)
    ranked = sorted(alike.values(), key=len, reverse=True)
    told = [Reason(few[0].stage, few[0].reason, len(few), few[0].path) for few in ranked[:MOST_REASONS]]
    left = ranked[MOST_REASONS:]
    return [*told, Reason("", f"{len(left)} other reasons", sum(map(len, left)), left[0][0].path)] if left else told


def describe_encoding(events: Sequence[dict[str, Any]]) -> Rows:
    """The last run of `encode` that committed a shard, by its events; nothing where none has."""
    runs: list[list[dict[str, Any]]] = []
    for event in events:
        if event["verb"] != "encode" or event["event"] not in ("start", "shard", "done"):
            continue
        if event["event"] == "start":
            runs.append([])
        if runs:
            runs[-1].append(event)
    for run in reversed(runs):
        shards = [event for event in run if event["event"] == "shard"]
        if shards:
            return _describe_run(run, shards)
    return []


def _describe_run(run: Sequence[dict[str, Any]], shards: Sequence[dict[str, Any]]) -> Rows:
    def total(name: str) -> float:
        return sum(shard[name] for shard in shards)

    begun, ended = (datetime.fromisoformat(event["time"]) for event in (run[0], run[-1]))
    seconds = max((ended - begun).total_seconds(), 1e-3)
    unfinished = "" if run[-1]["event"] == "done" else ", and then it was interrupted"
    return [
        ("begun", begun.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("encoded", f"{len(shards):,} shards, {total('clips'):,} clips, {total('chunks'):,} chunks"),
        ("took", f"{seconds:,.1f} s{unfinished}"),
        ("throughput", f"{total('chunks') / seconds:,.1f} chunks/s, {total('latent_bytes') / 1e6 / seconds:,.2f} MB/s"),
        ("VAE busy", f"{total('encode_s') / max(total('total_s'), 1e-9):.0%} of the encoders' time"),
        ("decoding", f"{total('decode_cpu_s'):,.1f} CPU seconds"),
    ]


def describe_recipe(recipe: Recipe) -> Rows:
    """Every field, by its dotted path."""
    fields = leaves(recipe.to_dict())
    told = [(name, "none" if value in (None, "") else str(value)) for name, value in fields]
    return [("fingerprint", recipe.fingerprint()), *told]
