"""How much a step did: only what counts is counted, and against the right GPU."""

import pytest
import torch

from jobs.training.throughput import Work, memory, peak_flops, rates, work_of
from models.dit import DITS
from models.dit.flops import training_flops
from tests.jobs.training.test_losses import make_batch

CONFIG = DITS["stdit3-tiny"]


def test_fillers_are_no_work() -> None:
    batch = make_batch(torch.zeros(4, 16, 5, 8, 8), 17, [5] * 4)
    batch.weights[2:] = 0
    work = work_of(CONFIG, batch, data_wait_s=0.5)
    assert work == Work(2, 2 * 5 * 4 * 4, training_flops(CONFIG, (2, 16, 5, 8, 8), batch.text.shape[1]), 0.5)


def test_rates_are_of_all_ranks_in_the_time_of_one() -> None:
    told = rates(Work(samples=8, tokens=800, flops=6e12, data_wait_s=1.0), ranks=2, step_s=4.0, peak_flops=3e12)
    assert told == {
        **{"step_s": 4.0, "data_wait_s": 0.5, "data_wait_share": 0.125},
        **{"samples_per_s": 2.0, "tokens_per_s": 200.0, "mfu": 0.25},
    }
    assert "mfu" not in rates(Work(1, 1, 1, 0), 1, 1.0, None)


@pytest.mark.parametrize(
    ("gpu", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA H20", 148, 44),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10G", 70, 31.5),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
    ],
)
def test_the_peak_is_that_of_the_gpu_and_the_precision(gpu: str, bf16: float, fp32: float) -> None:
    peaks = [peak_flops(gpu, precision) for precision in ("bf16", "fp16", "fp32")]
    assert peaks == pytest.approx([1e12 * bf16, 1e12 * bf16, 1e12 * fp32])


def test_a_gpu_that_is_not_known_has_no_peak() -> None:
    assert peak_flops("NVIDIA L40", "bf16") is None and peak_flops("Some GPU of 2030", "fp32") is None


def test_memory_is_that_of_this_process_at_its_most() -> None:
    before = memory()["host_bytes"]
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert 64 << 20 <= memory()["host_bytes"] < 1 << 40 and memory()["host_bytes"] >= before
    del held
