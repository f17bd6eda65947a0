"""What DeepSpeed is told."""

from typing import Any, get_args

import pytest

from jobs.config import TrainConfig
from jobs.knobs import ZeroName
from jobs.training.zero import MAX_BUCKET_ELEMENTS, ZERO, deepspeed_config, is_offloaded

CPU = {"device": "cpu", "pin_memory": True}
FLAT = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
THREE = {"stage": 3, "reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000}
PRESETS: dict[str, tuple[str | None, dict[str, Any]]] = {  # what parts are added up in, and what is divided
    "zero0": (None, {"stage": 0, **FLAT}),
    "zero1": (None, {"stage": 1, **FLAT}),
    "zero2": ("fp32", {"stage": 2, **FLAT}),
    "zero3": ("fp32", THREE),
    "zero2-offload": ("fp32", {"stage": 2, "offload_optimizer": CPU, **FLAT}),
    "zero3-offload": ("fp32", {**THREE, "offload_optimizer": CPU, "offload_param": CPU}),
    "zero3-nvme": ("fp32", {**THREE, "offload_optimizer": CPU, "offload_param": CPU}),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", PRESETS)
def test_deepspeed_is_told_what_train_says(name: ZeroName, precision: str) -> None:
    settings = TrainConfig(zero=name, precision=precision, clip_grad_norm=0.5)  # pyright: ignore
    added_in, zero = PRESETS[name]
    assert deepspeed_config(settings, num_parameters=1000) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": added_in},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**63 - 1,
    }
    assert is_offloaded(settings) == ("offload_optimizer" in zero)


def test_every_preset_is_one_that_can_be_asked_for() -> None:
    assert set(PRESETS) == set(ZERO) == set(get_args(ZeroName))


def test_buckets_have_a_bound() -> None:
    zero = deepspeed_config(TrainConfig(zero="zero2"), num_parameters=10**10)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == MAX_BUCKET_ELEMENTS
