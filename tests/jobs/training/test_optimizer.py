"""The knobs of the optimizer by step, and its average of the weights."""

from jobs.config import TrainConfig
from jobs.training.optimizer import learning_rate


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    settings = TrainConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(TrainConfig(lr=1.0, warmup_steps=0), 0) == 1.0
