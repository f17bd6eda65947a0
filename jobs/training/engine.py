"""DeepSpeed: one optimizer step over all ranks, among which weights, their average and the optimizer are divided."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.training import zero_state
from jobs.training.machine import find_tools
from jobs.training.optimizer import ema_decay, learning_rate, make_optimizer, parameter_groups
from jobs.training.zero import ZERO, deepspeed_config
from jobs.training.zero_state import Piece


class Engine:
    """A model under DeepSpeed ZeRO, on the device of this rank. torch.distributed is set up before."""

    def __init__(self, model: nn.Module, settings: TrainConfig) -> None:
        find_tools()
        import deepspeed

        deepspeed.init_distributed()
        self.settings = settings
        groups = parameter_groups(model, settings)
        offloaded = "offload_optimizer" in ZERO[settings.zero]
        optimizer = make_optimizer(groups, settings, on_cpu=offloaded, on_gpu=torch.cuda.is_available())
        # By the parameter, which stays the same object whatever DeepSpeed does with its memory.
        self._names = {one: name for name, one in model.named_parameters() if one.requires_grad}
        self.shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        num_parameters = sum(parameter.numel() for parameter in self._names)
        initialize: Any = deepspeed.initialize  # its annotations do not admit what it documents
        self._deepspeed, *_ = initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(settings, num_parameters)
        )
        zero_state.begin(self._deepspeed)
        self.device = torch.device(self._deepspeed.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._deepspeed(*args, **kwargs)

    @property
    def model(self) -> Any:
        """The model itself, in the precision it is trained in; under ZeRO-3 its weights are elsewhere."""
        return self._deepspeed.module

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradient of a loss to those since the last step; with the last one all are reduced over the ranks."""
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        self._deepspeed.backward(loss)

    def step(self, step: int) -> float:
        """Clip, update, average, with the knobs of `step`. Returns the norm of the gradient."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(self.settings, step)
            group["ema_decay"] = ema_decay(self.settings, step)
        norm = self._whole_norm() if zero_state.base_optimizer(self._deepspeed) is self._deepspeed.optimizer else None
        self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm()) if norm is None else norm

    def _whole_norm(self) -> float:
        """Of gradients that every rank has whole, which DeepSpeed clips without telling their norm."""
        return float(torch.nn.utils.get_total_norm([one.grad for one in self._names if one.grad is not None]))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While the block runs, the model computes with the average of its weights; entered by every rank.

        Nothing is gathered: each rank exchanges its own part, and weights follow as after a step.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        zero_state.exchange_average(self._deepspeed)
        zero_state.refresh(self._deepspeed)

    def pieces(self) -> Iterator[Piece]:
        """What this rank holds of each trained parameter and of its optimizer state, to be read and written."""
        return zero_state.pieces(self._deepspeed, self._names)

    def untrained(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers, whole, on the CPU; called by every rank."""
        return zero_state.untrained(self.model)

    @property
    def counters(self) -> dict[str, Any]:
        """What else belongs to the state: updates made, and float16's loss scale."""
        scale = zero_state.loss_scale(self._deepspeed)
        return {"updates": zero_state.base_optimizer(self._deepspeed).steps, "loss_scale": scale}

    def restored(self, counters: dict[str, Any]) -> None:
        """After all pieces were written to: take them over, with the counters that belong to them; by every rank."""
        zero_state.base_optimizer(self._deepspeed).set_steps(counters["updates"])
        zero_state.set_loss_scale(self._deepspeed, counters["loss_scale"])
        zero_state.refresh(self._deepspeed)
