"""A short training trace, pinned: a refactoring leaves it as it is; new numerics show their new trace here."""

import pytest

from jobs.config import RunConfig
from jobs.metrics import read_metrics

# Two workers, ZeRO-2, fp32 on CPU, the ten shapes of conftest.py. Processors differ in the last digits.
LOSSES = [2.4844, 2.38261, 2.29701, 2.22068, 1.75578, 2.30332, 1.82869, 1.59104]
GRAD_NORMS = [2.9146, 3.3331, 1.7456, 2.1711, 1.5133, 1.0666, 0.834, 0.6231]


def test_the_loss_trace_is_as_recorded(trained: RunConfig) -> None:
    lines = read_metrics(trained.train.out / "metrics.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES, rel=1e-3)
    assert [line["grad_norm"] for line in lines] == pytest.approx(GRAD_NORMS, rel=1e-2)
