"""`train`: cached latents -> a trained DiT. `train_worker` is the loop; read it top to bottom."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import launch, torchrun
from cluster.notices import Notice
from jobs.config import RunConfig, TrainConfig
from jobs.configured import configured_recipe, describe_part
from jobs.events import Events, telling
from jobs.export import export_checkpoint
from jobs.progress import progress, say
from jobs.training import checkpoint, committed
from jobs.training.copies import Keeper, fetch_newest
from jobs.training.engine import Engine
from jobs.training.held_out import Evaluation, describe_held_out
from jobs.training.initial_model import build_model, check_groups, check_init, describe_run
from jobs.training.losses import Part, compute_losses, draw_ahead, null_caption
from jobs.training.machine import refuse_impossible
from jobs.training.metrics import Metrics, following, read_metrics
from jobs.training.optimizer import learning_rate
from jobs.training.report import write_report
from jobs.training.run_record import committed_step, record_run, refuse_other_run, tell_begin
from jobs.training.samples import encode_asked, write_samples
from jobs.training.stopping import EXIT_CODE, agree, agree_to_stop, leave_stopped
from jobs.training.stretches import begin_following, open_first, stretches
from jobs.training.throughput import Work, memory, peak_here, rates, work_of
from jobs.training.workers import ask_for_workers, tell_failures, tell_waiting
from models.diffusion.draws import Null
from pipeline.errors import Refused
from pipeline.loader import load_batches
from pipeline.scratch import scratch_folder
from pipeline.shard_cache import ShardCache


def train(config: RunConfig) -> int:
    """Train on the cache until `train.steps`, from the last committed checkpoint if there is one.

    Where torchrun has started this process it is one of the ranks; otherwise these are started through Ray Train.
    """
    if torchrun.is_rank():
        _be_a_rank(config)
    elif argument := _begin(config):
        _finish(config, _run_on_ray(config, argument))
    return 0


def _be_a_rank(config: RunConfig) -> None:
    """Train with the ranks that torchrun has started; the first of them is the driver too."""
    first = torchrun.is_first()
    argument = _begin(config) if first else None
    if first:
        refuse_impossible(config.train, torch.cuda.is_available())
    with torchrun.group():
        argument = torchrun.from_first(argument)
        if argument is None:
            return
        with _shown(config) if first else nullcontext():
            stop = train_worker(argument)
    if first:
        _finish(config, stop)
    elif stop:
        raise SystemExit(EXIT_CODE)


def _run_on_ray(config: RunConfig, argument: dict[str, Any]) -> Notice | None:
    """Train on workers that Ray finds places for, and say why they stopped early, if they did."""
    settings = config.train
    workers = ask_for_workers(config)
    refuse_impossible(config.train, workers.gpus)
    with _shown(config):
        while True:
            stop = launch.run_workers(
                train_worker,
                argument,
                workers,
                settings.out,
                max_failures=settings.max_failures,
                final=(Refused,),
                on_failure=tell_failures(config),
                on_waiting=partial(tell_waiting, workers),
            )
            if stop != "preemption":
                return stop
            say(f"train: a node will be taken away; going on elsewhere from step {committed_step(settings.out)}")


def _begin(config: RunConfig) -> dict[str, Any] | None:
    """Look at all that training needs before it begins, and record what it is; None where it is done already."""
    out = config.train.out
    recipe = configured_recipe(config)
    fetch_newest(config.train)
    refuse_other_run(config)
    if config.train.follow:
        begin_following(config, recipe)
    data = open_first(config, recipe)
    check_init(config)
    check_groups(config)
    if config.train.null_caption == "cached":
        data.null_text()  # Refused where it is missing: once here, and not by each worker
    if _trained_steps(out) >= config.train.steps:
        say(f"train: {out} is trained for {_trained_steps(out)} steps already")
        return None
    record_run(config, data)
    if config.train.sample_every:
        encode_asked(config, data.parts[0].cache, describe_run(config, data))
    events = Events(out / "events.jsonl", "train")
    told = [*(f"on {describe_part(part)}" for part in data.parts), describe_held_out(config, data)]
    events.write("start", steps=config.train.steps, committed=[path.name for path in _checkpoints(out)], data=told)
    for one in told:
        say(f"train: {one}")
    return {"config": config, "recipe": recipe}


def _finish(config: RunConfig, stop: Notice | None) -> None:
    """Export the models of a run that is trained; otherwise say why it is not."""
    out, steps = config.train.out, config.train.steps
    events = Events(out / "events.jsonl", "train")
    damaged = damaged_so_far(out)
    if damaged > config.train.max_damaged:
        raise Refused(
            f"{out / 'events.jsonl'}: tells of {damaged} damaged samples, train.max_damaged allows "
            f"{config.train.max_damaged}; run `verify --repair`, `encode`, `text` and `train`, or raise it"
        )
    if stop:
        leave_stopped(committed_step(out), events)
    export_checkpoint(_checkpoints(out)[-1], out)
    events.write("done", steps=steps, damaged=damaged)
    noted = f", {damaged} damaged samples left out (see events.jsonl; mend by `verify --repair`)" if damaged else ""
    say(f"train: {steps} steps done{noted} -> {out / 'model'}")


@contextmanager
def _shown(config: RunConfig) -> Iterator[None]:
    """While the block runs, a bar follows the metrics; however it ends, a report is made of them."""
    out = config.train.out
    try:
        with (
            progress("train", config.train.steps, "steps", config) as bar,
            following(out / "metrics.jsonl", bar),
            telling(out / "events.jsonl", {"stretch", "waiting", "sampling"}, lambda message: say(f"train: {message}")),
        ):
            yield
    finally:
        write_report(config)


def train_worker(argument: dict[str, Any]) -> Notice | None:
    """The training loop of one rank. Returns why it stopped early, if it was told to."""
    config: RunConfig = argument["config"]
    settings = config.train
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(settings.cpus_per_worker)

    data = open_first(config, argument["recipe"])
    engine = Engine(build_model(config, data), settings)
    start = checkpoint.resume(engine, settings.out / "checkpoints")
    room = settings.shard_cache_bytes
    shard_cache = ShardCache(scratch_folder("shards"), room) if room else None
    null = null_caption(config, data, engine)
    evaluation = Evaluation(config, data, null, shard_cache)
    facts = {"model": asdict(engine.model.config), **describe_run(config, data)}
    events = Events(settings.out / "events.jsonl", "train")
    if rank == 0:
        tell_begin(events, settings.out, start, world)
    metrics = Metrics(settings.out, start) if rank == 0 else None
    num_damaged = damaged_so_far(settings.out) if rank == 0 else 0  # what this rank knows of
    peak_flops = peak_here(settings.precision)

    keeper = Keeper(settings, events) if rank == 0 else None

    def commit(step: int) -> None:
        checkpoint.save(engine, settings.out / "checkpoints", step, facts)
        if keeper:
            keeper.keep()

    told_to_stop = partial(agree_to_stop, engine.device)
    for clips, schedule, steps in stretches(config, argument["recipe"], start, commit, told_to_stop):
        batches = load_batches(clips, schedule, steps, rank, world, settings.loader_threads, shard_cache)
        shares = draw_ahead(settings, steps, batches)
        for step in steps:
            began_s = time.monotonic()
            batch, parts = next(shares)
            loaded_s = time.monotonic()
            for sample in batch.damaged:
                events.write("damaged", step=step + 1, key=sample.key, message=sample.problem)
            num_damaged += len(batch.damaged)
            loss = accumulate(engine, settings, parts, null)
            grad_norm = engine.step(step)
            work = work_of(engine.model.config, batch, data_wait_s=loaded_s - began_s)
            agreed = agree(loss, num_damaged, *work)
            step_s = time.monotonic() - began_s
            measured = evaluation.measure(engine, step + 1)
            if metrics:
                metrics.write(
                    step=step + 1,
                    loss=agreed.loss,
                    lr=learning_rate(settings, step),
                    grad_norm=grad_norm,
                    damaged=agreed.damaged,
                    skipped=step + 1 - engine.counters["updates"],
                    **rates(Work(*agreed.more), world, step_s, peak_flops),
                    **memory(),
                    **measured,
                )
            if agreed.damaged > settings.max_damaged:
                return None  # on every rank, at the same step; `train` says why
            is_last = step + 1 == settings.steps
            if agreed.stop or is_last or (step + 1) % settings.checkpoint_every == 0:
                commit(step + 1)
            if agreed.stop:
                break
            if settings.sample_every and (step + 1) % settings.sample_every == 0:
                write_samples(engine, config, facts, step + 1)
    if keeper:
        keeper.finish()
    stop = told_to_stop()
    return stop if committed_step(settings.out) < settings.steps else None


def accumulate(engine: Engine, settings: TrainConfig, parts: list[Part], null: Null) -> Tensor:
    """Forward and backward over a rank's share of a step, part by part -> its loss, times the number of ranks: ()."""
    total = torch.zeros((), device=engine.device)
    for number, (part, drawn) in enumerate(parts, 1):
        losses = compute_losses(engine, settings, part, drawn, null)  # (B,)
        loss = (losses * part.weights.to(engine.device)).sum() * dist.get_world_size()  # DeepSpeed averages over ranks
        engine.backward(loss, is_last=number == len(parts))
        total += loss.detach()
    return total


def _checkpoints(out: Path) -> list[Path]:
    return committed.list_committed(out / "checkpoints")


def damaged_so_far(out: Path) -> int:
    """How many samples a run found damaged, up to the last step that its metrics tell of."""
    lines = read_metrics(out / "metrics.jsonl")
    return lines[-1]["damaged"] if lines else 0


def _trained_steps(out: Path) -> int:
    path = out / "ema" / "trained.json"  # the last one that is written
    return json.loads(path.read_text())["steps"] if path.exists() else 0
