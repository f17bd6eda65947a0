"""What DeepSpeed is told."""

from jobs.config import TrainConfig
from jobs.training.zero import deepspeed_config


def test_deepspeed_is_told_what_train_says() -> None:
    settings = TrainConfig(zero="zero2", precision="bf16", clip_grad_norm=0.5)
    assert deepspeed_config(settings, num_parameters=1000) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**63 - 1,
    }
