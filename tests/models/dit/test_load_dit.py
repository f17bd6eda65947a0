"""Checkpoints as Open-Sora v1.2 publishes them: a config with its field names beside safetensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.dit import load_dit
from models.dit.stdit3 import STDiT3, STDiT3Config
from models.weights import save_weights

SMALL = STDiT3Config(
    hidden_size=32, depth=1, num_heads=2, in_channels=6, caption_channels=12, max_text_tokens=7, pred_sigma=False
)
# What the library writes: the model's fields, and its own.
PUBLISHED: dict[str, Any] = {
    "_name_or_path": "/pretrained/stdit3",
    "architectures": ["STDiT3"],
    "auto_map": {"AutoConfig": "configuration_stdit3.STDiT3Config", "AutoModel": "modeling_stdit3.STDiT3"},
    "caption_channels": 12,
    "class_dropout_prob": 0.1,
    "depth": 1,
    "drop_path": 0.0,
    "enable_flash_attn": True,
    "enable_layernorm_kernel": True,
    "enable_sequence_parallelism": False,
    "freeze_y_embedder": True,
    "hidden_size": 32,
    "in_channels": 6,
    "input_size": [None, None, None],
    "input_sq_size": 512,
    "mlp_ratio": 4.0,
    "model_max_length": 7,
    "model_type": "STDiT3",
    "num_heads": 2,
    "only_train_temporal": False,
    "patch_size": [1, 2, 2],
    "pred_sigma": False,
    "qk_norm": True,
    "skip_y_embedder": False,
    "torch_dtype": "float32",
    "transformers_version": "4.41.2",
}
BLOCK = {
    *{"scale_shift_table", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"},
    *{"attn.q_norm.weight", "attn.k_norm.weight", "cross_attn.q_linear.weight", "cross_attn.q_linear.bias"},
    *{"cross_attn.kv_linear.weight", "cross_attn.kv_linear.bias", "cross_attn.proj.weight", "cross_attn.proj.bias"},
    *{"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"},
}
NAMES = {
    *{"rope.freqs", "x_embedder.proj.weight", "x_embedder.proj.bias", "t_block.1.weight", "t_block.1.bias"},
    *{f"{of}_embedder.mlp.{n}.{kind}" for of in ("t", "fps") for n in (0, 2) for kind in ("weight", "bias")},
    *{f"y_embedder.y_proj.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")},
    *{
        "y_embedder.y_embedding",
        "final_layer.scale_shift_table",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    },
    *{f"{blocks}.0.{name}" for blocks in ("spatial_blocks", "temporal_blocks") for name in BLOCK},
}


def published(folder: Path, model: STDiT3, **changes: Any) -> Path:
    """A folder as on the hub; a field changed to `...` is left out."""
    save_weights(model.state_dict(), folder / "model.safetensors")
    config = {name: value for name, value in (PUBLISHED | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_ours_has_the_published_names() -> None:
    assert STDiT3(SMALL).state_dict().keys() == NAMES


def test_a_published_folder_is_loaded(tmp_path: Path) -> None:
    model = STDiT3(SMALL)
    again = load_dit(published(tmp_path, model))
    assert again.config == SMALL
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"), [("input_sq_size", 256), ("mlp_ratio", 2.0), ("qk_norm", False), ("patch_size", (1, 4, 2))]
)
def test_every_field_that_shapes_the_model_is_read(tmp_path: Path, field: str, value: Any) -> None:
    config = STDiT3Config(**{**vars(SMALL), field: value})
    assert load_dit(published(tmp_path, STDiT3(config), **{field: value})).config == config


def test_the_weights_file_stands_for_its_folder(tmp_path: Path) -> None:
    assert load_dit(published(tmp_path, STDiT3(SMALL)) / "model.safetensors").config == SMALL


def test_what_we_cannot_honour_is_refused(tmp_path: Path) -> None:
    model = STDiT3(SMALL)
    for changes, message in [
        ({"skip_y_embedder": True}, r"config\.json: skip_y_embedder is True, only False is supported"),
        ({"drop_path": 0.1}, r"drop_path is 0\.1, only 0\.0"),
        ({"model_type": "STDiT2"}, r"model_type is STDiT2, only STDiT3"),
        ({"use_spatial_rope": True}, r"config\.json: unknown field use_spatial_rope; known are hidden_size"),
        ({"depth": ..., "num_heads": ...}, r"config\.json: has no depth, num_heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dit(published(tmp_path, model, **changes))


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder, and not a hub id"):
        load_dit(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"found nothing; wanted model\.safetensors"):
        load_dit(tmp_path)
    published(tmp_path, STDiT3(SMALL))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        load_dit(tmp_path)
