"""`vae --explain`: what a VAE makes of frames, and where its numbers come from."""

from rich.console import Console
from rich.table import Table

from jobs.config import ConfigError
from models.latent_spec import LatentSpec
from models.vae.description import Description
from models.vae.published import explain_vae

FRAMES_SHOWN = 40


def explain(name_or_path: str) -> None:
    """Print the geometry, the numbers with their origins, and frames -> latents for 1 to 40 frames."""
    try:
        description = explain_vae(name_or_path)
    except ValueError as error:
        raise ConfigError(f"--explain: {error}") from error
    spec = description.spec
    console = Console()
    console.print(f"[bold]{spec.vae}[/]: {headline(spec)}", highlight=False)
    numbers = Table("number", "value", "where it comes from", box=None, padding=(0, 2, 0, 0))
    for row in number_rows(description):
        numbers.add_row(*row)
    console.print(numbers)
    frames = Table("frames", "latents", "how", box=None, padding=(0, 2, 0, 0))
    for row in frame_rows(description, FRAMES_SHOWN):
        frames.add_row(*row)
    console.print(frames)


def headline(spec: LatentSpec) -> str:
    """The geometry in a sentence."""
    frames, height, width = spec.stride
    return (
        f"{spec.channels} channels, one latent per {frames}x{height}x{width} pixels (frames, height, width), "
        f"encoded in chunks of {spec.chunk_frames} frames -> {spec.chunk_latents} latents; "
        f"normalized = (raw * scaling_factor - shift) / scale"
    )


def number_rows(description: Description) -> list[tuple[str, str, str]]:
    """(name, value, origin) of every number that decides a latent's value."""
    spec, origins = description.spec.to_dict(), description.origins
    named = ["scaling_factor", "shift", "scale"]
    rows = [(name, _shown(spec[name]), origins.get(name, "")) for name in named]
    rows += [(name, "", origin) for name, origin in origins.items() if name not in spec]
    rows += [(name, _shown(spec[name]), origins.get(name, "")) for name in ("dtype", "posterior")]
    return [*rows, *((name, str(spec[name])[:16], "") for name in ("config_sha256", "weights_sha256") if spec[name])]


def frame_rows(description: Description, most: int) -> list[tuple[str, str, str]]:
    """(frames, latents, grouping) for 1 to `most` frames."""
    spec, step = description.spec, description.frame_step or description.spec.stride[0]
    rows = []
    for frames in range(1, most + 1):
        whole, rest = divmod(frames, spec.chunk_frames)
        lost = (rest - 1) % step if rest else 0
        if lost:
            what = f"refused: {lost} would be lost; {frames - lost} or {frames - lost + step}"
            rows.append((str(frames), "-", what))
            continue
        parts = [spec.chunk_frames] * whole + [rest] * (rest > 0)
        before = " | ".join(grouping(part, spec.stride[0]) for part in parts)
        after = " | ".join(grouping_of_latents(part, spec) for part in parts)
        rows.append((str(frames), str(spec.latent_frames(frames)), f"{before} -> {after}"))
    return rows


def grouping(frames: int, stride: int) -> str:
    """How the frames of one chunk meet in latents: 17 -> 1+4+4+4+4. A count that is not 1+4n stays whole."""
    if stride == 1:
        return f"{frames} x 1" if frames > 1 else "1"
    groups, rest = divmod(frames - 1, stride)
    return str(frames) if rest else "+".join(["1", *[str(stride)] * groups])


def grouping_of_latents(frames: int, spec: LatentSpec) -> str:
    """The latents of one chunk: the first frame's, and the others': 17 -> 1+4."""
    latents = spec.latent_frames(frames)
    first_is_alone = spec.stride[0] > 1 and latents > 1 and (frames - 1) % spec.stride[0] == 0
    return f"1+{latents - 1}" if first_is_alone else str(latents)


def _shown(value: object) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
