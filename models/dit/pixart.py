"""An image model's weights as the start of a video model: PixArt-Sigma -> the spatial half of an STDiT3.

The temporal half of a fresh STDiT3 is the identity, so the video model starts as the image model, frame by frame.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from models.dit.stdit3 import STDiT3
from models.weights import LISTED, fill_weights, read_weights

PICKLED = (".pth", ".pt", ".ckpt")  # PixArt-Sigma was published so: a dict with the weights as `state_dict`
DIFFUSERS_NAME = "transformer_blocks."


def _deepen(theirs: Tensor, ours: Tensor) -> Tensor:
    """Kernels of a patch of an image -> of a patch of one frame of a video."""
    return rearrange(theirs, "c_out c_in ... -> c_out c_in 1 ...")


def _lengthen(theirs: Tensor, ours: Tensor) -> Tensor:
    """The null caption, (tokens, dim) -> as many tokens as ours has: cut, or its last one repeated."""
    more = max(0, len(ours) - len(theirs))
    return torch.cat([theirs[: len(ours)], repeat(theirs[-1], "... -> more ...", more=more)])


class Rule(NamedTuple):
    """What becomes of a name, or of all names that begin with it where it ends in a dot."""

    ours: str | None  # takes its place; None: dropped
    note: str
    fit: Callable[[Tensor, Tensor], Tensor] = lambda theirs, ours: theirs  # (theirs, ours) -> theirs in our shape


# PixArt-Sigma's names; the first that fits counts.
THEIRS = {
    "pos_embed": Rule(None, "computed for each size"),
    "x_embedder.proj.weight": Rule("x_embedder.proj.weight", "made one frame deep", _deepen),
    "x_embedder.": Rule("x_embedder.", "same name"),
    "t_embedder.": Rule("t_embedder.", "same name"),
    "t_block.": Rule("t_block.", "same name"),
    "y_embedder.y_embedding": Rule("y_embedder.y_embedding", "cut, or its last token repeated", _lengthen),
    "y_embedder.": Rule("y_embedder.", "same name"),
    "blocks.": Rule("spatial_blocks.", "blocks. -> spatial_blocks."),
    "final_layer.": Rule("final_layer.", "same name"),
}

# Ours that PixArt-Sigma lacks, by how their names begin and end, and how they start.
FRESH = {
    ("temporal_blocks.", ""): "temporal blocks start as identity",
    ("fps_embedder.", ""): "the frame rate starts without effect",
    ("rope.", ""): "frequencies of the temporal blocks",
    ("spatial_blocks.", ".q_norm.weight"): "norm of the queries starts at weight one",
    ("spatial_blocks.", ".k_norm.weight"): "norm of the keys starts at weight one",
}


@dataclass(frozen=True)
class Report:
    """What `init_from_pixart` did, name by name; printed, it is a summary."""

    path: Path
    loaded: Mapping[str, str]  # our name -> what was done to it
    fresh: Mapping[str, str]  # our name -> how it starts
    dropped: Mapping[str, str]  # their name -> why

    def __str__(self) -> str:
        kinds = {"loaded": self.loaded, "kept fresh": self.fresh, "dropped": self.dropped}
        lines = [f"{self.path}: " + ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())]
        for kind, names in kinds.items():
            lines += [f"  {kind:>10} {count:5}: {note}" for note, count in Counter(names.values()).items()]
        return "\n".join(lines)


def init_from_pixart(model: STDiT3, path: Path | str) -> Report:
    """Fill a fresh model's spatial half from a PixArt-Sigma checkpoint, .pth as published or safetensors.

    Raises ValueError, and changes nothing, where a name is not in the tables above or a shape differs.
    """
    path = Path(path)
    theirs, own = _read(path), model.state_dict()
    if any(name.startswith(DIFFUSERS_NAME) for name in theirs):
        raise ValueError(
            f"{path}: is PixArt in diffusers' layout, with other names; give the original checkpoint, such as "
            f"PixArt-Sigma-XL-2-512-MS.pth of PixArt-alpha/PixArt-Sigma"
        )
    found: dict[str, Tensor] = {}
    loaded: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    for name, tensor in theirs.items():
        prefix = next((begin for begin in THEIRS if _begins(name, begin)), None)
        if prefix is None:
            unknown.append(name)
        elif (rule := THEIRS[prefix]).ours is None:
            dropped[name] = rule.note
        else:
            new = rule.ours + name.removeprefix(prefix)
            found[new] = rule.fit(tensor, own[new]) if new in own else tensor
            loaded[new] = rule.note
    if unknown:
        rest = f", and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise ValueError(
            f"{path}: PixArt-Sigma has no {', '.join(unknown[:LISTED])}{rest}; give one of its checkpoints"
        )

    fresh = {
        name: note
        for name in own
        for (begin, end), note in FRESH.items()
        if name not in found and name.startswith(begin) and name.endswith(end)
    }
    fill_weights(model, found | {name: own[name] for name in fresh}, str(path))
    return Report(path, loaded, fresh, dropped)


def _begins(name: str, begin: str) -> bool:
    return name.startswith(begin) if begin.endswith(".") else name == begin


def _read(path: Path) -> Mapping[str, Tensor]:
    """A checkpoint's tensors by name; a pickle is read without running any code of it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a PixArt-Sigma checkpoint, .pth or .safetensors")
    if path.suffix not in PICKLED:
        return read_weights(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a whole checkpoint of plain tensors ({reason}); fetch it again") from error
    weights = document.get("state_dict") if isinstance(document, dict) else None
    if not isinstance(weights, dict):
        kind = f"entries {', '.join(map(str, list(document)[:LISTED]))}" if isinstance(document, dict) else "no dict"
        raise ValueError(f"{path}: found {kind}; wanted the weights as its entry 'state_dict'")
    return weights
