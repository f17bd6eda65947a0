"""Weights in and out, as safetensors: a pickle runs code when it is read."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Key = TypeVar("Key")
LISTED = 12  # names of each kind in an error message: enough to see the pattern
WHOLE, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
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


def split_by_bytes(sizes: Mapping[Key, int], most: int) -> list[list[Key]]:
    """What has so many bytes each -> groups of neighbours with at most `most`, at least one group; one that is larger
    is alone."""
    groups: list[list[Key]] = [[]]
    room = most
    for key, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(key)
        room -= size
    return groups


def save_sharded(
    sizes: Mapping[str, int],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """A state dict -> safetensors as transformers writes them: one file, or shards and an index of them.

    `sizes` are the bytes of each tensor. `read` gives those it is asked for; no more than a shard is in memory at a
    time. Files of an earlier state dict are removed: a reader takes the whole file where there is one.
    """
    shards = split_by_bytes(sizes, max_shard_bytes)
    count = len(shards)
    files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    files = files if count > 1 else [WHOLE]
    for stale in (WHOLE, INDEX, SHARDS):
        for path in folder.glob(stale):
            path.unlink()
    for file, names in zip(files, shards, strict=True):
        save_weights(read(names), folder / file)
    if count > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def find_sharded(folder: Path) -> tuple[Path, ...]:
    """The safetensors of one model, all of them there: one file, or those of the index; none where there is neither."""
    if (folder / WHOLE).exists():
        return (folder / WHOLE,)
    if not (folder / INDEX).exists():
        return ()
    names = sorted(set(read_config(folder / INDEX).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing or not names:
        raise ValueError(
            f"{folder / INDEX}: not found beside it: {', '.join(missing) or 'any'}; fetch the folder again"
        )
    return tuple(folder / name for name in names)


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda aside: aside.write_text(text))


def read_weights(path: Path, only: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A safetensors file -> its tensors on the CPU, all or `only` the named ones; ValueError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if only is None or name in only}  # noqa: SIM118
    except SafetensorError as error:
        with path.open("rb") as file:
            is_pickle = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04")  # a zip of torch.save, or its older form
        if is_pickle:
            raise ValueError(
                f"{path} is not a safetensors file; pickled checkpoints are refused because reading one can run any "
                f"code: convert it with safetensors.torch.save_file where you trust it"
            ) from error
        raise ValueError(
            f"{path} is not a safetensors file, or not a whole one ({error}); it may have been cut off: fetch it again"
        ) from error


def load_weights(model: nn.Module, *paths: Path) -> None:
    """Fill `model` from the safetensors files of one state dict; see `fill_weights`."""
    found = {name: tensor for path in paths for name, tensor in read_weights(path).items()}
    fill_weights(model, found, str(paths[0] if len(paths) == 1 else paths[0].parent))


def fill_weights(model: nn.Module, found: Mapping[str, Tensor], origin: str) -> None:
    """Fill `model` from tensors by name, casting to the model's dtypes; a model on the meta device comes alive.

    Raises ValueError, naming `origin`, and changes nothing, unless these are exactly the model's names and shapes.
    """
    own = model.state_dict()
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
        raise ValueError(
            f"{origin} does not fit {type(model).__name__}: {_listed(wrong)}; build the model it came from"
        )
    cast = {name: found[name].to(tensor.dtype) for name, tensor in own.items()}
    # Meta tensors have no storage to copy into, so they are replaced; others stay the ones an optimizer may hold.
    model.load_state_dict(cast, assign=any(tensor.is_meta for tensor in own.values()))


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of `names` (patterns) in `folder`, or `folder` itself where it is such a file; else ValueError."""
    if folder.is_file():
        if not any(Path(folder.name).match(name) for name in names):
            raise ValueError(f"{folder}: not one of {', '.join(names)}; give that file or the folder it is in")
        return folder
    for name in names:
        if found := sorted(folder.glob(name)):
            return found[0]
    here = ", ".join(sorted(path.name for path in folder.iterdir())[:LISTED]) or "nothing"
    raise ValueError(f"{folder}: found {here}; wanted {' or '.join(names)}: give the folder as it was published")


def read_config(path: Path) -> dict[str, Any]:
    """A published config.json; ValueError where it is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: not found; give the folder as it was published, config.json beside the weights"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds {type(config).__name__}, wanted an object of settings; fetch it again")
    return config


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it; read once as long as the file does not change."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, num_bytes: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _listed(kinds: Mapping[str, list[str]]) -> str:
    """{"missing": [a, b]} -> "2 missing (a, b)", each list cut after the first names."""
    parts = []
    for kind, names in kinds.items():
        if names:
            rest = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:LISTED])}{rest})")
    return "; ".join(parts)
