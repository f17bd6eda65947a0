"""The engine does under every preset what a plain loop with AdamW, clipping and an average does on one process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from jobs.config import TrainConfig
from jobs.knobs import ZeroName
from jobs.training import checkpoint
from jobs.training.engine import Engine
from jobs.training.optimizer import ema_decay, learning_rate
from models.dit import build_dit
from models.dit.stdit3 import STDiT3
from tests.ranks import run_ranks

SETTINGS = TrainConfig(
    precision="fp32",
    steps=6,
    lr=1e-2,
    warmup_steps=2,
    lr_schedule="cosine",
    lr_end=0.1,
    lr_scales={"fps_embedder.*": 0.0, "temporal_blocks.*": 0.5},
    betas=(0.8, 0.95),
    eps=1e-4,
    weight_decay=0.1,
    clip_grad_norm=0.1,
    ema_decay=0.2,
    accumulate=2,
    activation_checkpointing=True,
)
STOP = 3  # steps before the model is looked at, saved and resumed
PRESETS: list[ZeroName] = ["zero0", "zero2", "zero3"]
SLOW_PRESETS: list[ZeroName] = ["zero1", "zero2-offload", "zero3-offload", "zero3-nvme"]
BATCH = 12


class Seen(NamedTuple):
    """What is compared of a model in training."""

    states: dict[str, dict[str, Tensor]]  # each flat, by state and parameter
    answer: Tensor
    averaged: Tensor  # the answer of the averaged weights


def make_model() -> STDiT3:
    torch.manual_seed(5)
    shape = {"depth": 1, "hidden_size": 32, "num_heads": 2, "in_channels": 2, "caption_channels": 8}
    model = build_dit("stdit3-tiny", **shape, max_text_tokens=3)
    with torch.no_grad():  # the layers that start at zero would hide what lies before them
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.checkpoint_blocks = SETTINGS.activation_checkpointing
    return model


def loss_of(model: Callable[..., Tensor], null: Tensor, step: int, rows: slice) -> Tensor:
    """The loss of some samples of a step's batch; all samples weigh the same."""
    drawn = torch.Generator().manual_seed(step)
    latents, target = (torch.randn(BATCH, 2, 5, 4, 4, generator=drawn)[rows] for _ in range(2))
    timestep = 1000 * torch.rand(BATCH, generator=drawn)[rows]
    text = torch.randn(BATCH, 3, 8, generator=drawn)
    text[::3] = null.to(text)
    size, conditions, device = len(latents), {"fps": 24.0, "height": 64.0, "width": 64.0}, null.device
    answer = model(
        latents.to(device),
        timestep.to(device),
        text[rows].to(device),
        torch.ones(size, 3, dtype=torch.bool, device=device),
        **{name: torch.full((size,), value, device=device) for name, value in conditions.items()},
    ).cpu()
    return (answer[:, :2] - target).square().sum() / target[0].numel() / BATCH


def plain_run(steps: int) -> tuple[STDiT3, Seen]:
    """The reference."""
    model = make_model()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad and "fps_embedder" not in name}
    scales = {name: 0.5 if name.startswith("temporal_blocks.") else 1.0 for name in trained}
    groups = [{"params": [one], "weight_decay": 0.1 if one.ndim > 1 else 0.0} for one in trained.values()]
    adam = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-4)
    average = {name: one.detach().clone() for name, one in trained.items()}
    for step in range(steps):
        loss_of(model, model.null_text(3), step, slice(None)).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 0.1)
        for group, scale in zip(adam.param_groups, scales.values()):
            group["lr"] = scale * learning_rate(SETTINGS, step)
        adam.step()
        model.zero_grad()
        for name, one in trained.items():
            average[name].lerp_(one.detach(), 1.0 - ema_decay(SETTINGS, step))
    own = {name: adam.state[one] for name, one in trained.items()}
    states = {
        "master": {name: one.detach().flatten() for name, one in trained.items()},
        "ema": {name: one.flatten() for name, one in average.items()},
        **{state: {name: own[name][state].flatten() for name in own} for state in ("exp_avg", "exp_avg_sq")},
    }
    kept = {name: one.detach().clone() for name, one in trained.items()}
    answer = answer_of(model, model)
    model.load_state_dict(average, strict=False)
    averaged = answer_of(model, model)
    model.load_state_dict(kept, strict=False)
    return model, Seen(states, answer, averaged)


def answer_of(call: Callable[..., Tensor], model: STDiT3) -> Tensor:
    with torch.no_grad():
        return loss_of(call, model.null_text(3), 99, slice(None))


def train_some(engine: Engine, steps: Iterator[int] | range) -> None:
    """Steps on this rank's share of each batch, in two parts."""
    rank, world = dist.get_rank(), dist.get_world_size()
    share = BATCH // world
    for step in steps:
        for part in range(2):
            rows = slice(rank * share + part * share // 2, rank * share + (part + 1) * share // 2)
            engine.backward(world * loss_of(engine, engine.model.null_text(3), step, rows), is_last=part == 1)
        assert engine.step(step) > 0.1  # so that clipping does something


def look(engine: Engine) -> Seen:
    """The same of an engine, whole on every rank; nothing of it is changed by being looked at."""
    before, pieces = answer_of(engine, engine.model), held(engine)
    with engine.averaged():
        averaged = answer_of(engine, engine.model)
    assert torch.equal(answer_of(engine, engine.model), before)
    assert all(torch.equal(one, other) for one, other in zip(held(engine).values(), pieces.values(), strict=True))
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, pieces)
    joined: dict[str, dict[str, dict[int, Tensor]]] = {}
    for (state, name, start), tensor in [item for one in everywhere for item in one.items()]:
        joined.setdefault(state, {}).setdefault(name, {})[start] = tensor
    states = {
        state: {name: torch.cat([found[start] for start in sorted(found)]) for name, found in of_state.items()}
        for state, of_state in joined.items()
    }
    return Seen(states, before, averaged)


def held(engine: Engine) -> dict[tuple[str, str, int], Tensor]:
    return {
        (state, piece.name, piece.start): tensor.clone()
        for piece in engine.pieces()
        for state, tensor in piece.tensors.items()
    }


def train_and_save(presets: list[ZeroName], folder: Path) -> list[tuple[Seen, Seen, Tensor]]:
    """Under each preset: what is seen on the way, a checkpoint, what is seen at the end, and with other frozen ones."""
    seen = []
    for preset in presets:
        engine = Engine(make_model(), SETTINGS.model_copy(update={"zero": preset, "nvme": folder}))
        train_some(engine, range(STOP))
        halfway = look(engine)
        checkpoint.save(engine, folder / preset, STOP, {})
        train_some(engine, range(STOP, SETTINGS.steps))
        engine.set_untrained({name: 2 * tensor for name, tensor in make_untrained().items()})
        twice = answer_of(engine, engine.model)
        engine.set_untrained(make_untrained())
        seen.append((halfway, look(engine), twice))
    return seen


def resume(preset: ZeroName, folder: Path) -> tuple[Seen, Seen]:
    """From a checkpoint of others: what is seen at once, and at the end."""
    engine = Engine(make_model(), SETTINGS.model_copy(update={"zero": preset, "nvme": folder.parent}))
    assert checkpoint.load(engine, folder / f"step-{STOP:08d}") == STOP
    halfway = look(engine)
    train_some(engine, range(STOP, SETTINGS.steps))
    return halfway, look(engine)


def make_untrained() -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in make_model().state_dict().items()
        if name.startswith(("rope", "fps_embedder")) or name == "y_embedder.y_embedding"
    }


def assert_alike(found: Seen, wanted: Seen) -> None:
    assert found.states.keys() == wanted.states.keys()
    for state, of_state in wanted.states.items():
        assert found.states[state].keys() == of_state.keys()
        for name, tensor in of_state.items():
            scale = tensor.abs().max().item()
            torch.testing.assert_close(found.states[state][name], tensor, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(found.answer, wanted.answer)
    torch.testing.assert_close(found.averaged, wanted.averaged)


@pytest.fixture(scope="module")
def plain() -> tuple[Seen, Seen, Tensor]:
    """The reference halfway, at the end, and the answer of its weights with frozen parameters and buffers doubled."""
    (_, halfway), (model, end) = plain_run(STOP), plain_run(SETTINGS.steps)
    model.load_state_dict({name: 2 * tensor for name, tensor in make_untrained().items()}, strict=False)
    return halfway, end, answer_of(model, model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Seen, Seen, Tensor]]]:
    """Two ranks under each preset, and their checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_ranks(2, train_and_save, PRESETS, folder)[0]


def test_presets_train_as_a_plain_loop(plain: tuple, saved: tuple) -> None:
    assert len(saved[1]) == len(PRESETS)
    for halfway, end, twice in saved[1]:
        assert_alike(halfway, plain[0])
        assert_alike(end, plain[1])
        torch.testing.assert_close(twice, plain[2])
    assert not torch.allclose(plain[1].answer, plain[1].averaged) and not torch.allclose(plain[1].answer, plain[2])


@pytest.mark.parametrize(("ranks", "preset", "before"), [(3, "zero3", "zero2"), (1, "zero0", "zero3")])
def test_average_and_moments_go_on_at_another_world_size_and_stage(
    plain: tuple, saved: tuple, ranks: int, preset: ZeroName, before: ZeroName
) -> None:
    for halfway, end in run_ranks(ranks, resume, preset, saved[0] / before):
        for state, of_state in saved[1][PRESETS.index(before)][0].states.items():
            assert all(torch.equal(halfway.states[state][name], tensor) for name, tensor in of_state.items())
        assert_alike(end, plain[1])


@pytest.mark.slow
def test_all_others_train_as_a_plain_loop_and_keep_nothing_behind(plain: tuple, tmp_path: Path) -> None:
    for halfway, end, twice in run_ranks(2, train_and_save, SLOW_PRESETS, tmp_path)[0]:
        assert_alike(halfway, plain[0])
        assert_alike(end, plain[1])
        torch.testing.assert_close(twice, plain[2])
    assert {path.name for path in tmp_path.iterdir()} == set(SLOW_PRESETS)  # the files of zero3-nvme are gone


def train_in_bf16(presets: list[ZeroName], folder: Path) -> None:
    """The average is that of the float32 master weights, and what is frozen keeps its float32."""
    for preset in presets:
        engine = Engine(make_model(), SETTINGS.model_copy(update={"zero": preset, "precision": "bf16", "nvme": folder}))
        average = {key: tensor for key, tensor in held(engine).items() if key[0] == "master"}
        for step in range(STOP):
            train_some(engine, range(step, step + 1))
            for key, tensor in held(engine).items():
                if key[0] == "master":
                    average[key].lerp_(tensor, 1.0 - ema_decay(SETTINGS, step))
        now = held(engine)
        for (_, name, start), wanted in average.items():
            assert now["ema", name, start].dtype == torch.float32
            torch.testing.assert_close(now["ema", name, start], wanted)
        look(engine)
        if dist.get_rank() == 0:
            assert all(torch.equal(engine.untrained()[name], one) for name, one in make_untrained().items())
        assert engine.model.rope.freqs.dtype == torch.float32


def test_in_bf16_average_and_frozen_parameters_are_float32(tmp_path: Path) -> None:
    run_ranks(2, train_in_bf16, ["zero2", "zero3"], tmp_path)


@pytest.mark.slow
def test_in_bf16_so_they_are_under_every_preset(tmp_path: Path) -> None:
    run_ranks(2, train_in_bf16, ["zero0", "zero1", "zero2-offload", "zero3-offload", "zero3-nvme"], tmp_path)


def train_in_half(presets: list[ZeroName], folder: Path) -> None:
    """float16 goes on from a checkpoint as if it had not stopped, loss scale and all."""
    for preset in presets:
        settings = SETTINGS.model_copy(update={"zero": preset, "precision": "fp16"})
        device = torch.device("cuda")
        engine = Engine(make_model().to(device), settings)
        train_some(engine, range(STOP))
        assert engine.counters["loss_scale"]["cur_scale"] > 1
        saved = checkpoint.save(engine, folder / preset, STOP, {})
        train_some(engine, range(STOP, SETTINGS.steps))
        again = Engine(make_model().to(device), settings)
        checkpoint.load(again, saved)
        train_some(again, range(STOP, SETTINGS.steps))
        assert engine.counters == again.counters
        assert all(torch.equal(one, held(again)[key]) for key, one in held(engine).items())


def step_on_nothing(presets: list[ZeroName]) -> list[tuple[float, int, bool]]:
    """The norm told of a gradient that is no number, the updates made, and whether the weights are as before."""
    told = []
    for preset in presets:
        engine = Engine(make_model(), SETTINGS.model_copy(update={"zero": preset}))
        train_some(engine, range(1))
        before = held(engine)
        loss = loss_of(engine, engine.model.null_text(3), 0, slice(0, 2))
        engine.backward(loss * float("nan"), is_last=True)
        norm = engine.step(1)
        same = all(torch.equal(tensor, before[key]) for key, tensor in held(engine).items())
        train_some(engine, range(2, 3))
        told.append((norm, engine.counters["updates"], same))
    return told


@pytest.mark.parametrize("presets", [PRESETS, pytest.param(["zero1"], marks=pytest.mark.slow)])
def test_a_gradient_that_is_no_number_updates_nothing(presets: list[ZeroName]) -> None:
    assert run_ranks(2, step_on_nothing, presets)[0] == [(float("inf"), 2, True)] * len(presets)
