"""STDiT3 forward and backward, beside the same model with attention written the plain way: interleaved pairs, medians.

Plain is what one would write first: scores as a matrix, softmax in float32, all captions of a batch packed into one
row behind a block-diagonal mask. Everything else is the same code, so the ratio is attention's share of the gain.
Where there is a GPU, also the model FLOPs utilization (MFU) of STDiT3-XL/2 in bf16.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from models.dit import DITS
from models.dit.flops import mfu, num_tokens, training_flops
from models.dit.layers import CrossAttention
from models.dit.stdit3 import STDiT3, STDiT3Config

PAIRS = 7
SMALL = STDiT3Config(hidden_size=192, depth=1, num_heads=4, caption_channels=64, max_text_tokens=60)
TEXT_TOKENS = 60
PEAK_BF16_FLOPS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}  # dense
WARM_UPS, STEPS = 3, 10  # on a GPU


class Bucket(NamedTuple):
    """Videos of one size; `num_chunks` 0 is an image."""

    name: str
    batch: int
    num_chunks: int
    height: int  # pixels
    width: int

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        return self.batch, 4, max(1, 5 * self.num_chunks), self.height // 8, self.width // 8


SMALL_BUCKETS = [
    Bucket("256x256 images", 4, 0, 256, 256),
    Bucket("144p, 3 chunks", 2, 3, 144, 256),
    Bucket("240p, 1 chunk", 2, 1, 240, 426),
    Bucket("720p, image", 1, 0, 720, 1280),
]
LARGE_BUCKETS = [
    Bucket("256x256, 3 chunks", 4, 3, 256, 256),
    Bucket("480p, 3 chunks", 1, 3, 480, 854),
    Bucket("720p, 1 chunk", 1, 1, 720, 1280),
]


def main() -> None:
    """Print tokens per second and CPU time of both, and their ratio; on a GPU also MFU."""
    torch.manual_seed(0)
    ours = STDiT3(SMALL)
    plain = written_plainly(ours)
    print(f"STDiT3 with {SMALL.hidden_size} channels, {SMALL.depth} pair of blocks, {torch.get_num_threads()} threads")
    for bucket in SMALL_BUCKETS:
        compare(bucket, ours, plain)
    if torch.cuda.is_available():
        peak = next((flops for name, flops in PEAK_BF16_FLOPS.items() if name in torch.cuda.get_device_name()), None)
        for checkpoint_blocks in (False, True):
            for compiled in (False, True):
                measure_large(DITS["stdit3-xl/2"], checkpoint_blocks, compiled, peak)


def compare(bucket: Bucket, ours: STDiT3, plain: STDiT3) -> None:
    """Both models on the same input; they must agree before they are timed."""
    given = inputs(bucket, SMALL)
    torch.testing.assert_close(ours(**given), plain(**given), atol=1e-4, rtol=0)
    train(ours, given)
    train(plain, given)
    pairs = [(measure(lambda: train(ours, given)), measure(lambda: train(plain, given))) for _ in range(PAIRS)]
    tokens = num_tokens(SMALL, bucket.latents)
    shown = []
    for runs in zip(*pairs):
        wall_s, cpu_s = (statistics.median(column) for column in zip(*runs))
        shown.append(f"{tokens / wall_s:7.0f} tokens/s {1e6 * cpu_s / tokens:6.1f} CPU-ms/1000 tokens")
    ratio = statistics.median(plain_s / ours_s for (ours_s, _), (plain_s, _) in pairs)
    print(f"{bucket.name:>16} ({tokens:5} tokens): ours {shown[0]}, plain {shown[1]}, ratio {ratio:.2f}")


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process)."""
    before_cpu_s, before_s = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - before_s, time.process_time() - before_cpu_s


def train(model: STDiT3, given: dict[str, Any]) -> None:
    """Forward and backward, without an optimizer."""
    model(**given).square().mean().backward()
    model.zero_grad()


def inputs(bucket: Bucket, config: STDiT3Config, device: str = "cpu") -> dict[str, Any]:
    """Noise, and captions of about half the longest length: (latents, timestep, text, ...)."""
    batch = bucket.batch
    lengths = TEXT_TOKENS - torch.arange(batch, device=device) * TEXT_TOKENS // (2 * batch)
    return {
        "latents": torch.randn(bucket.latents, device=device),
        "timestep": torch.linspace(100, 900, batch, device=device),
        "text": torch.randn(batch, TEXT_TOKENS, config.caption_channels, device=device),
        "text_mask": torch.arange(TEXT_TOKENS, device=device) < rearrange(lengths, "b -> b 1"),
        "fps": torch.full((batch,), 24.0, device=device),
        "height": torch.full((batch,), float(bucket.height), device=device),
        "width": torch.full((batch,), float(bucket.width), device=device),
    }


def written_plainly(model: STDiT3) -> STDiT3:
    """The same weights, attention as one would write it first."""
    plain = copy.deepcopy(model)
    for block in (*plain.spatial_blocks, *plain.temporal_blocks):
        block.attn.attend = plain_attention  # pyright: ignore
        packed = PackedCrossAttention(model.config.hidden_size, model.config.num_heads)
        packed.load_state_dict(block.cross_attn.state_dict())  # pyright: ignore
        block.cross_attn = packed
    return plain


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each (b, heads, n, d) -> (b, heads, n, d); `mask` (n, keys) is added to the scores."""
    scores = (q * q.shape[-1] ** -0.5 @ k.mT).float()
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v


class PackedCrossAttention(CrossAttention):
    """All tokens of the batch look at all its captions in one row; a mask keeps each to its own."""

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        samples, places = text_mask.nonzero(as_tuple=True)  # (all text tokens,) each
        owners = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])  # (B * n,)
        mask = torch.zeros(len(owners), len(samples), device=x.device)
        mask = mask.masked_fill(rearrange(owners, "n -> n 1") != samples, float("-inf"))
        q = rearrange(self.q_linear(x), "b n (heads d) -> 1 heads (b n) d", heads=self.num_heads)
        kv = rearrange(
            self.kv_linear(text[samples, places]), "l (two heads d) -> two 1 heads l d", two=2, d=q.shape[-1]
        )
        k, v = kv.unbind(0)
        seen = plain_attention(q, k, v, mask)
        return self.proj(rearrange(seen, "1 heads (b n) d -> b n (heads d)", b=len(x)))


def measure_large(config: STDiT3Config, checkpoint_blocks: bool, compiled: bool, peak_flops: float | None) -> None:
    """Tokens per second and MFU of a model in bf16 on the GPU, for each large bucket that fits into its memory."""
    torch.compiler.reset()  # blocks share their code, and so its limit of compilations
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = STDiT3(config).bfloat16()
    model.checkpoint_blocks = checkpoint_blocks
    if compiled:
        for block in (*model.spatial_blocks, *model.temporal_blocks):
            block.compile(dynamic=False)
    for bucket in LARGE_BUCKETS:
        name = f"{bucket.name}, checkpointing {'on' if checkpoint_blocks else 'off'}{', compiled' if compiled else ''}"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step_s = gpu_seconds(model, inputs(bucket, config, "cuda"))
        except torch.cuda.OutOfMemoryError:
            model.zero_grad()
            print(f"{name}: does not fit into memory")
            continue
        work = training_flops(config, bucket.latents, TEXT_TOKENS)
        used = f"MFU {mfu(work, step_s, peak_flops):.1%}" if peak_flops else f"{work / step_s / 1e12:.0f} TFLOP/s"
        memory_gib = torch.cuda.max_memory_allocated() / 2**30
        print(f"{name}: {num_tokens(config, bucket.latents) / step_s:.0f} tokens/s, {used}, {memory_gib:.1f} GiB")


def gpu_seconds(model: STDiT3, given: dict[str, Any]) -> float:
    """Median seconds of a forward and backward pass."""
    seconds = []
    for _ in range(WARM_UPS + STEPS):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        train(model, given)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds[WARM_UPS:])
