"""`run`: every step in order. Each skips what is done, so running again goes on where it stopped."""

from collections.abc import Callable

from jobs.config import RunConfig
from jobs.configured import describe_configured_text
from jobs.encode import encode
from jobs.enter import check_all
from jobs.placement import CHECKS
from jobs.plan import plan
from jobs.recorded import recorded
from jobs.sample import sample
from jobs.scan import scan
from jobs.text import text
from jobs.train import train
from jobs.training.initial_model import check_init
from pipeline.quarantine import read_quarantine

STEPS: dict[str, Callable[[RunConfig], int]] = {
    "scan": scan,
    "plan": plan,
    "encode": encode,
    "text": text,
    "train": train,
    "sample": sample,
}


def run(config: RunConfig) -> int:
    """Scan, plan, encode, text, train, sample. Returns how many inputs are in the quarantine."""
    describe_configured_text(config)  # what later steps need is looked for before the first begins
    check_init(config)
    check_all(config, [verb for verb in STEPS if verb in CHECKS])
    for verb, step in STEPS.items():
        recorded(verb, step, config)
    return len(read_quarantine(config.cache))
