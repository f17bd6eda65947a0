"""Diffusion transformers by name: build one, save one, load one."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from models.dit.stdit3 import STDiT3, STDiT3Config
from models.weights import load_weights, save_weights, write_whole

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
    folder = Path(folder)
    save_weights(model.state_dict(), folder / "model.safetensors")
    config = json.dumps(asdict(model.config), indent=2) + "\n"
    write_whole(folder / "config.json", lambda aside: _write_text(aside, config))


def load_dit(folder: Path | str) -> STDiT3:
    """A folder that `save_dit` wrote -> the model, in float32 on the CPU, no random number drawn.

    Raises ValueError where the config has unknown fields or the weights do not fit it.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    _refuse_unknown(config, str(folder / "config.json"))
    config["patch_size"] = tuple(config.get("patch_size", STDiT3Config.patch_size))
    with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
        model = STDiT3(STDiT3Config(**config))
    load_weights(model, folder / "model.safetensors")
    return model


def _refuse_unknown(config: dict[str, Any], where: str) -> None:
    known = [field.name for field in fields(STDiT3Config)]
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; known are {', '.join(known)}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
