"""[train] as DeepSpeed wants it: one pure function, and ZeRO's stages by name."""

import sys
from typing import Any

from jobs.config import ConfigError, TrainConfig, ZeroName

MAX_BUCKET_ELEMENTS = 200_000_000  # DeepSpeed allocates its buckets whole, so a small model gets small ones
CPU = {"device": "cpu", "pin_memory": True}

ZERO: dict[ZeroName, dict[str, Any]] = {  # what is divided among the ranks, and what leaves the GPU
    "zero0": {"stage": 0},  # nothing
    "zero1": {"stage": 1},  # master weights and optimizer state
    "zero2": {"stage": 2},  # gradients too
    "zero3": {"stage": 3},  # weights too
    "zero2-offload": {"stage": 2, "offload_optimizer": CPU},
    "zero3-offload": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
    "zero3-nvme": {"stage": 3, "offload_optimizer": {"device": "nvme"}, "offload_param": CPU},
}


def deepspeed_config(settings: TrainConfig, num_parameters: int) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` is given. Learning rates, batches and their weights are ours."""
    return {
        # Batches differ in size and samples in weight: the loss says what each counts, and DeepSpeed only adds up.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_grad_norm,
        "bf16": {"enabled": settings.precision == "bf16"},
        "fp16": {"enabled": settings.precision == "fp16"},
        "zero_optimization": _zero(settings, min(num_parameters, MAX_BUCKET_ELEMENTS)),
        "zero_allow_untested_optimizer": True,  # AdamW with an average of the weights is none that it knows
        "steps_per_print": sys.maxsize,
    }


def _zero(settings: TrainConfig, bucket: int) -> dict[str, Any]:
    zero = {**ZERO[settings.zero], "reduce_bucket_size": bucket}
    if zero["stage"] == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
    else:
        zero["allgather_bucket_size"] = bucket
    if settings.zero == "zero3-nvme":
        if settings.nvme is None:
            raise ConfigError(
                "train.nvme: not given, and train.zero=zero3-nvme keeps the optimizer there; name a folder"
            )
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": str(settings.nvme)}
    return zero
