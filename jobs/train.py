"""`train`: cached latents -> a trained DiT. `train_worker` is the loop; read it top to bottom."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import launch, runtime
from jobs.config import RunConfig
from jobs.configured import configured_lengths, configured_recipe, describe_part, open_configured_set
from jobs.events import Events
from jobs.export import export_checkpoint
from jobs.progress import progress, say
from jobs.training import checkpoint
from jobs.training.engine import Engine
from jobs.training.machine import compiler_problem
from jobs.training.metrics import Metrics, following, read_metrics
from jobs.training.optimizer import learning_rate
from jobs.training.run_record import record_run, refuse_other_run
from models.diffusion.draws import draw, drop_captions, posterior_sample
from models.diffusion.masks import leave_padding_out
from models.diffusion.rectified_flow import add_noise, loss_per_sample, timestep_transform
from models.dit import build_dit, load_dit
from models.dit.pixart import init_from_pixart
from models.hub import locate
from pipeline.batch_reader import Batch, split_batch
from pipeline.errors import Refused
from pipeline.loader import load_batches
from pipeline.schedule import Schedule
from pipeline.scratch import scratch_folder
from pipeline.shard_cache import ShardCache
from pipeline.storage import publish
from pipeline.training_set import TrainingSet


def train(config: RunConfig) -> int:
    """Train on the cache until `train.steps`, from the last committed checkpoint if there is one."""
    out = config.train.out
    recipe = configured_recipe(config)
    data = open_configured_set(config, recipe)
    check_init(config)
    if config.train.null_caption == "cached":
        data.null_text()  # Refused where it is missing: once here, and not by each worker
    refuse_other_run(config)
    if _trained_steps(out) >= config.train.steps:
        say(f"train: {out} is trained for {_trained_steps(out)} steps already")
        return 0
    record_run(config, data)
    events = Events(out / "events.jsonl", "train")
    events.write("start", steps=config.train.steps, committed=[path.name for path in _checkpoints(out)])
    runtime.connect(config.cluster.address, num_cpus=config.train.workers * config.train.cpus_per_worker)
    use_gpu = runtime.count("GPU") > 0
    if not use_gpu and (problem := compiler_problem()):
        raise Refused(problem)
    _check_room(config, "GPU" if use_gpu else "CPU")
    for part in data.parts:
        say(f"train: on {describe_part(part)}")
    with progress("train", config.train.steps, "steps") as bar, following(out / "metrics.jsonl", bar):
        launch.run_workers(
            train_worker,
            {"config": config, "recipe": recipe},
            num_workers=config.train.workers,
            cpus_per_worker=config.train.cpus_per_worker,
            use_gpu=use_gpu,
            folder=out,
            max_failures=config.train.max_failures,
        )
    damaged = damaged_so_far(out)
    if damaged > config.train.max_damaged:
        raise Refused(
            f"{out / 'events.jsonl'}: tells of {damaged} damaged samples, train.max_damaged allows "
            f"{config.train.max_damaged}; run `verify --repair`, `encode`, `text` and `train`, or raise it"
        )
    export_checkpoint(_checkpoints(out)[-1], out)
    events.write("done", steps=config.train.steps, damaged=damaged)
    noted = f", {damaged} damaged samples left out (see events.jsonl; mend by `verify --repair`)" if damaged else ""
    say(f"train: {config.train.steps} steps done{noted} -> {out / 'model'}")
    return 0


def train_worker(argument: dict[str, Any]) -> None:
    """The training loop of one rank."""
    config: RunConfig = argument["config"]
    settings = config.train
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(settings.cpus_per_worker)

    data = open_configured_set(config, argument["recipe"])
    schedule = Schedule(data.schedule_rows(), configured_lengths(config, data.recipe.latent), settings.seed)
    engine = Engine(_build_model(config, data), settings)
    start = _resume(engine, settings.out)
    steps = range(start, settings.steps)
    room = settings.shard_cache_bytes
    shard_cache = ShardCache(scratch_folder("shards"), room) if room else None
    batches = load_batches(data, schedule, steps, rank, world, settings.loader_threads, shard_cache)
    null = null_caption(config, data, engine)
    facts = describe_run(config, data, engine.model)
    metrics = Metrics(settings.out, start) if rank == 0 else None
    events = Events(settings.out / "events.jsonl", "train")
    num_damaged = damaged_so_far(settings.out) if rank == 0 else 0  # what this rank knows of

    for step in steps:
        began_s = time.monotonic()
        batch = next(batches)
        loaded_s = time.monotonic()
        for sample in batch.damaged:
            events.write("damaged", step=step + 1, key=sample.key, message=sample.problem)
        num_damaged += len(batch.damaged)
        loss = accumulate(engine, config, batch, step, null)
        grad_norm = engine.step(step)
        total_loss, total_damaged = _sum_over_ranks(loss, num_damaged)
        if metrics:
            metrics.write(
                step=step + 1,
                loss=total_loss / world,
                lr=learning_rate(settings, step),
                grad_norm=grad_norm,
                damaged=total_damaged,
                step_s=time.monotonic() - began_s,
                data_wait_s=loaded_s - began_s,
            )
        if total_damaged > settings.max_damaged:
            return  # on every rank, at the same step; `train` says why
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            checkpoint.save(engine, settings.out / "checkpoints", step + 1, facts)
            if rank == 0:
                checkpoint.prune(settings.out / "checkpoints", settings.keep_checkpoints, settings.keep_every)


def accumulate(
    engine: Engine, config: RunConfig, batch: Batch, step: int, null: tuple[Tensor, Tensor | None]
) -> Tensor:
    """Forward and backward over a rank's batch, part by part -> its loss, times the number of ranks: ()."""
    total = torch.zeros((), device=engine.device)
    parts = split_batch(batch, config.train.accumulate)
    for number, part in enumerate(parts, 1):
        losses = compute_losses(engine, config, part, step, null)  # (B,)
        loss = (losses * part.weights.to(engine.device)).sum() * dist.get_world_size()  # DeepSpeed averages over ranks
        engine.backward(loss, is_last=number == len(parts))
        total += loss.detach()
    return total


def compute_losses(
    engine: Engine, config: RunConfig, batch: Batch, step: int, null: tuple[Tensor, Tensor | None]
) -> Tensor:
    """Rectified-flow loss of each sample: (B,). All randomness is drawn by (seed, step, position).

    `null` is the null caption and its mask, as `drop_captions` takes them.
    """
    settings = config.train
    mean, std = batch.latents.to(engine.device), None if batch.std is None else batch.std.to(engine.device)
    shape = tuple(mean.shape[1:])
    drawn = draw(
        settings.seed,
        step,
        batch.positions.tolist(),
        shape,
        settings.caption_dropout,
        posterior=std is not None,
        masks=settings.masks,
        timesteps=settings.timesteps,
    )
    latents = posterior_sample(mean, std, drawn.posterior_noise)  # (B, c, t, h, w), another one at each step
    noise, timesteps = drawn.noise.to(engine.device), drawn.timesteps.to(engine.device)
    fps, height, width = batch.fps.to(engine.device), batch.height.to(engine.device), batch.width.to(engine.device)
    if settings.timestep_transform:
        timesteps = timestep_transform(timesteps, height, width, batch.num_frames)
    text, text_mask, dropped = (one.to(engine.device) for one in (batch.text, batch.text_mask, drawn.drop_caption))
    text, text_mask = drop_captions(text, text_mask, dropped, *null)  # (B, L, dim), (B, L)
    masks = leave_padding_out(drawn.mask, batch.filled)  # (B, t) each: denoised, not given at t = 0; counts in the loss
    mask, counted = (None if one is None else one.to(engine.device) for one in masks)
    noisy = add_noise(latents, noise, timesteps, mask)
    conditions = {"fps": fps, "height": height, "width": width, **({} if mask is None else {"x_mask": mask})}
    prediction = engine(noisy, timesteps, text, text_mask, **conditions)  # (B, 2c, t, h, w)
    return loss_per_sample(prediction, latents, noise, counted)


def null_caption(config: RunConfig, data: TrainingSet, engine: Engine) -> tuple[Tensor, Tensor | None]:
    """The null caption (N, dim) and its mask (N,); None where it keeps the mask of the caption that it stands for."""
    if config.train.null_caption == "model":
        return engine.model.null_text(engine.model.config.max_text_tokens), None
    null = torch.from_numpy(data.null_text()).to(engine.device)
    return null, torch.ones(len(null), dtype=torch.bool, device=engine.device)


def check_init(config: RunConfig) -> None:
    """Refuse `model.init` where there is nothing, before any worker starts."""
    if config.model.init is not None:
        try:
            locate(config.model.init, ["config.json", "model.safetensors"])
        except ValueError as error:
            raise Refused(f"model.init: {error}") from error


def _build_model(config: RunConfig, data: TrainingSet) -> Any:
    """The DiT, the same on every rank, shaped for the cache's latents and text, with the weights it starts from."""
    torch.manual_seed(config.train.seed)
    model = build_dit(
        config.model.name,
        **{
            "in_channels": data.recipe.latent.channels,
            "caption_channels": data.text.dim,
            "max_text_tokens": data.text.max_tokens,
            **config.model.overrides,
        },
    )
    model.checkpoint_blocks = config.train.activation_checkpointing
    if config.model.init is None:
        return model
    if Path(config.model.init).is_file():
        report = init_from_pixart(model, config.model.init)
        if dist.get_rank() == 0:
            publish(config.train.out / "init.txt", f"{report}\n".encode())
        return model
    start = load_dit(config.model.init)
    before, now = asdict(start.config), asdict(model.config)
    if changed := [f"{name} is {before[name]}, not {now[name]}" for name in now if before[name] != now[name]]:
        raise Refused(f"model.init: {config.model.init} is another model: {'; '.join(changed)}; set model.overrides")
    return start


def _resume(engine: Engine, out: Path) -> int:
    """Load the newest committed checkpoint, if any. Returns the number of steps done."""
    found = _checkpoints(out)
    return checkpoint.load(engine, found[-1]) if found else 0


def _checkpoints(out: Path) -> list[Path]:
    return checkpoint.list_committed(out / "checkpoints")


def _sum_over_ranks(loss: Tensor, count: int) -> tuple[float, int]:
    """A loss and a count, summed together: float32 counts exactly to 16 million."""
    total = torch.stack([loss, torch.tensor(float(count), device=loss.device)])
    dist.all_reduce(total)
    total_loss, total_count = total.tolist()
    return total_loss, int(total_count)


def damaged_so_far(out: Path) -> int:
    """How many samples a run found damaged, up to the last step that its metrics tell of."""
    lines = read_metrics(out / "metrics.jsonl")
    return lines[-1]["damaged"] if lines else 0


def describe_run(config: RunConfig, data: TrainingSet, model: Any) -> dict[str, Any]:
    """What whoever uses the weights must know: the model's shape, recipe, text encoder, how it was trained."""
    return {
        "model": asdict(model.config),
        "vae": config.recipe.vae,
        "text": asdict(data.text),
        "timestep_transform": config.train.timestep_transform,
        "null_caption": config.train.null_caption,
        "objective": config.train.objective,
        "recipe": data.recipe.to_dict(),
    }


def _trained_steps(out: Path) -> int:
    path = out / "ema" / "trained.json"  # the last one that is written
    return json.loads(path.read_text())["steps"] if path.exists() else 0


def _check_room(config: RunConfig, resource: str) -> None:
    per_worker = 1 if resource == "GPU" else config.train.cpus_per_worker
    found, wanted = runtime.count(resource), config.train.workers * per_worker
    if found < wanted:
        raise Refused(f"train.workers: asks for {wanted} {resource}s, the cluster has {found}; lower train.workers")
