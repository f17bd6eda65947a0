"""The default VAE, `dct`: a fixed orthonormal transform that keeps the strongest coefficients. It has no weights.

Decoding what was encoded is the orthogonal projection of the pixels on the kept coefficients.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from models.latent_spec import LatentSpec
from models.vae.description import DEFAULT_CHUNK_FRAMES, Asked, Description, digest
from models.vae.interface import VideoVAE

STRIDE = (4, 8, 8)
DEFAULT_CHANNELS = 16
MAX_CHANNELS = 64

# Rows are orthogonal; each is divided by its length. Y is luma, R is red against blue, M is magenta against green.
COLOURS = {"Y": (1, 1, 1), "R": (1, 0, -1), "M": (1, -2, 1)}

# The order of the coefficients, the most energetic first: colour and frequency in t, y, x; then shift and scale.
# Rows 0..63 are the channels. Later rows serve lone first frames only (see `frame_coefficients`), so their t is 0.
#
# Measured by `PYTHONPATH=. python tests/benchmarks/measure_dct.py DIR` on 17-frame chunks, at 24 fps and cropped to
# 128x128 and 256x256, of four filmed clips and, at a tenth of their weight, two of saturated colour bars (the script
# says which and why). Scale is the standard deviation over blocks of four frames, of pixels in [-1, 1]. Shift is the
# mean of the three averages; the mean of any other coefficient is chance and counts as 0.
TABLE_TEXT = """
Y000 -10.7 14.6, R000 1.89 4.99, M000 0.666 3.99, Y001 0 2.59, Y010 0 2.24
Y100 0 1.34, Y002 0 1.15, Y020 0 1.06, Y011 0 1.05, R001 0 0.885
M001 0 0.793, Y200 0 0.697, Y003 0 0.694, Y101 0 0.661, Y012 0 0.648
Y110 0 0.645, Y021 0 0.642, Y030 0 0.634, R010 0 0.573, R100 0 0.542
Y300 0 0.469, Y004 0 0.458, Y022 0 0.457, Y031 0 0.444, Y013 0 0.436
Y201 0 0.429, Y120 0 0.419, Y040 0 0.418, Y102 0 0.414, M002 0 0.403
R002 0 0.398, Y111 0 0.397, Y210 0 0.359, M010 0 0.355, Y041 0 0.322
M100 0 0.319, Y032 0 0.315, Y023 0 0.314, Y014 0 0.297, Y112 0 0.293
Y202 0 0.286, Y121 0 0.282, Y310 0 0.281, Y050 0 0.28, Y130 0 0.273
Y301 0 0.271, Y005 0 0.27, Y220 0 0.267, M003 0 0.256, Y103 0 0.256
R011 0 0.249, Y211 0 0.247, R110 0 0.246, Y033 0 0.244, R003 0 0.243
R020 0 0.237, Y024 0 0.226, Y042 0 0.225, Y051 0 0.216, Y320 0 0.214
R200 0 0.207, Y122 0 0.205, Y113 0 0.204, M004 0 0.198, Y015 0 0.196
Y006 0 0.186, R004 0 0.179, M020 0 0.172, Y034 0 0.168, Y052 0 0.167
M011 0 0.165, Y043 0 0.164, Y060 0 0.163, Y025 0 0.153, M005 0 0.151
Y061 0 0.148, R030 0 0.133, R012 0 0.133, R021 0 0.129, Y016 0 0.129
Y007 0 0.127, R005 0 0.124, Y044 0 0.123, Y070 0 0.118, Y053 0 0.118
Y035 0 0.114, Y062 0 0.112, Y026 0 0.107, M006 0 0.106, Y071 0 0.101
"""


class Coefficient(NamedTuple):
    """One row of the table: a frequency of one colour axis, with the mean and standard deviation it has in video."""

    colour: str
    t: int
    y: int
    x: int
    shift: float
    scale: float


def read_table(text: str) -> tuple[Coefficient, ...]:
    """`Y000 -1.5 12.3, R000 ...` -> rows."""
    rows = []
    for entry in text.replace("\n", ",").split(","):
        if entry.strip():
            (colour, t, y, x), shift, scale = entry.split()
            rows.append(Coefficient(colour, int(t), int(y), int(x), float(shift), float(scale)))
    return tuple(rows)


TABLE = read_table(TABLE_TEXT)


def frame_coefficients(channels: int) -> tuple[Coefficient, ...]:
    """What each channel holds of a lone first frame, as rows of the table, all with t = 0.

    A channel without motion holds the same spatial frequency as in a group of four frames. The others would hold
    nothing, so each takes the next motionless row of the table that no channel holds.
    """
    spare = (row for row in TABLE[channels:] if row.t == 0)
    return tuple(row if row.t == 0 else next(spare) for row in TABLE[:channels])


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II, (frequency, position), float64."""
    index = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * torch.outer(index, index + 0.5))
    return waves / waves.norm(dim=1, keepdim=True)


def basis(coefficients: tuple[Coefficient, ...], frames: int) -> Tensor:
    """Orthonormal rows, one per coefficient, over blocks of `frames` frames: (C, 3 * frames * 8 * 8), float64."""
    colour = torch.tensor([COLOURS[row.colour] for row in coefficients], dtype=torch.float64)  # (C, 3)
    colour = colour / colour.norm(dim=1, keepdim=True)
    time = dct_matrix(frames)[[row.t for row in coefficients]]  # (C, frames)
    vertical = dct_matrix(STRIDE[1])[[row.y for row in coefficients]]  # (C, 8)
    horizontal = dct_matrix(STRIDE[2])[[row.x for row in coefficients]]  # (C, 8)
    rows = einsum(colour, time, vertical, horizontal, "n a, n p, n y, n x -> n a p y x")
    return rearrange(rows, "n a p y x -> n (a p y x)")


def group_blocks(pixels: Tensor, frames: int) -> Tensor:
    """Pixels (B, 3, t * frames, h * 8, w * 8) -> blocks (B, t, h, w, 3 * frames * 8 * 8), in the order of `basis`."""
    _, height, width = STRIDE
    return rearrange(pixels, "b a (t p) (h y) (w x) -> b t h w (a p y x)", p=frames, y=height, x=width)


def ungroup_blocks(blocks: Tensor, frames: int) -> Tensor:
    """The inverse of `group_blocks`."""
    _, height, width = STRIDE
    return rearrange(blocks, "b t h w (a p y x) -> b a (t p) (h y) (w x)", p=frames, y=height, x=width, a=len(COLOURS))


class DCTVAE(VideoVAE):
    """Keeps the first `channels` rows of the table; it computes in float32, and its std is always zero.

    A chunk is a lone first frame, then groups of four. A shorter chunk at the end of a clip has a lone first frame only
    if that leaves whole groups; otherwise it is groups from its first frame on, the last one filled up by repeating its
    last frame, which decoding cuts off again. The number of latents is that of `LatentSpec.latent_frames`. Decoding is
    exactly a projection where nothing is repeated: 4n or 1 + 4n frames in the last chunk.
    """

    frame_step = 1

    group_basis: Tensor  # (C, 3 * 4 * 8 * 8), orthonormal rows
    frame_basis: Tensor  # (C, 3 * 8 * 8), orthonormal rows
    frame_gain: Tensor  # (C,)

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec
        self._fill_buffers(torch.device("cpu"))

    def _fill_buffers(self, device: torch.device) -> None:
        rows, lone = TABLE[: self.spec.channels], frame_coefficients(self.spec.channels)
        exact = {
            "group_basis": basis(rows, STRIDE[0]),
            "frame_basis": basis(lone, 1),
            # Two, as in a group that repeats the frame four times; then from the unit of its own row to the channel's.
            "frame_gain": torch.tensor([2 * row.scale / own.scale for row, own in zip(rows, lone, strict=True)]),
        }
        for name, values in exact.items():
            self.register_buffer(name, values.to(device, torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DCTVAE":
        # `.to(bfloat16)` would round the basis until its rows are not orthogonal: follow the device, stay float32.
        super()._apply(fn, recurse)
        self._fill_buffers(self.frame_gain.device)
        return self

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk, whole or shorter, (B, 3, F, H, W) -> coefficients (B, C, f, h, w) and a std of zeros."""
        alone = lone_frames(pixels.shape[2])
        first, groups = pixels[:, :, :alone], pixels[:, :, alone:]  # (B, 3, 0 or 1, H, W), (B, 3, F or F - 1, H, W)
        if missing := -groups.shape[2] % STRIDE[0]:
            groups = torch.cat([groups, repeat(groups[:, :, -1], "b a h w -> b a n h w", n=missing)], dim=2)
        found = (
            group_blocks(first, 1) @ self.frame_basis.T * self.frame_gain,
            group_blocks(groups, 4) @ self.group_basis.T,
        )
        raw = rearrange(torch.cat(found, dim=1), "b t h w c -> b c t h w")
        return raw, torch.zeros_like(raw)

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Coefficients of one chunk (B, C, f, h, w) -> its pixels (B, 3, num_frames, H, W), not clipped to [-1, 1]."""
        alone = lone_frames(num_frames)
        raw = rearrange(latents, "b c t h w -> b t h w c")
        first = ungroup_blocks(raw[:, :alone] / self.frame_gain @ self.frame_basis, 1)  # (B, 3, 0 or 1, H, W)
        groups = ungroup_blocks(raw[:, alone:] @ self.group_basis, STRIDE[0])  # (B, 3, 4 * groups, H, W)
        return torch.cat([first, groups], dim=2)[:, :, :num_frames]


def lone_frames(num_frames: int) -> int:
    """How many frames of a chunk are encoded alone: 1 where whole groups follow (1, 5, .. 17 frames), 0 elsewhere."""
    return int(num_frames % STRIDE[0] == 1)


def describe_dct(argument: str | None, path: str | Path | None, asked: Asked) -> Description:
    """`dct` or `dct:CHANNELS`; ValueError on any other argument and on a path."""
    if path is not None:
        raise ValueError(f"dct has no weights to read from {path}; leave the path out")
    if argument is not None and not (argument.isascii() and argument.isdigit()):
        raise ValueError(f"dct:{argument} is not a number of channels; ask for 1 to {MAX_CHANNELS}, as in dct:32")
    channels = DEFAULT_CHANNELS if argument is None else int(argument)
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"dct cannot keep {channels} channels; ask for 1 to {MAX_CHANNELS}, as in dct:32")
    measured = "measured on filmed clips: the table in models/vae/dct.py"
    normalization = asked.normalization(
        channels,
        scaling_factor=(1.0, "an orthonormal transform needs none"),
        shift=([row.shift for row in TABLE[:channels]], measured),
        scale=([row.scale for row in TABLE[:channels]], measured),
    )
    spec = LatentSpec(
        vae="dct" if channels == DEFAULT_CHANNELS else f"dct:{channels}",
        channels=channels,
        stride=STRIDE,
        chunk_frames=asked.chunk_frames or DEFAULT_CHUNK_FRAMES,
        **normalization.values,
        dtype="float32",  # a rounded basis is not orthogonal
        posterior=asked.posterior or "mean",
        config_sha256=digest(STRIDE),
        weights_sha256=digest([COLOURS, TABLE]),
    )
    return Description(spec, normalization.origins, lambda: DCTVAE(spec), DCTVAE.frame_step)
