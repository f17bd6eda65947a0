"""Training, in five parts; on CPUs, where there is no GPU. Numbers beside each other are of one run, by turns.

step        a step of `train` beside a bare DeepSpeed loop over the same model and the same tensors
wait        the share of a step that waits for data, in a run like the demo's, on two workers
memory      bytes per parameter of each of two ranks under every stage of ZeRO, beside theory
fly         training from the cache beside decoding and encoding the same clips on the fly
checkpoint  what saving, reading back and resuming take
"""

import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from einops import reduce
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jobs.config import RunConfig, TrainConfig
from jobs.configured import configured_lengths, configured_recipe, load_configured_vae, open_configured_set
from jobs.encode import encode
from jobs.plan import plan
from jobs.run_toml import load_config
from jobs.scan import scan
from jobs.shapes import make_shapes
from jobs.text import text
from jobs.train import accumulate, train, train_worker
from jobs.training import checkpoint, zero
from jobs.training.engine import Engine
from jobs.training.losses import Part, compute_losses, draw_for, null_caption
from jobs.training.metrics import read_metrics
from jobs.training.optimizer import learning_rate
from models.dit import build_dit
from models.vae.interface import VideoVAE
from pipeline.batch_reader import Batch
from pipeline.decode import decode_clips
from pipeline.encode import to_pixels
from pipeline.loader import load_batches
from pipeline.records import Clip, Video
from pipeline.schedule import Schedule
from pipeline.tables import read_records
from pipeline.training_set import TrainingSet
from tests.checkpoints import publish
from tests.ranks import run_ranks

ROUNDS, STEPS, WARM = 5, 24, 4
DEMO = (
    *("recipe.fps=8", "recipe.buckets=[[64, 64]]", "recipe.max_chunks=3", "encode.shard_bytes=65536"),
    *("train.batch=16", "train.precision=fp32", "train.lr=2e-3", "train.warmup_steps=50", "train.held_out=0"),
    *("train.timestep_transform=false", "train.checkpoint_every=1000000", "train.eval_every=0"),
)
MILLION = 10**6


def main(*parts: str) -> None:
    """Run the parts that are named, or all."""
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](Path(folder))


def fill(folder: Path, *more: str, clips: int = 64) -> RunConfig:
    """A cache of moving shapes as the demo's, made by the verbs."""
    make_shapes(folder / "videos", num_clips=clips)
    places = [f"data.source={folder / 'videos' / 'captions.csv'}", f"data.cache={folder / 'cache'}"]
    config = load_config(None, [*places, f"train.out={folder / 'run'}", *DEMO, *more])
    for verb in (scan, plan, encode, text):
        verb(config)
    return config


# --- step


def step(folder: Path) -> None:
    """Our loop and a bare one, by turns."""
    config = fill(folder)
    [rounds] = run_ranks(1, time_steps, config)
    ratio = statistics.median(ours / bare for ours, bare, _ in rounds)
    ours_ms, bare_ms = (1000 * statistics.median(column) for column in list(zip(*rounds))[:2])
    apart = max(apart for *_, apart in rounds)
    print(f"step        {ours_ms:.0f} ms, a bare DeepSpeed loop {bare_ms:.0f} ms: {ratio:.3f} times; {ROUNDS} rounds")
    print(f"            losses of the two differ by {apart:.1e} of their value at the most")


def time_steps(config: RunConfig) -> list[tuple[float, float, float]]:
    """Rounds of: seconds of our step, seconds of a bare one, how far their losses are apart."""
    rounds = []
    for number in range(ROUNDS):
        ours = config.model_copy(
            update={"train": config.train.model_copy(update={"out": config.train.out / str(number), "steps": STEPS})}
        )
        train_worker({"config": ours, "recipe": configured_recipe(ours)})
        lines = read_metrics(ours.train.out / "metrics.jsonl")
        seconds, losses = bare_loop(ours)
        apart = max(abs(line["loss"] - loss) / loss for line, loss in zip(lines, losses, strict=True))
        our_seconds = [line["step_s"] for line in lines]
        rounds.append((statistics.median(our_seconds[WARM:]), statistics.median(seconds[WARM:]), apart))
    return rounds


class Recorder:
    """Stands for an engine: keeps what the model is asked, and answers nothing."""

    device = torch.device("cpu")

    def __call__(self, noisy: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.asked = ((noisy, *args), kwargs)
        return torch.zeros_like(noisy)


def bare_loop(config: RunConfig) -> tuple[list[float], list[float]]:
    """The same steps by DeepSpeed alone, all tensors made before -> seconds and losses of each."""
    import deepspeed

    settings = config.train
    model, examples = same_model(config), list(recorded(config))
    parameters = [one for one in model.parameters() if one.requires_grad]
    adam = {"type": "AdamW", "params": {"lr": settings.lr, "eps": settings.eps, "torch_adam": True}}
    initialize: Any = deepspeed.initialize
    count = sum(one.numel() for one in parameters)
    told = {**zero.deepspeed_config(settings, count), "optimizer": adam}
    engine, *_ = initialize(model=model, model_parameters=parameters, config=told)
    seconds, losses = [], []
    for number, ((args, kwargs), target, weights) in enumerate(examples):
        began_s = time.perf_counter()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(settings, number)
        velocity = engine(*args, **kwargs)[:, : target.shape[1]]
        loss = (reduce((velocity - target).square(), "b c t h w -> b", "mean") * weights).sum()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - began_s)
    return seconds, losses


def recorded(config: RunConfig) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """What our loop asks the model at each step, what the answer should be, and the weights of the samples."""
    settings = config.train
    for number, batch in enumerate(batches_of(config, settings.steps)):
        recorder: Any = Recorder()
        drawn = draw_for(settings, batch, number)
        compute_losses(recorder, settings, batch, drawn, null_caption(config, configured_set(config), recorder))
        yield recorder.asked, batch.latents.float() - drawn.noise, batch.weights


def same_model(config: RunConfig) -> Any:
    """The model that `train` begins with."""
    data = configured_set(config)
    torch.manual_seed(config.train.seed)
    shape = {"in_channels": data.recipe.latent.channels, "caption_channels": data.text.dim}
    return build_dit(config.model.name, **shape, max_text_tokens=data.text.max_tokens, **config.model.overrides)


def configured_set(config: RunConfig) -> TrainingSet:
    return open_configured_set(config, configured_recipe(config))


def batches_of(config: RunConfig, steps: int) -> Iterator[Batch]:
    """The global batches of one rank."""
    data = configured_set(config)
    schedule = Schedule(data.schedule_rows(), configured_lengths(config, data.recipe.latent), config.train.seed)
    return load_batches(data, schedule, range(steps), 0, 1, config.train.loader_threads)


# --- wait


def wait(folder: Path) -> None:
    """The demo's training, for a while."""
    config = fill(folder, "train.workers=2", "train.steps=150")
    for threads in (0, 2):
        out = folder / f"threads-{threads}"
        settings = config.train.model_copy(update={"out": out, "loader_threads": threads})
        train(config.model_copy(update={"train": settings}))
        lines = read_metrics(out / "metrics.jsonl")[WARM:]
        shares = [line["data_wait_s"] / line["step_s"] for line in lines]
        whole = sum(line["data_wait_s"] for line in lines) / sum(line["step_s"] for line in lines)
        step_ms = 1000 * statistics.median(line["step_s"] for line in lines)
        print(
            f"wait        {threads} threads that read ahead: {100 * statistics.median(shares):.2f} % of a step by the "
            f"median, {100 * whole:.2f} % in all; {step_ms:.0f} ms a step"
        )


# --- memory

SHARED = {  # bytes per parameter in bfloat16 on each of n ranks: weights, gradients, and float32 state of 4 + 8 + 4
    "zero0": lambda n: 2 + 2 + 16,
    "zero1": lambda n: 2 + 2 + 16 / n,
    "zero2": lambda n: 2 + (4 + 16) / n,  # from here on gradients add up in float32
    "zero3": lambda n: (2 + 4 + 16) / n,
}


def memory(_: Path) -> None:
    """What two ranks hold while gradients add up, which is the most."""
    for name, theory in SHARED.items():
        found = max(run_ranks(2, bytes_per_parameter, name))
        wanted = theory(2)
        print(
            f"memory      {name}: {found:.2f} bytes per parameter, {wanted:.2f} in theory: {found / wanted:.3f} times"
        )


def bytes_per_parameter(name: str) -> float:
    """Of this rank: all tensors that are alive behind the first of several backward passes, the second step's."""
    zero.MAX_BUCKET_ELEMENTS = MILLION // 4  # buffers for communication are no part of the theory
    engine = Engine(big_model(), TrainConfig(zero=name, precision="bf16"))  # pyright: ignore[reportArgumentType]
    for number in range(2):
        loss = engine(*EXAMPLE[0], **EXAMPLE[1]).square().mean()
        engine.backward(loss, is_last=number == 0)
        del loss
        if number == 0:
            engine.step(0)
    return alive_bytes() / count_parameters()


def big_model() -> Any:
    torch.manual_seed(0)
    return build_dit("stdit3-tiny", depth=6, hidden_size=256, num_heads=4)


def count_parameters() -> int:
    return sum(one.numel() for one in big_model().parameters())


def alive_bytes() -> int:
    """Of the storages of all tensors that Python can reach, each once."""
    gc.collect()
    with warnings.catch_warnings():  # of properties that are only looked at
        warnings.simplefilter("ignore")
        tensors = [one for one in gc.get_objects() if isinstance(one, Tensor)]
        tensors += [one.grad for one in tensors if one.grad is not None]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


EXAMPLE = (
    (torch.zeros(1, 16, 5, 8, 8), torch.zeros(1), torch.zeros(1, 8, 256), torch.ones(1, 8, dtype=torch.bool)),
    {name: torch.full((1,), 64.0) for name in ("fps", "height", "width")},
)


# --- fly


def fly(folder: Path) -> None:
    """Two engines that make the same steps, one of them from the videos."""
    (folder / "vae").mkdir()
    vae = [f"{name}={value}" for name, value in publish("open-sora-v1.2", folder / "vae").items()]
    small = ("recipe.max_chunks=1", "recipe.posterior=mean", "encode.min_psnr=0", "train.batch=4")
    config = fill(folder, *vae, *small, clips=24)
    [(cached, flying, arithmetic, apart)] = run_ranks(1, time_both, config)
    ratio = statistics.median(other / one for one, other in zip(cached, flying))
    print(
        f"fly         a step from the cache {1000 * statistics.median(cached):.0f} ms, on the fly "
        f"{1000 * statistics.median(flying):.0f} ms: {ratio:.1f} times; by arithmetic alone {arithmetic:.1f}"
    )
    print(f"            losses of the two differ by {apart:.1e} of their value at the most")


@dataclass(frozen=True)
class Flight:
    """Decodes and encodes what a batch shows."""

    vae: VideoVAE
    videos: dict[str, Video]
    clips: dict[str, Clip]

    def encode(self, batch: Batch) -> Batch:
        frames = []
        for key in batch.keys:
            clip = self.clips[key]
            frames += [chunk for _, _, chunk in decode_clips(self.videos[clip.video], [clip])]
        with torch.inference_mode():
            latents = self.vae.encode(to_pixels(torch.from_numpy(np.stack(frames))))
        return replace(batch, latents=latents.clone())


def time_both(config: RunConfig) -> tuple[list[float], list[float], float, float]:
    """Seconds of each step from the cache, and on the fly; the ratio by arithmetic; how far losses are apart."""
    videos = {one.id: one for one in read_records([config.cache.manifest], Video)}
    clips = {one.key: one for one in read_records(config.cache.plans(), Clip)}
    flight = Flight(load_configured_vae(config), videos, clips)
    engines = [Engine(same_model(config), config.train) for _ in range(2)]
    null = null_caption(config, configured_set(config), engines[0])
    seconds: list[list[float]] = [[], []]
    batches, apart = batches_of(config, STEPS), 0.0
    for number in range(STEPS):
        losses = []
        for way, engine in enumerate(engines):
            began_s = time.perf_counter()
            if way == 0:
                batch = next(batches)
            used = batch if way == 0 else flight.encode(batch)  # pyright: ignore[reportPossiblyUnboundVariable]
            part = Part(used, draw_for(config.train, used, number))
            losses.append(float(accumulate(engine, config.train, [part], null)))
            engine.step(number)
            seconds[way].append(time.perf_counter() - began_s)
        apart = max(apart, abs(losses[1] - losses[0]) / losses[0])
    return seconds[0][WARM:], seconds[1][WARM:], arithmetic(config, flight, engines[0], null), apart


def arithmetic(config: RunConfig, flight: Flight, engine: Engine, null: Any) -> float:
    """How much longer a step would be with encoding in it, if only operations counted."""
    batch = next(batches_of(config, 1))
    with FlopCounterMode(display=False) as trained:
        accumulate(engine, config.train, [Part(batch, draw_for(config.train, batch, 0))], null)
    with FlopCounterMode(display=False) as encoded:
        flight.encode(batch)
    return 1 + encoded.get_total_flops() / trained.get_total_flops()


# --- checkpoint


def save_and_resume(folder: Path) -> None:
    """By two ranks, which share a disk, beside writing as many bytes."""
    rounds = list(zip(*run_ranks(2, time_checkpoints, folder)))
    size_mb = sum(path.stat().st_size for path in (folder / "step-00000000").iterdir()) / MILLION
    slowest = [[max(one[place] for one in ranks) for ranks in rounds] for place in range(3)]
    plain, saved, resumed = (statistics.median(column) for column in slowest)
    print(
        f"checkpoint  {size_mb:.0f} MB: saved and read back in {saved:.2f} s, resumed from in {resumed:.2f} s; plain "
        f"writes with fsync take {plain:.2f} s"
    )


def time_checkpoints(folder: Path) -> list[tuple[float, float, float]]:
    """Rounds of: seconds of plain writes, of saving, of resuming."""
    engine, rounds = Engine(big_model(), TrainConfig(zero="zero2", precision="bf16")), []
    content = os.urandom(16 * count_parameters() // dist.get_world_size())
    for number in range(ROUNDS):
        times = [time.perf_counter()]
        with open(folder / f"plain-{dist.get_rank()}", "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        dist.barrier()
        times.append(time.perf_counter())
        saved = checkpoint.save(engine, folder, number, {})
        times.append(time.perf_counter())
        checkpoint.load(engine, saved)
        dist.barrier()
        times.append(time.perf_counter())
        rounds.append(tuple(later - earlier for earlier, later in pairwise(times)))
    return rounds


PARTS: dict[str, Callable[[Path], None]] = {
    "step": step,
    "wait": wait,
    "memory": memory,
    "fly": fly,
    "checkpoint": save_and_resume,
}
