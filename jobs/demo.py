"""`demo`: the whole way on one machine, from videos to a trained model and back, and a table of how it went."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jobs.config import RunConfig
from jobs.mp4 import read_mp4
from jobs.pictures import Row, contact_sheet
from jobs.plan import read_manifest, read_plan
from jobs.preview import Restored, open_clips, restore, spread_clips
from jobs.progress import console, say
from jobs.recorded import recorded
from jobs.run import STEPS
from jobs.run_toml import load_config, toml_document
from jobs.shapes import TARGET_FPS, direction_of_motion, dominant_colour, make_shapes, parse_caption
from jobs.training.metrics import read_metrics
from pipeline.plan import shards_of
from pipeline.quarantine import read_quarantine
from pipeline.storage import publish

NUM_SHEET_CLIPS = 8
NUM_PSNR_CLIPS = 16
LOOK_AT = ("contact_sheet.png", "report.html", "samples.png", "samples/*.mp4")

# What both demos share, and what each changes: few, short steps with a small model and a high learning rate.
COMMON: dict[str, dict[str, Any]] = {
    "encode": {"shard_bytes": 64 * 1024},
    "train": {
        "batch": 16,
        "workers": 2,
        "loader_threads": 0,
        "precision": "fp32",
        "lr": 2e-3,
        "warmup_steps": 50,
        "checkpoint_every": 300,
    },
    # After so few steps the weights still move fast, and their average trails them.
    "sample": {"num_prompts": 16, "guidance": 3.0, "weights": "last"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "recipe": {"fps": float(TARGET_FPS), "buckets": [[64, 64]], "max_chunks": 3},
    "train": {"steps": 900, "timestep_transform": False},  # it is made for larger pictures
}
OWN_VIDEOS: dict[str, dict[str, Any]] = {
    "data": {"caption_from_name": True},
    "recipe": {"fps": 24.0, "buckets": [[96, 128], [128, 96]], "max_chunks": 2, "upscale": 4.0},
    "train": {"steps": 60},
}


def demo(out: Path, videos: Path | None, overrides: list[str]) -> tuple[RunConfig, int]:
    """Run every verb below `out` on moving shapes or on the `videos`, and show what came of it.

    Returns the run's configuration and how many inputs are in the quarantine.
    """
    if videos is None and not (out / "videos" / "captions.csv").exists():
        say(f"demo: drawing moving shapes -> {out / 'videos'}")
        make_shapes(out / "videos")
    source = videos if videos is not None else out / "videos" / "captions.csv"
    path = out / "run.toml"
    publish(path, toml_document(_document(out, source, SHAPES if videos is None else OWN_VIDEOS)).encode())
    config = load_config(path, overrides)
    seconds = {}
    for name, step in STEPS.items():
        begun_s = time.monotonic()
        recorded(name, step, config)
        seconds[name] = time.monotonic() - begun_s
    restored = list(restore(config, spread_clips(config.cache, open_clips(config), NUM_PSNR_CLIPS)))
    some = restored[:: NUM_PSNR_CLIPS // NUM_SHEET_CLIPS]
    rows = [Row(one.caption, (one.source, one.decoded)) for one in some if one.source is not None]
    contact_sheet(out / "contact_sheet.png", rows)
    verdict = judge(config) if videos is None and not config.sample.prompts else None
    _show(config, restored, seconds, verdict)
    return config, len(read_quarantine(config.cache))


def _document(out: Path, source: Path, changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The demo's run.toml."""
    places = {"data": {"source": str(source), "cache": str(out / "cache")}, "train": {"out": str(out)}}
    sections = {name: {} for name in RunConfig.model_fields}
    for part in (places, COMMON, changes):
        for name, knobs in part.items():
            sections[name].update(knobs)
    return {name: knobs for name, knobs in sections.items() if knobs}


@dataclass(frozen=True)
class Verdict:
    """How many sampled videos show what their caption says."""

    samples: int
    right_colour: int
    right_direction: int


def judge(config: RunConfig) -> Verdict:
    """Look at the sampled shapes: is the colour the caption's, is the direction?"""
    prompts = json.loads((config.train.out / "samples.json").read_text())["prompts"]
    colours = directions = 0
    for number, prompt in enumerate(prompts):
        frames = read_mp4(config.train.out / "samples" / f"{number:03d}.mp4")
        colour, _, direction = parse_caption(prompt)
        colours += dominant_colour(frames) == colour
        directions += direction_of_motion(frames) == direction
    return Verdict(len(prompts), colours, directions)


def _show(config: RunConfig, restored: list[Restored], seconds: dict[str, float], verdict: Verdict | None) -> None:
    """The table at the end."""
    out = config.train.out
    clips = read_plan(config.cache)
    losses = [line["loss"] for line in read_metrics(out / "metrics.jsonl")]
    window = max(1, len(losses) // 20)
    psnrs = [one.psnr_db for one in restored if one.psnr_db is not None]
    rows = [
        ("videos", str(len(read_manifest(config.cache)))),
        ("clips, chunks, shards", f"{len(clips)}, {sum(c.num_chunks for c in clips)}, {len(shards_of(clips))}"),
        *((f"{name}, seconds", f"{value:.1f}") for name, value in seconds.items()),
        ("all, seconds", f"{sum(seconds.values()):.1f}"),
        (f"loss, first and last {window} steps", f"{np.mean(losses[:window]):.3f} -> {np.mean(losses[-window:]):.3f}"),
        (f"PSNR of {len(psnrs)} cached clips", f"{np.mean(psnrs):.1f} dB, least {min(psnrs):.1f} dB"),
    ]
    if verdict:
        rows += [
            ("sampled colour as the caption says", _share(verdict.right_colour, verdict.samples)),
            ("sampled direction as the caption says", _share(verdict.right_direction, verdict.samples)),
        ]
    rows += [("look at", str(out / name)) for name in LOOK_AT]
    table = Table(title="demo", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _share(right: int, samples: int) -> str:
    return f"{right} of {samples} ({right / samples:.0%})"
