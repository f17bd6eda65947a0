"""`export`: a checkpoint -> models as folders of safetensors, with all that sampling needs beside them."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from jobs.config import RunConfig
from jobs.progress import say
from jobs.training.checkpoint import UNTRAINED_NAME, Committed, PieceReader, list_committed, read_committed, step_of
from jobs.training.zero_state import MASTER
from models.dit import save_dit_weights
from models.weights import read_weights
from pipeline.errors import Refused
from pipeline.storage import publish

WEIGHTS = {"model": MASTER, "ema": "ema"}  # the folders, and the states that their weights are


def export(config: RunConfig, step: int | None = None, to: Path | None = None) -> int:
    """Write the weights of a checkpoint and their average to `to`/model and `to`/ema; by default the newest one's."""
    found = list_committed(config.train.out / "checkpoints")
    wanted = [path for path in found if step is None or step_of(path) == step]
    if not wanted:
        here = ", ".join(str(step_of(path)) for path in found) or "none"
        asked = "" if step is None else f" of step {step}"
        raise Refused(f"{config.train.out / 'checkpoints'}: no checkpoint{asked}; there are: {here}; run `train`")
    into = to or config.train.out
    export_checkpoint(wanted[-1], into)
    say(f"export: {wanted[-1].name} -> {into / 'model'}, {into / 'ema'}")
    return 0


def export_checkpoint(checkpoint: Path, into: Path) -> None:
    """Both models of a committed checkpoint, as folders below `into`."""
    told = read_committed(checkpoint)
    for name, state in WEIGHTS.items():
        save_dit_weights(_whole(checkpoint, told, state), told.facts["model"], into / name)
        facts = {"steps": told.step, **{key: value for key, value in told.facts.items() if key != "model"}}
        publish(into / name / "trained.json", (json.dumps(facts, indent=2) + "\n").encode())


def _whole(checkpoint: Path, told: Committed, state: str) -> Iterator[tuple[str, Tensor]]:
    """The names and whole tensors of a model, one at a time."""
    reader = PieceReader(checkpoint, told)
    for name, shape in told.shapes.items():
        tensor = torch.empty(shape)
        reader.read(state, name, 0, rearrange(tensor, "... -> (...)"))
        yield name, tensor
    yield from read_weights(checkpoint / UNTRAINED_NAME).items()
