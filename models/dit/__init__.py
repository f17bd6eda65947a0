"""Diffusion transformers by name: build one, save one, load one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dit.published import translate
from models.dit.stdit3 import STDiT3, STDiT3Config
from models.hub import locate
from models.weights import find_file, load_weights, read_config, save_weights, write_whole

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
    _refuse_unknown(overrides, f"DiT {name}")
    return STDiT3(replace(DITS[name], **overrides))


def save_dit(model: STDiT3, folder: Path | str) -> None:
    """Write config.json and model.safetensors, each whole; the config comes last and marks the folder complete."""
    save_dit_weights(model.state_dict().items(), asdict(model.config), Path(folder))


def save_dit_weights(tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], folder: Path) -> None:
    """As `save_dit`, from names and tensors and the fields of STDiT3Config."""
    save_weights(dict(tensors), folder / "model.safetensors")
    text = json.dumps(config, indent=2) + "\n"
    write_whole(folder / "config.json", lambda aside: _write_text(aside, text))


def load_dit(path: Path | str) -> STDiT3:
    """A folder that `save_dit` wrote, or Open-Sora v1.2's STDiT3 as published: its folder, or its hub id -> the model.

    In float32 on the CPU; no random number is drawn. Raises ValueError where there is no such folder, the config has
    fields we do not know or cannot honour, or the weights do not fit it.
    """
    weights = find_file(locate(path, ["config.json", "model.safetensors"]), ["model.safetensors"])
    where = weights.with_name("config.json")
    values = read_config(where)
    if "model_type" in values:  # what transformers writes into every config of its own
        values = translate(values, str(where))
    with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
        model = STDiT3(_config(values, str(where)))
    load_weights(model, weights)
    return model


def _config(values: dict[str, Any], where: str) -> STDiT3Config:
    """Plain JSON values -> the config; ValueError where a field is unknown, or one without default is missing."""
    _refuse_unknown(values, where)
    needed = [field.name for field in fields(STDiT3Config) if field.default is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where}: has no {', '.join(missing)}; give the config.json that belongs to the weights")
    return STDiT3Config(**{**values, "patch_size": tuple(values.get("patch_size", STDiT3Config.patch_size))})


def _refuse_unknown(values: dict[str, Any], where: str) -> None:
    known = [field.name for field in fields(STDiT3Config)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; known are {', '.join(known)}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
