"""`loss.png` and `report.html`: a run on one page, made of what it left in `train.out`, however far it came."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, median
from typing import Any

from jobs.config import RunConfig
from jobs.events import read_events
from jobs.page import Html, Rows, data_uri, document, element, heading, pairs, section, table, video
from jobs.plots import Curve, Panel, plot
from jobs.training.metrics import begun_s, read_metrics
from jobs.training.samples import read_asked
from pipeline.storage import publish

Lines = Sequence[dict[str, Any]]  # of metrics.jsonl, or of events.jsonl

FIRST_AND_LAST = 50  # steps whose mean loss is told
MOST_EVENTS = 100  # on the page, the latest ones
MOST_DAMAGED = 10  # samples that are named
VIDEO_BYTES = 24 * 2**20  # of sampled videos on the page
OFTEN = ("damaged", "samples", "copied")  # events that are not told one by one
CURVES = {  # panels of one metric, and whether it is noisy
    "gradient norm": ("grad_norm", True),
    "learning rate": ("lr", False),
    "samples per second": ("samples_per_s", True),
    "share of the time that waits for data": ("data_wait_share", True),
    "model FLOPs utilization": ("mfu", True),
    "goodput": ("goodput", False),
}
EMA_QUANTILE = "held_out/ema_loss_"


def write_report(config: RunConfig) -> None:
    """Write both below `train.out`; nothing where no step is done."""
    out = config.train.out
    lines = read_metrics(out / "metrics.jsonl")
    if not lines:
        return
    events = [event for event in read_events(out / "events.jsonl") if event["verb"] == "train"]
    publish(out / "loss.png", plot([loss_panel(lines)]))
    publish(out / "report.html", render_report(config, lines, events).encode())


def render_report(config: RunConfig, lines: Lines, events: Lines) -> str:
    """The page as a whole document."""
    out, knobs, panels = config.train.out, changed_knobs(config), curve_panels(lines)
    names = ", ".join(panel.title for panel in panels)
    sections = [
        section(
            "Curves", element("img", src=data_uri("image/png", plot(panels)), alt=f"Curves over the steps: {names}")
        ),
        section("Held-out videos", _held_out(lines)),
        section("Speed", pairs(describe_speed(lines, events))),
        *_videos(out),
        section("Starts and stops", _event_table(events)),
        section("Damaged samples", element("p", describe_damage(events))),
        section("Changed knobs", pairs(knobs) if knobs else element("p", "None.")),
    ]
    return document(f"Training of {out}", heading("A training run", str(out), summary(config, lines, events)), sections)


def summary(config: RunConfig, lines: Lines, events: Lines) -> list[str]:
    """How far the run came, and on what, in sentences."""
    few = min(FIRST_AND_LAST, len(lines))
    first, last = (mean(line["loss"] for line in some) for some in (lines[:few], lines[-few:]))
    starts = [event for event in events if event["event"] == "start"]
    return [
        f"{lines[-1]['step']:,} of {config.train.steps:,} steps are done.",
        f"The loss was {first:.4f} over the first {few} steps and {last:.4f} over the last.",
        *(f"{told[0].upper()}{told[1:]}." for told in (starts[-1].get("data", []) if starts else [])),
    ]


def _curve(lines: Lines, name: str, label: str, is_noisy: bool = False) -> list[Curve]:
    """The curve of a metric at the steps that tell it; none where no step does."""
    told = [line for line in lines if name in line]
    return [Curve(label, [line["step"] for line in told], [line[name] for line in told], is_noisy)] if told else []


def loss_panel(lines: Lines) -> Panel:
    """The loss, and that on held-out videos."""
    return Panel(
        "loss",
        [
            *_curve(lines, "loss", "training", is_noisy=True),
            *_curve(lines, "held_out/loss", "held out"),
            *_curve(lines, "held_out/ema_loss", "held out, averaged weights"),
        ],
    )


def curve_panels(lines: Lines) -> list[Panel]:
    """All that is drawn on the page; what no step tells is left out."""
    quantiles = sorted({name for line in lines for name in line if name.startswith(EMA_QUANTILE)})
    by_time = [one for name in quantiles for one in _curve(lines, name, name.removeprefix(EMA_QUANTILE))]
    panels = [Panel("held out by timestep, t1 has the least noise; averaged weights", by_time)]
    panels += [Panel(title, _curve(lines, name, title, is_noisy)) for title, (name, is_noisy) in CURVES.items()]
    return [loss_panel(lines), *(panel for panel in panels if panel.curves)]


def _held_out(lines: Lines) -> Html:
    """The last measurement: the mean and each quantile, of both weights."""
    measured = [line for line in lines if "held_out/loss" in line]
    if not measured:
        return element("p", "The loss was measured on none.")
    last = measured[-1]
    quantiles = sorted(name.removeprefix(EMA_QUANTILE) for name in last if name.startswith(EMA_QUANTILE))
    rows = [
        (weights, *(f"{last[key]:.4f}" for key in (name, *(f"{name}_{quantile}" for quantile in quantiles))))
        for weights, name in (("last", "held_out/loss"), ("averaged", "held_out/ema_loss"))
    ]
    return table((f"weights after step {last['step']:,}", "mean", *quantiles), rows)


def describe_speed(lines: Lines, events: Lines) -> Rows:
    """Medians over all steps, and what became of the time since the run first began."""
    last = lines[-1]
    stepping_s, waiting_s = (sum(line[name] for line in lines) for name in ("step_s", "data_wait_s"))
    begun = datetime.fromtimestamp(begun_s(events), timezone.utc)
    typical = {name: median(line[name] for line in lines if name in line) for name in last}
    return [
        ("step", f"{typical['step_s']:.3g} s"),
        ("throughput", f"{_whole(typical['samples_per_s'])} samples/s, {_whole(typical['tokens_per_s'])} tokens/s"),
        ("model FLOPs utilization", f"{typical['mfu']:.1%}" if "mfu" in typical else "not known of this device"),
        ("waiting for data", f"{waiting_s / stepping_s:.2%} of the steps' time"),
        (
            "goodput",
            f"{last['goodput']:.1%} of the time since {begun:%Y-%m-%d %H:%M:%S UTC} went into steps that count",
        ),
        ("memory of a worker", f"{last['host_bytes'] / 1e9:,.2f} GB at the most"),
        *([("memory of its GPU", f"{last['gpu_bytes'] / 1e9:,.2f} GB at the most")] if "gpu_bytes" in last else []),
    ]


def _whole(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def describe_damage(events: Lines) -> str:
    """Which samples could not be read."""
    times = Counter(event["key"] for event in events if event["event"] == "damaged")
    if not times:
        return "None."
    more = "" if len(times) <= MOST_DAMAGED else ", ..."
    return f"{len(times):,}, met {times.total():,} times: {', '.join([*times][:MOST_DAMAGED])}{more}."


def changed_knobs(config: RunConfig) -> list[tuple[str, str]]:
    """The knobs that are not at their defaults, by their dotted names."""
    now, default = (one.model_dump(mode="json") for one in (config, RunConfig()))
    return [
        (f"{section}.{name}", str(value))
        for section, knobs in now.items()
        for name, value in knobs.items()
        if value != default[section][name]
    ]


def _event_table(events: Lines) -> Html:
    told = [event for event in events if event["event"] not in OFTEN][-MOST_EVENTS:]
    known = ("time", "verb", "event", "data")
    rows = [
        (
            event["time"].partition(".")[0].replace("T", " "),
            event["event"],
            ", ".join(f"{name}: {value}" for name, value in event.items() if name not in known),
        )
        for event in told
    ]
    return table(("time, UTC", "event", "what is known of it"), rows)


def _videos(out: Path) -> list[Html]:
    """The latest videos that were sampled while training, as many as the page has room for."""
    steps = sorted((out / "samples").glob("step-*"))
    paths = sorted(steps[-1].glob("*.mp4")) if steps else []
    if not paths:
        return []
    prompts, shown, room = read_asked(out)["prompts"], [], VIDEO_BYTES
    for path in paths:
        room -= path.stat().st_size
        if room >= 0:
            player = video(path.read_bytes(), f"sample {path.stem} of {steps[-1].name}")
            caption = element("div", element("p", prompts[int(path.stem)], dir="auto"), class_="told")
            shown.append(element("article", player, caption))
    told = f"{len(shown)} of {len(paths)} of {steps[-1].name}, from the averaged weights; all are in {out / 'samples'}."
    return [section("Samples", element("p", told), element("div", *shown, class_="clips"))]
