"""How much a step did in its time: samples, tokens and arithmetic, beside what the GPUs could have done."""

import re
import resource
import sys
from typing import NamedTuple

import torch

from models.dit.flops import mfu, num_tokens, training_flops
from models.dit.stdit3 import STDiT3Config
from pipeline.batch_reader import Batch

# Dense teraFLOP/s in 16 bits and in float32 (torch's default, without TF32) by the words in a GPU's name, as the vendor
# gives them; the first that matches counts.
PEAK_TFLOPS = {
    "B200": (2250, 75),
    "GH200": (989, 67),
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "H800": (989, 67),
    "H20": (148, 44),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A10G": (70, 31.5),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    "4090": (165, 82.6),
    "3090": (71, 35.6),
}
RSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of a process's peak memory


class Work(NamedTuple):
    """What a rank did in a step, or all of them."""

    samples: float  # that count in the loss
    tokens: float
    flops: float  # of the model, forward and backward, whatever is computed twice
    data_wait_s: float


def work_of(config: STDiT3Config, batch: Batch, data_wait_s: float) -> Work:
    """A rank's share of a step -> its work; fillers and damaged samples are none."""
    samples = int((batch.weights > 0).sum())
    _, channels, frames, height, width = batch.latents.shape
    shape = (samples, channels, frames, height, width)
    return Work(samples, num_tokens(config, shape), training_flops(config, shape, batch.text.shape[1]), data_wait_s)


def rates(work: Work, ranks: int, step_s: float, peak_flops: float | None) -> dict[str, float]:
    """The work of all ranks in a step -> metrics; MFU only where the peak of a GPU is known."""
    wait_s = work.data_wait_s / ranks
    return {
        "step_s": step_s,
        "data_wait_s": wait_s,
        "data_wait_share": wait_s / step_s,
        "samples_per_s": work.samples / step_s,
        "tokens_per_s": work.tokens / step_s,
        **({"mfu": mfu(work.flops, step_s, ranks * peak_flops)} if peak_flops else {}),
    }


def peak_flops(gpu: str, precision: str) -> float | None:
    """FLOP/s of a GPU by its name; None where it is not known."""
    words = set(re.split("[ -]", gpu))
    half, full = next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), (None, None))
    peak = full if precision == "fp32" else half
    return peak and 1e12 * peak


def peak_here(precision: str) -> float | None:
    """That of the GPU of this process; None on a CPU."""
    return peak_flops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else None


def memory() -> dict[str, float]:
    """The most memory that this process has used so far, on the host and on its GPU if it has one."""
    used: dict[str, float] = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_BYTES}
    if torch.cuda.is_available():
        used["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return used
