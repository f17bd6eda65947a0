"""`run.json`: what a training run was begun as, so that it is continued as the same one."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import RunConfig
from jobs.events import Events
from jobs.training.committed import list_committed, step_of
from jobs.training.metrics import read_metrics
from pipeline.errors import Refused
from pipeline.storage import publish
from pipeline.training_set import TrainingSet

# What must not change while a run is resumed: the order of the data, the model, and what it is trained on.
FIXED = (
    *("recipe", "text.encoder", "text.max_tokens", "text.clean", "model"),
    *("train.batch", "train.tokens", "train.buckets", "train.batch_scale"),
    *("train.seed", "train.caption_dropout", "train.null_caption", "train.timestep_transform"),
    *("train.timesteps", "train.masks", "train.filter", "train.mix", "train.objective", "train.held_out"),
    "train.follow",
)
_FIXED_KEYS = [name.split(".") for name in FIXED if "." in name]
HASHED_KEYS = 2**16


def refuse_other_run(config: RunConfig) -> None:
    """Refuse to continue a run in `train.out` that was another one."""
    before = _begun_as(config)
    if before is None:
        return
    now = json.loads(config.model_dump_json())
    for dotted in FIXED:
        section, _, key = dotted.partition(".")
        found, wanted = (document[section][key] if key else document[section] for document in (before, now))
        if found != wanted:
            raise Refused(
                f"{_path(config)}: {dotted} was {found!r}, now {wanted!r}; change it back, or use another train.out"
            )


def record_run(config: RunConfig, data: TrainingSet) -> None:
    """Write the configuration, and which clips there are. Refused where the run began with other ones: its place in an
    epoch would be one in another order."""
    before, clips = _begun_as(config), describe_clips(data)
    if before is not None and before["clips"] != clips:
        found, wanted = (sum(one["count"] for one in parts) for parts in (clips, before["clips"]))
        raise Refused(
            f"{_path(config)}: begun with {wanted} clips, now there are {found}, or others, so epochs have another "
            f"order; bring them back, use another train.out, or remove this file to go on in the new order"
        )
    document = {**config.model_dump(mode="json"), "clips": clips}
    publish(_path(config), (json.dumps(document, indent=2) + "\n").encode())


def committed_step(out: Path) -> int:
    """The last step of a run that is committed; 0 where none is."""
    found = list_committed(out / "checkpoints")
    return step_of(found[-1].name) if found else 0


def tell_begin(events: Events, out: Path, start: int, ranks: int) -> None:
    """One event for each time that the steps begin, and how many of those told before are done again."""
    told = read_metrics(out / "metrics.jsonl")
    lost = max(0, told[-1]["step"] - start) if told else 0
    events.write("begin", step=start, ranks=ranks, lost=lost)


def _begun_as(config: RunConfig) -> dict[str, Any] | None:
    """What the run was that has left checkpoints, if any; Refused where it cannot be continued by this version."""
    if not list_committed(config.train.out / "checkpoints") or not _path(config).exists():
        return None
    before = json.loads(_path(config).read_text())
    if "clips" not in before or any(key not in before[section] for section, key in _FIXED_KEYS):
        raise Refused(f"{_path(config)}: of an earlier version, whose order was another; use another train.out")
    return before


def describe_clips(data: TrainingSet) -> list[dict[str, Any]]:
    """What decides an epoch's order beside the configuration: the clips of each cache, in theirs."""
    return [{"count": len(part.view.rows), "keys_sha256": _digest(part.view.rows["key"])} for part in data.parts]


def _digest(keys: np.ndarray) -> str:
    """SHA-256 of all keys, a few of them in memory at a time."""
    digest = hashlib.sha256()
    for first in range(0, len(keys), HASHED_KEYS):
        digest.update(keys[first : first + HASHED_KEYS].tobytes())
    return digest.hexdigest()


def _path(config: RunConfig) -> Path:
    return config.train.out / "run.json"
