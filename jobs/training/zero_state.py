"""Where DeepSpeed keeps what is trained: the piece of each parameter that this rank holds, under every stage of ZeRO.

All that is known here of DeepSpeed's inside is in this file. A stage keeps the float32 master weights as the parameters
themselves (stage 0 in float32), as a copy of each (stage 0 in 16 bits), as this rank's part of all parameters laid one
behind the other (stages 1 and 2), or of each by itself (stage 3). The optimizer's state lies as they do.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from jobs.training.optimizer import STATES, Averaged

MASTER = "master"


class Piece(NamedTuple):
    """A stretch of one parameter, flattened: its master weights and its optimizer state, to be read and written."""

    name: str  # of the parameter
    start: int  # of its first element in the parameter
    tensors: dict[str, Tensor]  # "master" and STATES, each (n,) float32, where they are used
    is_shared: bool  # every rank holds it


def base_optimizer(engine: Any) -> Averaged:
    """The optimizer that was given to DeepSpeed, below what it wraps around it."""
    return engine.optimizer if isinstance(engine.optimizer, Averaged) else engine.optimizer.optimizer


def master_weights(engine: Any) -> list[Tensor]:
    """The float32 tensors of this rank that the optimizer steps on."""
    wrapper = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return list(wrapper.fp32_partitioned_groups_flat)
    if engine.zero_optimization_stage() > 0:
        return list(wrapper.single_partition_of_fp32_groups)
    return [master for group in base_optimizer(engine).param_groups for master in group["params"]]


def begin(engine: Any, folder: Path | None = None) -> None:
    """Give the optimizer its state before the first step; with a `folder`, on its disk."""
    base_optimizer(engine).begin(master_weights(engine), folder)
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def pieces(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[Piece]:
    """What this rank holds of each trained parameter, in the order of `names`."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        yield from _whole(engine, names)
    for parameter, name in names.items():
        if stage == 3:
            yield from _partition(parameter, name)
        elif stage > 0 and parameter._hp_mapping is not None:  # pyright: ignore
            mapping: Any = parameter._hp_mapping  # pyright: ignore
            tensors = {MASTER: mapping.hp_fragment.detach(), **{one: mapping.get_hp_fragment(one) for one in STATES}}
            yield Piece(name, mapping.lp_fragment_address.start, tensors, False)


def _whole(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[Piece]:
    """Stage 0: every rank holds all."""
    optimizer = base_optimizer(engine)
    trained: Any = optimizer.param_groups if engine.optimizer is optimizer else None
    groups = [group["params"] for group in trained] if trained else engine.optimizer.fp16_groups
    masters = {
        parameter: master
        for own, kept in zip(groups, optimizer.param_groups, strict=True)
        for parameter, master in zip(own, kept["params"], strict=True)
    }
    for parameter, name in names.items():
        kept = {
            MASTER: masters[parameter].detach(),
            **{one: optimizer.state[masters[parameter]][one] for one in STATES},
        }
        yield Piece(name, 0, {one: _flat(tensor) for one, tensor in kept.items()}, True)


def _partition(parameter: Any, name: str) -> Iterator[Piece]:
    """Stage 3: an even part of each parameter; the last ones are filled up, or wholly so."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    part = parameter.ds_tensor.ds_numel
    start = part * parameter._z3_optimizer._get_param_partition_rank(parameter)
    length = min(part, parameter.ds_numel - start)
    if length > 0:
        kept: dict[str, Any] = {one: safe_get_local_optimizer_state(parameter, one) for one in STATES}
        kept[MASTER] = safe_get_local_fp32_param(parameter).detach()  # pyright: ignore
        yield Piece(name, start, {one: tensor[:length] for one, tensor in kept.items()}, False)


def refresh(engine: Any) -> None:
    """Make the weights that the model computes with from the master weights; called by every rank."""
    wrapper = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 3:
        wrapper._partition_all_parameters()  # else small ones, which stay whole, keep what they are
        for number in range(len(wrapper.fp32_partitioned_groups_flat)):
            wrapper._reassign_or_swap_out_partitioned_parameters(number)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
        wrapper.invalidate_secondary_tensor()
    elif stage > 0:
        wrapper.update_lp_params()
    elif wrapper is not base_optimizer(engine):
        for computed, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for parameter, master in zip(computed, masters, strict=True):
                parameter.data.copy_(master)


def exchange_average(engine: Any) -> None:
    """Exchange master weights and their average: called twice, nothing has changed."""
    optimizer = base_optimizer(engine)
    for master in master_weights(engine):
        average = optimizer.state[master]["ema"]
        kept = master.detach().clone()
        master.data.copy_(average)
        average.copy_(kept)


def step(engine: Any) -> float:
    """Clip and update -> the norm of the gradient before; infinite where it was no number and nothing was updated."""
    wrapper = engine.optimizer
    if wrapper is base_optimizer(engine):  # clips without telling the norm, and steps on anything
        gradients = [one.grad for group in wrapper.param_groups for one in group["params"] if one.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            engine.zero_grad()
            return math.inf
        engine.step()
        return norm
    engine.step()
    return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf


def untrained(model: nn.Module) -> dict[str, Tensor]:
    """What the optimizer does not hold of a model: frozen parameters and buffers, copied to the CPU.

    To be read before DeepSpeed has rounded and divided them.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = {name: tensor for name, tensor in model.state_dict().items() if name not in trained}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}


def set_untrained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `untrained` told, whole on every rank; called by every rank."""
    from deepspeed.runtime.zero import GatheredParameters

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with GatheredParameters(frozen, modifier_rank=0):
        held = model.state_dict()
        for name, tensor in tensors.items():
            held[name].copy_(tensor)


def loss_scale(engine: Any) -> dict[str, Any]:
    """Where float16's loss scale stands, as plain values; empty for other precisions."""
    values = vars(engine.optimizer.loss_scaler) if engine.fp16_enabled() else {}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float))}


def set_loss_scale(engine: Any, values: dict[str, Any]) -> None:
    """Restore what `loss_scale` told."""
    if engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(values)


def _flat(tensor: Tensor) -> Tensor:
    """A tensor of any shape as one of one axis, over the same memory."""
    return rearrange(tensor, "... -> (...)")
