"""`train`: cached latents -> a trained DiT. `train_worker` is the loop; read it top to bottom."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from cluster import launch, runtime
from jobs import engine as engines
from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.engine import Engine
from jobs.events import Events
from jobs.metrics import Metrics, following
from jobs.progress import progress, say
from models.diffusion.draws import draw, posterior_sample
from models.diffusion.masks import leave_padding_out
from models.diffusion.rectified_flow import add_noise, loss_per_sample, timestep_transform
from models.dit import build_dit, load_dit, save_dit
from models.dit.pixart import init_from_pixart
from models.hub import locate
from pipeline.errors import Refused
from pipeline.loader import Batch, TrainingSet, load_batches, open_training_set
from pipeline.recipe import Recipe, check_recipe, convertible_recipe
from pipeline.schedule import Schedule
from pipeline.storage import publish
from pipeline.text_column import TextOrigin, read_text_origin


def train(config: RunConfig) -> int:
    """Train on the cache until `train.steps`, from the last committed checkpoint if there is one."""
    out = config.train.out
    recipe = configured_recipe(config)
    stored = _stored_recipe(config, recipe)
    data = open_training_set(config.cache, recipe, config.text.encoder, stored, config.train.filter)
    text = _text_origin(config)
    check_init(config)
    _refuse_other_run(config)
    if _trained_steps(out) >= config.train.steps:
        say(f"train: {out} is trained for {_trained_steps(out)} steps already")
        return 0
    publish(out / "run.json", (config.model_dump_json(indent=2) + "\n").encode())
    events = Events(out / "events.jsonl", "train")
    events.write("start", steps=config.train.steps, committed=[path.name for path in _checkpoints(out)])
    runtime.connect(config.cluster.address, num_cpus=config.train.workers * config.train.cpus_per_worker)
    use_gpu = runtime.count("GPU") > 0
    if not use_gpu and (problem := engines.compiler_problem()):
        raise Refused(problem)
    _check_room(config, "GPU" if use_gpu else "CPU")
    say(
        f"train: on {data.samples.num_rows} clips; left out: {data.num_removed} of videos that left the source, "
        f"{data.num_filtered} that train.filter does not match"
    )
    with progress("train", config.train.steps, "steps") as bar, following(out / "metrics.jsonl", bar):
        launch.run_workers(
            train_worker,
            {"config": config, "recipe": recipe, "stored": stored, "text": text},
            num_workers=config.train.workers,
            cpus_per_worker=config.train.cpus_per_worker,
            use_gpu=use_gpu,
            folder=out,
            max_failures=config.train.max_failures,
        )
    events.write("done", steps=config.train.steps)
    say(f"train: {config.train.steps} steps done -> {out / 'model'}")
    return 0


def train_worker(argument: dict[str, Any]) -> None:
    """The training loop of one rank."""
    config: RunConfig = argument["config"]
    settings = config.train
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(settings.cpus_per_worker)

    data = open_training_set(config.cache, argument["recipe"], config.text.encoder, argument["stored"], settings.filter)
    schedule = Schedule(data.samples, settings.batch, settings.seed)
    text: TextOrigin = argument["text"]
    engine = Engine(_build_model(config, data, text), settings, samples_per_rank=-(-settings.batch // world))
    start = _resume(engine, settings.out)
    steps = range(start, settings.steps)
    batches = load_batches(data, schedule, steps, rank, world, settings.loader_workers)
    metrics = Metrics(settings.out, start) if rank == 0 else None

    for step in steps:
        began_s = time.monotonic()
        batch = next(batches)
        loaded_s = time.monotonic()
        losses = compute_losses(engine, config, batch, step)  # (B,)
        share = batch.weights.to(engine.device) / float(schedule.batch(step).weights.sum())  # of the global batch
        loss = (losses * share).sum() * world  # DeepSpeed averages over ranks
        grad_norm = engine.step(loss, step)
        mean_loss = _sum_over_ranks(loss.detach()) / world
        if metrics:
            metrics.write(
                step=step + 1,
                loss=mean_loss,
                lr=engines.learning_rate(settings, step),
                grad_norm=grad_norm,
                step_s=time.monotonic() - began_s,
                data_wait_s=loaded_s - began_s,
            )
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            engine.save(settings.out / "checkpoints", step + 1)

    if rank == 0:
        save_trained(settings.out / "model", engine.model, config, data, text)
    dist.barrier()


def compute_losses(engine: Engine, config: RunConfig, batch: Batch, step: int) -> Tensor:
    """Rectified-flow loss of each sample: (B,). All randomness is drawn by (seed, step, position)."""
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
    text = batch.text.to(engine.device)  # (B, L, dim)
    null = engine.model.null_text(text.shape[1]).to(text)  # (L, dim); keeps the caption's mask, as Open-Sora does
    text = torch.where(rearrange(drawn.drop_caption.to(engine.device), "b -> b 1 1"), null, text)
    text_mask = batch.text_mask.to(engine.device)
    masks = leave_padding_out(drawn.mask, batch.filled)  # (B, t) each: denoised, not given at t = 0; counts in the loss
    mask, counted = (None if one is None else one.to(engine.device) for one in masks)
    noisy = add_noise(latents, noise, timesteps, mask)
    conditions = {"fps": fps, "height": height, "width": width, **({} if mask is None else {"x_mask": mask})}
    prediction = engine(noisy, timesteps, text, text_mask, **conditions)  # (B, 2c, t, h, w)
    return loss_per_sample(prediction, latents, noise, counted)


def _stored_recipe(config: RunConfig, recipe: Recipe) -> Recipe:
    """The cache's recipe: the run's own, or one that differs in normalization where the run allows that."""
    if config.train.renormalize:
        return convertible_recipe(config.cache, recipe)
    check_recipe(config.cache, recipe)
    return recipe


def _text_origin(config: RunConfig) -> TextOrigin:
    """What made the cache's text; Refused where [text] asks for another one. The encoder itself is not needed."""
    found = read_text_origin(config.cache, config.text.encoder)
    for name in ("max_tokens", "clean", "dtype"):
        made, wanted = getattr(found, name), getattr(config.text, name)
        if wanted not in (made, None):
            raise Refused(
                f"{config.cache.text(found.name)}: made with text.{name} = {made}, the run wants {wanted}; "
                f"run `text` again, or change it back"
            )
    return found


def check_init(config: RunConfig) -> None:
    """Refuse `model.init` where there is nothing, before any worker starts."""
    if config.model.init is not None:
        try:
            locate(config.model.init, ["config.json", "model.safetensors"])
        except ValueError as error:
            raise Refused(f"model.init: {error}") from error


def _build_model(config: RunConfig, data: TrainingSet, text: TextOrigin) -> Any:
    """The DiT, the same on every rank, shaped for the cache's latents and text, with the weights it starts from."""
    torch.manual_seed(config.train.seed)
    model = build_dit(
        config.model.name,
        **{
            "in_channels": data.recipe.latent.channels,
            "caption_channels": text.dim,
            "max_text_tokens": text.max_tokens,
            **config.model.overrides,
        },
    )
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


def _checkpoints(out: Path) -> list[Path]:
    return engines.committed(out / "checkpoints")


def _resume(engine: Engine, out: Path) -> int:
    """Load the newest committed checkpoint, if any. Returns the number of steps done."""
    found = _checkpoints(out)
    if not found:
        return 0
    engine.load(found[-1])
    return engines.step_of(found[-1])


def _sum_over_ranks(value: Tensor) -> float:
    total = value.clone()
    dist.all_reduce(total)
    return float(total)


def save_trained(folder: Path, model: Any, config: RunConfig, data: TrainingSet, text: TextOrigin) -> None:
    """The model as safetensors, with all that sampling needs beside it: recipe, text encoder, steps trained."""
    save_dit(model, folder)
    facts = {
        "steps": config.train.steps,
        "vae": config.recipe.vae,
        "text": asdict(text),
        "timestep_transform": config.train.timestep_transform,
        "recipe": data.recipe.to_dict(),
    }
    publish(folder / "trained.json", (json.dumps(facts, indent=2) + "\n").encode())


def _trained_steps(out: Path) -> int:
    path = out / "model" / "trained.json"
    return json.loads(path.read_text())["steps"] if path.exists() else 0


# What must not change while a run is resumed: the order of the data, the model, and what it is trained on.
FIXED = (
    *("recipe", "text.encoder", "text.max_tokens", "text.clean", "model"),
    *("train.batch", "train.seed", "train.caption_dropout", "train.timestep_transform"),
    *("train.timesteps", "train.masks", "train.filter"),
)


def _refuse_other_run(config: RunConfig) -> None:
    """Refuse to continue a run in `train.out` that was another one."""
    path = config.train.out / "run.json"
    checkpoints = _checkpoints(config.train.out)
    if not checkpoints or not path.exists():
        return
    engines.refuse_other_ranks(checkpoints[-1], config.train.workers)
    before, now = json.loads(path.read_text()), json.loads(config.model_dump_json())
    for dotted in FIXED:
        section, _, key = dotted.partition(".")
        found, wanted = (document[section][key] if key else document[section] for document in (before, now))
        if found != wanted:
            raise Refused(f"{path}: {dotted} was {found!r}, now {wanted!r}; change it back, or use another train.out")


def _check_room(config: RunConfig, resource: str) -> None:
    per_worker = 1 if resource == "GPU" else config.train.cpus_per_worker
    found, wanted = runtime.count(resource), config.train.workers * per_worker
    if found < wanted:
        raise Refused(f"train.workers: asks for {wanted} {resource}s, the cluster has {found}; lower train.workers")
