"""The interface every VAE has: pixels in, normalized latents out, and back. Raw latents never leave a VAE's file."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from einops import rearrange
from torch import Tensor, nn

from models.latent_spec import LatentSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What activations may take at once, by device. A CPU is fastest with little, where its caches hold the maps of a layer
# and the allocator keeps their memory: 17 frames at once took 2.8 times as long as by fours (LOG.md).
MEMORY_BYTES = {"cpu": 28 * 2**20, "cuda": 4 * 2**30}

Generators = Sequence[torch.Generator]  # one per sample of a batch


class VideoVAE(nn.Module):
    """A video VAE whose latents are always normalized.

    A family sets `spec` and writes `raw_moments` and `raw_decode`, which see one chunk at a time and know nothing of
    normalization. Checks, chunks, memory and normalization are here, once for all families. Chunks of
    `spec.chunk_frames` frames are independent of each other, so the latents of a long clip are the latents of its
    chunks, concatenated in time.
    """

    spec: LatentSpec
    frame_step: int | None = None  # a chunk has 1 + frame_step * n frames; 1 = any number, None = the stride in time
    bytes_per_pixel: int = 0  # of activations while a chunk is encoded, per pixel of a frame; 0 = too few to mind
    memory_bytes: int | None = None  # of activations at once; None = as MEMORY_BYTES has it for the device

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, F, H, W) of one chunk or a shorter one -> raw posterior mean and std (B, c, f, h, w).

        Pixels come in `spec.dtype`, on the VAE's device. No scaling factor, shift or scale; the std by `std_of`.
        """
        raise NotImplementedError

    def raw_sample(self, pixels: Tensor, generators: Generators) -> Tensor:
        """Pixels (B, 3, F, H, W) of one chunk or a shorter one -> a raw posterior sample (B, c, f, h, w), float32."""
        mean, std = self.raw_moments(pixels)
        return mean.float() + std.float() * draw_noise(mean.shape, generators).to(mean.device)

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Raw latents (B, c, f, h, w) of one chunk or a shorter one -> pixels (B, 3, num_frames, H, W).

        Latents come in `spec.dtype`, on the VAE's device; so may the pixels.
        """
        raise NotImplementedError

    def modules_to_compile(self) -> list[nn.Module]:
        """The modules that `raw_moments` and `raw_decode` call; torch.compile works on each by itself."""
        return []

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def memory(self) -> int:
        """Bytes for activations: decides how many chunks, and in two dimensions frames, go together."""
        return self.memory_bytes or MEMORY_BYTES.get(self.device.type, MEMORY_BYTES["cuda"])

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, T, H, W) in [-1, 1] -> posterior mean and std, both normalized, (B, c, t, h, w) float32.

        Normalizing the std divides by scale only: shift touches the mean alone. ValueError on pixels that do not fit.
        """
        self.check_pixels(pixels)
        dtype = DTYPES[self.spec.dtype]

        def encode(chunks: Tensor, rows: list[int]) -> Tensor:
            mean, std = self.raw_moments(chunks.to(dtype))
            return torch.cat([self._normalize(mean), self._normalize_std(std)], dim=1)  # (B, 2c, f, h, w)

        at_once = self._chunks_at_once(pixels.shape[3] * pixels.shape[4])
        mean, std = self._by_chunk(pixels, self.spec.chunk_frames, at_once, encode).chunk(2, dim=1)
        return mean, std

    def encode(self, pixels: Tensor, generators: Generators | None = None) -> Tensor:
        """Pixels (B, 3, T, H, W) in [-1, 1] -> normalized latents (B, c, t, h, w), float32.

        A posterior sample with `generators`, one per row, so that a sample does not depend on its batch; the posterior
        mean without. ValueError on pixels that do not fit.
        """
        if generators is None:
            return self.moments(pixels)[0]
        self.check_pixels(pixels)
        if len(generators) != len(pixels):
            raise ValueError(f"{len(generators)} generators for a batch of {len(pixels)}; give one per row")
        dtype = DTYPES[self.spec.dtype]

        def encode(chunks: Tensor, rows: list[int]) -> Tensor:
            return self._normalize(self.raw_sample(chunks.to(dtype), [generators[row] for row in rows]))

        at_once = self._chunks_at_once(pixels.shape[3] * pixels.shape[4])
        return self._by_chunk(pixels, self.spec.chunk_frames, at_once, encode)

    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Normalized latents (B, c, t, h, w) -> `num_frames` frames of pixels (B, 3, T, H, W), about [-1, 1], float32.

        ValueError unless the latents have this VAE's channels and the count that `num_frames` frames have.
        """
        self.check_latents(latents, num_frames)
        whole, rest = self.spec.chunk_latents, num_frames % self.spec.chunk_frames

        def decode(chunks: Tensor, rows: list[int]) -> Tensor:
            frames = self.spec.chunk_frames if chunks.shape[2] == whole else rest  # fewer latents are fewer frames
            return self.raw_decode(self._denormalize(chunks), frames).float()

        _, height, width = self.spec.stride
        at_once = self._chunks_at_once(latents.shape[3] * height * latents.shape[4] * width)
        return self._by_chunk(latents, whole, at_once, decode)

    def check_pixels(self, pixels: Tensor) -> None:
        """ValueError unless these are pixels (B, 3, T, H, W) that this VAE can encode whole."""
        spec = self.spec
        if pixels.ndim != 5 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}, {spec.vae} wants (B, 3, T, H, W); give an image as a "
                f"video of one frame, and grey as three equal channels"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixels are {pixels.dtype}, {spec.vae} wants floats in [-1, 1]; use uint8 / 127.5 - 1")
        if pixels.shape[2] < 1:
            raise ValueError(f"{spec.vae} was given no frames, it wants one or more; leave empty clips out")
        self.check_frames(pixels.shape[2])
        spec.latent_shape(*pixels.shape[2:])  # raises where the stride does not divide the size

    def check_latents(self, latents: Tensor, num_frames: int) -> None:
        """ValueError unless these are normalized latents (B, c, t, h, w) of `num_frames` frames."""
        spec = self.spec
        if latents.ndim != 5 or latents.shape[1] != spec.channels:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, {spec.vae} wants (B, {spec.channels}, t, h, w); "
                f"decode them with the VAE of their recipe"
            )
        self.check_frames(num_frames)
        if num_frames < 1 or latents.shape[2] != spec.latent_frames(num_frames):
            raise ValueError(
                f"{num_frames} frames are {spec.latent_frames(num_frames)} latents in {spec.vae}, found "
                f"{latents.shape[2]}; give the number of frames that were encoded"
            )

    def check_frames(self, num_frames: int) -> None:
        """ValueError where frames would be lost behind the whole chunks."""
        spec, step = self.spec, self.frame_step or self.spec.stride[0]
        rest = num_frames % spec.chunk_frames
        lost = (rest - 1) % step if rest else 0
        if lost:
            raise ValueError(
                f"{num_frames} frames: {rest} are left after whole chunks of {spec.chunk_frames}, and {spec.vae} takes "
                f"1+{step}n, the first frame alone and the others {step} at a time; the last {lost} would be lost: "
                f"give {num_frames - lost} or {num_frames - lost + step}"
            )

    def _chunks_at_once(self, frame_pixels: int) -> int:
        return items_at_once(self.bytes_per_pixel * self.spec.chunk_frames * frame_pixels, self.memory)

    def _by_chunk(
        self, video: Tensor, length: int, at_once: int, work: Callable[[Tensor, list[int]], Tensor]
    ) -> Tensor:
        """Cut (B, ., T, H, W) in time into chunks of `length`, let `work` see them as rows of a batch, and join.

        `work` gets `at_once` rows, and for each the row of the video that it comes from. What is left after the last
        whole chunk goes by itself.
        """
        whole, rows = video.shape[2] // length, list(range(len(video)))
        body, tail = video[:, :, : whole * length], video[:, :, whole * length :]

        def in_groups(chunks: Tensor, rows: list[int]) -> Tensor:
            groups = range(0, len(chunks), at_once)
            return torch.cat([work(chunks[at : at + at_once], rows[at : at + at_once]) for at in groups])

        parts = []
        with torch.autocast(self.device.type, enabled=False):  # the recipe says the dtype, not the caller
            if whole:
                chunks = rearrange(body, "b c (k f) h w -> (b k) c f h w", k=whole)
                done = in_groups(chunks, [row for row in rows for _ in range(whole)])
                parts.append(rearrange(done, "(b k) c f h w -> b c (k f) h w", k=whole))
            if tail.shape[2]:
                parts.append(in_groups(tail, rows))
        return torch.cat(parts, dim=2)

    def _normalize(self, raw: Tensor) -> Tensor:
        """Raw latents (B, c, t, h, w) -> normalized, float32."""
        spec = self.spec
        return (raw.float() * spec.scaling_factor - per_channel(raw, spec.shift)) / per_channel(raw, spec.scale)

    def _normalize_std(self, raw: Tensor) -> Tensor:
        """Raw standard deviations (B, c, t, h, w) -> normalized, float32."""
        return raw.float() * self.spec.scaling_factor / per_channel(raw, self.spec.scale)

    def _denormalize(self, latents: Tensor) -> Tensor:
        """Normalized latents (B, c, t, h, w) -> raw, in the dtype that the VAE computes in."""
        spec = self.spec
        raw = latents.float() * per_channel(latents, spec.scale) + per_channel(latents, spec.shift)
        return (raw / spec.scaling_factor).to(DTYPES[spec.dtype])


def per_channel(latents: Tensor, values: Sequence[float]) -> Tensor:
    """One number per channel -> (C, 1, 1, 1) float32, where `latents` (B, C, t, h, w) are."""
    return rearrange(torch.tensor(values, dtype=torch.float32, device=latents.device), "c -> c 1 1 1")


def items_at_once(item_bytes: int, memory_bytes: int) -> int:
    """How many items of a batch to take together; at least one. The plan alone decides, never what memory is free."""
    return max(1, memory_bytes // max(1, item_bytes))


def draw_noise(shape: Sequence[int], generators: Generators) -> Tensor:
    """Normal noise of a batch (B, ...), float32: row by row from each one's generator, where that generator lives."""
    rows = [torch.randn(tuple(shape[1:]), generator=one, device=one.device) for one in generators]
    return torch.stack(rows)


def std_of(logvar: Tensor) -> Tensor:
    """Log variance -> standard deviation, float32, within the bounds that all these VAEs were trained with."""
    return torch.exp(0.5 * logvar.float().clamp(-30, 20))
