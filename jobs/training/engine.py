"""DeepSpeed: one optimizer step over all ranks, among which weights, their average and the optimizer are divided."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.training import zero_state
from jobs.training.machine import find_tools, free_operators
from jobs.training.optimizer import ema_decay, learning_rate, make_optimizer, parameter_groups
from jobs.training.zero import deepspeed_config, is_offloaded
from jobs.training.zero_state import Piece


class Engine:
    """A model under DeepSpeed ZeRO, on the device of this rank. torch.distributed is set up before."""

    def __init__(self, model: nn.Module, settings: TrainConfig) -> None:
        find_tools()
        free_operators()
        import deepspeed

        deepspeed.init_distributed()
        self.settings = settings
        groups = parameter_groups(model, settings)
        optimizer = make_optimizer(groups, settings, is_offloaded(settings), on_gpu=torch.cuda.is_available())
        self._untrained = zero_state.untrained(model) if dist.get_rank() == 0 else {}
        # By the parameter, which stays the same object whatever DeepSpeed does with its memory.
        self._names = {one: name for name, one in model.named_parameters() if one.requires_grad}
        self.shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        num_parameters = sum(parameter.numel() for parameter in self._names)
        initialize: Any = deepspeed.initialize  # its annotations do not admit what it documents
        self._deepspeed, *_ = initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(settings, num_parameters)
        )
        zero_state.begin(self._deepspeed, settings.nvme if settings.zero == "zero3-nvme" else None)
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
        """Clip, update, average, with the knobs of `step`. Returns the norm of the gradient; infinite where it was no
        number, or too large for float16: then nothing was updated."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(self.settings, step)
            group["ema_decay"] = ema_decay(self.settings, step)
        return zero_state.step(self._deepspeed)

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
        """Frozen parameters and buffers, whole, as the model was built with them; none on ranks other than 0."""
        return self._untrained

    def set_untrained(self, tensors: Mapping[str, Tensor]) -> None:
        """Have the frozen parameters and buffers of an earlier run; called by every rank, with all of them."""
        zero_state.set_untrained(self.model, tensors)
        self._untrained = {name: tensors[name] for name in self._untrained}

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
