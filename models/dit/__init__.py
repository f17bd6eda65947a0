"""Diffusion transformers by name: build one, save one, load one."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dit.published import as_published, translate
from models.dit.stdit3 import STDiT3, STDiT3Config
from models.hub import locate
from models.weights import (
    INDEX,
    MAX_SHARD_BYTES,
    SHARDS,
    WHOLE,
    find_file,
    find_sharded,
    load_weights,
    read_config,
    save_sharded,
    write_json,
)

DIT_FILES = ["config.json", WHOLE, INDEX, SHARDS]
DITS = {
    "stdit3-xl/2": STDiT3Config(hidden_size=1152, depth=28, num_heads=16),  # the published 1.2 B parameters
    "stdit3-3b/2": STDiT3Config(hidden_size=1872, depth=28, num_heads=26),
    "stdit3-tiny": STDiT3Config(  # 2.4 M parameters: trains on a laptop
        hidden_size=128, depth=4, num_heads=4, in_channels=16, caption_channels=256, max_text_tokens=128
    ),
}


def build_dit(name: str, **overrides: Any) -> STDiT3:
    """A name in `DITS`, with config fields to change -> a model with fresh weights from torch's global generator.

    Raises ValueError for an unknown name or field.
    """
    if name not in DITS:
        raise ValueError(f"no DiT is called {name!r}; known are {', '.join(DITS)}")
    known = [field.name for field in fields(STDiT3Config)]
    if unknown := sorted(overrides.keys() - set(known)):
        raise ValueError(f"DiT {name} has no field {', '.join(unknown)}; known are {', '.join(known)}")
    return STDiT3(replace(DITS[name], **overrides))


def save_dit(model: STDiT3, folder: Path | str) -> None:
    """Write config.json and the weights, each file whole; the config comes last and marks the folder complete."""
    tensors = model.state_dict()
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    save_dit_weights(asdict(model.config), sizes, lambda names: {name: tensors[name] for name in names}, Path(folder))


def save_dit_weights(
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """As `save_dit`, from the fields of STDiT3Config, the bytes of each tensor, and what reads some of them."""
    (folder / "config.json").unlink(missing_ok=True)
    save_sharded(sizes, read, folder, max_shard_bytes)
    write_json(folder / "config.json", as_published(config))


def load_dit(path: Path | str) -> STDiT3:
    """A folder that `save_dit` wrote, or Open-Sora v1.2's STDiT3 as published: its folder, or its hub id -> the model.

    In float32 on the CPU; no random number is drawn. Raises ValueError where there is no such folder, the config has
    fields we do not know or cannot honour, or the weights do not fit it.
    """
    found = locate(path, DIT_FILES)
    weights = () if found.is_file() else find_sharded(found)
    weights = weights or (find_file(found, [WHOLE]),)
    where = weights[0].with_name("config.json")
    values = translate(read_config(where), str(where))
    with torch.device("meta"):  # no memory and no random numbers for weights that the files replace
        model = STDiT3(_config(values, str(where)))
    load_weights(model, *weights)
    return model


def _config(values: dict[str, Any], where: str) -> STDiT3Config:
    """Fields by name -> the config; ValueError where one without default is missing."""
    needed = [field.name for field in fields(STDiT3Config) if field.default is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where}: has no {', '.join(missing)}; give the config.json that belongs to the weights")
    return STDiT3Config(**{**values, "patch_size": tuple(values.get("patch_size", STDiT3Config.patch_size))})
