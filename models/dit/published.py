"""The config.json of Open-Sora v1.2's published STDiT3, field by field: read, and written as its own classes read it.

The weights beside it go by the same names in both.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

MODEL_TYPE = "STDiT3"


class Becomes(NamedTuple):
    """A field of STDiT3Config by another name, or the same."""

    ours: str


class Only(NamedTuple):
    """A field that must have this value: any other is a model we do not have."""

    value: Any
    why: str


class Ignored(NamedTuple):
    """A field that does not change what the model computes from its weights."""

    why: str


KERNEL = Ignored("how it was computed, not what")
TRAINING = Ignored("which weights were trained; here the run decides")
LIBRARY = Ignored("the library's own notes")

FIELDS: dict[str, Becomes | Only | Ignored] = {
    "hidden_size": Becomes("hidden_size"),
    "depth": Becomes("depth"),
    "num_heads": Becomes("num_heads"),
    "in_channels": Becomes("in_channels"),
    "patch_size": Becomes("patch_size"),
    "mlp_ratio": Becomes("mlp_ratio"),
    "caption_channels": Becomes("caption_channels"),
    "model_max_length": Becomes("max_text_tokens"),
    "qk_norm": Becomes("qk_norm"),
    "pred_sigma": Becomes("pred_sigma"),
    "input_sq_size": Becomes("input_sq_size"),
    "model_type": Only(MODEL_TYPE, "another architecture"),
    "skip_y_embedder": Only(False, "captions would have to come projected and packed"),
    "drop_path": Only(0.0, "no block is ever dropped"),
    "input_size": Ignored("every size is taken"),
    "class_dropout_prob": Ignored("captions are dropped by whoever calls the model"),
    "enable_flash_attn": KERNEL,
    "enable_layernorm_kernel": KERNEL,
    "enable_sequence_parallelism": KERNEL,
    "only_train_temporal": TRAINING,
    "freeze_y_embedder": TRAINING,
    "torch_dtype": Ignored("weights are read as float32"),
    "dtype": Ignored("weights are read as float32"),
    "architectures": LIBRARY,
    "auto_map": LIBRARY,
    "transformers_version": LIBRARY,
    "_name_or_path": LIBRARY,
}


def translate(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A published config -> fields of STDiT3Config; ValueError, naming `where`, for what we do not know or support."""
    if unknown := sorted(config.keys() - FIELDS.keys()):
        raise ValueError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(FIELDS)}")
    ours = {}
    for name, value in config.items():
        match FIELDS[name]:
            case Becomes(field):
                ours[field] = value
            case Only(wanted, why) if value != wanted:
                raise ValueError(f"{where}: {name} is {value}, only {wanted} is supported ({why}); use another model")
    return ours


def as_published(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of STDiT3Config, all of them -> a config that the published classes and `translate` read.

    What does not change what the model computes is left to their defaults.
    """
    said: dict[str, Any] = {"architectures": [MODEL_TYPE]}
    for name, meaning in FIELDS.items():
        match meaning:
            case Becomes(field):
                said[name] = ours[field]
            case Only(value):
                said[name] = value
    return said
