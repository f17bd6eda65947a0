"""Encoding with a VAE beside a plain loop over the same modules: interleaved pairs, medians.

The plain loop takes one chunk at a time and four frames of it, as Open-Sora does, under `no_grad`, with attention as
separate matrix products and tensors as they come. On a GPU the networks are of published size, in bfloat16.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.vae import describe_vae
from models.vae.description import Asked
from models.vae.interface import DTYPES, VideoVAE, per_channel
from models.vae.kl import FrameAutoencoder, FrameVAE
from models.vae.open_sora import BETWEEN, OpenSoraVAE
from tests.checkpoints import publish

FAMILIES = ["sd", "open-sora-v1.2", "open-sora-plan", "AutoencoderKLWan"]
ON_GPU = torch.cuda.is_available()
WIDTH = 128 if ON_GPU else 32
SIZES = [(256, 256), (480, 848), (720, 1280)] if ON_GPU else [(64, 64), (128, 128), (192, 320)]
CHUNKS, PAIRS, LEAST_S = 2, 7, 0.7


@dataclass(frozen=True)
class Cost:
    """What one pass over the chunks took."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Print chunks per second and CPU-seconds per chunk of both, and their ratio, by family and resolution."""
    print(f"{'':>32}  {'chunks/s':>16}  {'CPU-s a chunk':>16}   time, of the plain loop's")
    print(f"{'':>32}  {'ours':>7} {'plain':>8}  {'ours':>7} {'plain':>8}   (median of {PAIRS} pairs)")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            knobs = publish(family, Path(folder), WIDTH)
            asked = Asked(dtype="bfloat16" if ON_GPU else "float32", posterior="mean")
            vae = describe_vae(knobs["recipe.vae"], knobs.get("recipe.vae_path"), asked).load()
            vae = vae.to("cuda" if ON_GPU else "cpu")
        for height, width in SIZES:
            _compare(family, vae, height, width)


def _compare(family: str, vae: VideoVAE, height: int, width: int) -> None:
    pixels = torch.rand(CHUNKS, 3, vae.spec.chunk_frames, height, width, device=vae.device) * 2 - 1
    ours, plain = (lambda: encode(vae, pixels)), (lambda: plain_loop(vae, pixels))
    torch.testing.assert_close(ours(), plain(), atol=0.05 if ON_GPU else 1e-4, rtol=0)  # and both are warm now
    repeats = max(1, round(LEAST_S / measure(ours, 1).wall_s))  # what is short is measured several times over
    pairs = [(measure(ours, repeats), measure(plain, repeats)) for _ in range(PAIRS)]
    medians = [
        [statistics.median(getattr(pair[side], name) for pair in pairs) for side in (0, 1)]
        for name in ("wall_s", "cpu_s")
    ]
    ratio = statistics.median(one.wall_s / other.wall_s for one, other in pairs)
    (wall, plain_wall), (cpu, plain_cpu) = medians
    where = f"{family} {height}x{width}"
    print(
        f"{where:>32}  {CHUNKS / wall:7.2f} {CHUNKS / plain_wall:8.2f}  {cpu / CHUNKS:7.3f} {plain_cpu / CHUNKS:8.3f}"
        f"   {ratio:.2f}x",
        flush=True,
    )


@torch.inference_mode()
def encode(vae: VideoVAE, pixels: Tensor) -> Tensor:
    """Ours."""
    return vae.encode(pixels)


@torch.no_grad()
def plain_loop(vae: VideoVAE, pixels: Tensor) -> Tensor:
    """Chunk after chunk, and attention by matrix products."""
    spec = vae.spec
    with sdpa_kernel(SDPBackend.MATH):
        raw = torch.cat([plain_mean(vae, chunk[None].to(DTYPES[spec.dtype])) for chunk in pixels]).float()
    return (raw * spec.scaling_factor - per_channel(raw, spec.shift)) / per_channel(raw, spec.scale)


def plain_mean(vae: VideoVAE, chunk: Tensor) -> Tensor:
    """Pixels (1, 3, F, H, W) -> raw posterior mean (1, c, f, h, w)."""
    if isinstance(vae, FrameVAE):
        return frames_by_four(vae.kl, chunk)
    if isinstance(vae, OpenSoraVAE):
        return vae.temporal_vae.encode(frames_by_four(vae.spatial_vae, chunk) * BETWEEN)[0]
    return vae.raw_moments(chunk)[0]


def frames_by_four(kl: FrameAutoencoder, chunk: Tensor) -> Tensor:
    """Pixels (1, 3, F, H, W) -> posterior mean of each frame (1, c, F, h, w), by diffusers' own `encode`."""
    frames = rearrange(chunk, "1 c f h w -> f c h w").contiguous()
    means = torch.cat([kl.module.encode(some).latent_dist.mode() for some in frames.split(4)])
    return rearrange(means, "f c h w -> 1 c f h w")


def measure(work: Callable[[], Tensor], repeats: int) -> Cost:
    """Seconds of the clock, and of this process on all its cores, for one `work`."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    if ON_GPU:
        torch.cuda.synchronize()
    return Cost((time.perf_counter() - began_s) / repeats, (time.process_time() - began_cpu_s) / repeats)
