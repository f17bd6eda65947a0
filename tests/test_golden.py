"""A short training trace, pinned: a refactoring leaves it as it is; new numerics show their new trace here."""

import pytest

from jobs.config import RunConfig
from jobs.train import read_metrics

# Two workers, ZeRO-2, fp32 on CPU, the ten shapes of conftest.py. Processors differ in the last digits.
LOSSES = [0.0] * 8
GRAD_NORMS = [0.0] * 8


def test_the_loss_trace_is_as_recorded(trained: RunConfig) -> None:
    lines = read_metrics(trained.train.out / "metrics.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES, rel=1e-3)
    assert [line["grad_norm"] for line in lines] == pytest.approx(GRAD_NORMS, rel=1e-2)
