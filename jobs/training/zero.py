"""[train] as DeepSpeed wants it: one pure function, and ZeRO's stages by name."""

import sys
from typing import Any

from jobs.config import TrainConfig
from jobs.knobs import ZeroName

MAX_BUCKET_ELEMENTS = 200_000_000  # DeepSpeed allocates its buckets whole, so a small model gets small ones
CPU = {"device": "cpu", "pin_memory": True}

ZERO: dict[ZeroName, dict[str, Any]] = {  # what is divided among the ranks, and what leaves the GPU
    "zero0": {"stage": 0},  # nothing
    "zero1": {"stage": 1},  # master weights and optimizer state
    "zero2": {"stage": 2},  # gradients too
    "zero3": {"stage": 3},  # weights too
    "zero2-offload": {"stage": 2, "offload_optimizer": CPU},
    "zero3-offload": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
    "zero3-nvme": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},  # whose state is a file, mapped
}


def deepspeed_config(settings: TrainConfig, num_parameters: int) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` is given. Learning rates, batches and their weights are ours."""
    zero, bucket = ZERO[settings.zero], min(num_parameters, MAX_BUCKET_ELEMENTS)
    gathered = "stage3_prefetch_bucket_size" if zero["stage"] == 3 else "allgather_bucket_size"
    return {
        # Batches differ in size and samples in weight: the loss says what each counts, and DeepSpeed only adds up.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_grad_norm,
        "bf16": {"enabled": settings.precision == "bf16"},
        "fp16": {"enabled": settings.precision == "fp16"},
        # In 16 bits a sum over many ranks or parts would lose what the last ones add. Stages 0 and 1 have no float32 to
        # add parts up in.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32" if zero["stage"] >= 2 else None},
        "zero_optimization": {**zero, "reduce_bucket_size": bucket, gathered: bucket},
        "zero_allow_untested_optimizer": True,  # AdamW with an average of the weights is none that it knows
        "steps_per_print": sys.maxsize,
    }


def is_offloaded(settings: TrainConfig) -> bool:
    """Whether the optimizer's state is kept, and stepped on, in the CPU's memory."""
    return "offload_optimizer" in ZERO[settings.zero]
