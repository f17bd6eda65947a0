"""Weights in and out, as safetensors and nothing else: a pickle runs code when it is read."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LISTED = 12  # names of each kind in an error message: enough to see the pattern


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: readers see the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A state dict -> one safetensors file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda aside: save_file(plain, aside, metadata={"format": "pt"}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file -> its tensors on the CPU; ValueError for any other format."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); pickled checkpoints are refused because reading one can run "
            f"any code: convert it with safetensors.torch.save_file where you trust it"
        ) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file, casting to the model's dtypes; a model on the meta device comes alive.

    Raises ValueError, and changes nothing, unless the file has exactly the model's names and shapes.
    """
    found, own = read_weights(path), model.state_dict()
    wrong = {
        "missing": sorted(own.keys() - found.keys()),
        "unexpected": sorted(found.keys() - own.keys()),
        "mis-shaped": [
            f"{name} {list(found[name].shape)} instead of {list(own[name].shape)}"
            for name in sorted(own.keys() & found.keys())
            if found[name].shape != own[name].shape
        ],
    }
    if any(wrong.values()):
        raise ValueError(f"{path} does not fit {type(model).__name__}: {_listed(wrong)}; build the model it came from")
    cast = {name: found[name].to(tensor.dtype) for name, tensor in own.items()}
    # Meta tensors have no storage to copy into, so they are replaced; others stay the ones an optimizer may hold.
    model.load_state_dict(cast, assign=any(tensor.is_meta for tensor in own.values()))


def _listed(kinds: Mapping[str, list[str]]) -> str:
    """{"missing": [a, b]} -> "2 missing (a, b)", each list cut after the first names."""
    parts = []
    for kind, names in kinds.items():
        if names:
            rest = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:LISTED])}{rest})")
    return "; ".join(parts)
