"""`export`: a checkpoint -> models as folders of safetensors, with all that sampling needs beside them."""

import json
from functools import partial
from math import prod
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from jobs.config import RunConfig
from jobs.progress import say
from jobs.training.checkpoint import UNTRAINED_NAME, read_pieces
from jobs.training.committed import Committed, find_damage, list_committed, read_committed, step_of
from jobs.training.zero_state import MASTER, Piece
from models.dit import save_dit_weights
from models.weights import MAX_SHARD_BYTES, read_weights
from pipeline.errors import Refused
from pipeline.storage import publish

WEIGHTS = {"model": MASTER, "ema": "ema"}  # the folders, and the states that their weights are


def export(config: RunConfig, step: int | None = None, to: Path | None = None) -> int:
    """Write the weights of a checkpoint and their average to `to`/model and `to`/ema; by default the newest one's."""
    folder = config.train.out / "checkpoints"
    found = {step_of(path.name): path for path in list_committed(folder)}
    if not found or (step is not None and step not in found):
        here = ", ".join(map(str, found)) or "none"
        asked = "" if step is None else f" of step {step}"
        raise Refused(f"{folder}: no checkpoint{asked}; there are: {here}; run `train`")
    wanted, into = found[max(found) if step is None else step], to or config.train.out
    export_checkpoint(wanted, into)
    say(f"export: {wanted.name} -> {into / 'model'}, {into / 'ema'}")
    return 0


def export_checkpoint(checkpoint: Path, into: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Both models of a committed checkpoint, as folders below `into`; no more than a shard of one is in memory.

    Refused where a file of the checkpoint is damaged.
    """
    told = read_committed(checkpoint)
    if damage := find_damage(checkpoint, told.files):
        raise Refused(damage)
    untrained = read_weights(checkpoint / UNTRAINED_NAME)
    sizes = {name: prod(shape) * torch.float32.itemsize for name, shape in told.shapes.items()}
    sizes |= {name: tensor.nbytes for name, tensor in untrained.items()}
    facts = {"steps": told.step, **{key: value for key, value in told.facts.items() if key != "model"}}

    for name, state in WEIGHTS.items():
        folder = into / name
        (folder / "trained.json").unlink(missing_ok=True)  # it is the last one, and marks the folder complete
        read = partial(_read, checkpoint, told, untrained, state)
        save_dit_weights(told.facts["model"], sizes, read, folder, max_shard_bytes)
        publish(folder / "trained.json", (json.dumps(facts, indent=2) + "\n").encode())


def _read(
    checkpoint: Path, told: Committed, untrained: dict[str, Tensor], state: str, names: list[str]
) -> dict[str, Tensor]:
    """The tensors of these names, whole; of those that were trained, what `state` says."""
    trained = {name: torch.empty(told.shapes[name]) for name in names if name in told.shapes}
    flat = {name: rearrange(tensor, "... -> (...)") for name, tensor in trained.items()}  # the same memory
    read_pieces(checkpoint, told, [Piece(name, 0, {state: tensor}, True) for name, tensor in flat.items()])
    return {**trained, **{name: untrained[name] for name in names if name in untrained}}
