"""A short training trace, pinned: a refactoring leaves it as it is; new numerics show their new trace here."""

import pytest

from jobs.config import RunConfig
from jobs.training.metrics import read_metrics

# Two workers, ZeRO-2, fp32 on CPU, the ten shapes of conftest.py. Processors differ in the last digits.
LOSSES = [2.80503, 2.3131, 2.09541, 2.18217, 1.97094, 1.88981, 2.18826, 1.80193]
GRAD_NORMS = [2.8827, 2.8589, 2.201, 1.4038, 2.5097, 0.9603, 0.7564, 0.8661]


def test_the_loss_trace_is_as_recorded(trained: RunConfig) -> None:
    lines = read_metrics(trained.train.out / "metrics.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES, rel=1e-3)
    assert [line["grad_norm"] for line in lines] == pytest.approx(GRAD_NORMS, rel=1e-2)
