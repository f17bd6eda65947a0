"""Our config in the words of the published one, and back."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.dit import DITS, load_dit, save_dit, save_dit_weights
from models.dit.published import FIELDS, Becomes, as_published, translate
from models.dit.stdit3 import STDiT3, STDiT3Config
from tests.models.dit.test_load_dit import PUBLISHED, SMALL

# The fields of OpenSora-STDiT-v3 that shape it.
V3: dict[str, Any] = {
    "architectures": ["STDiT3"],
    "caption_channels": 4096,
    "depth": 28,
    "drop_path": 0.0,
    "hidden_size": 1152,
    "in_channels": 4,
    "input_sq_size": 512,
    "mlp_ratio": 4.0,
    "model_max_length": 300,
    "model_type": "STDiT3",
    "num_heads": 16,
    "patch_size": (1, 2, 2),
    "pred_sigma": True,
    "qk_norm": True,
    "skip_y_embedder": False,
}


def test_the_largest_is_said_as_it_was_published() -> None:
    assert as_published(asdict(DITS["stdit3-xl/2"])) == V3


def test_every_field_of_ours_can_be_said() -> None:
    assert {meaning.ours for meaning in FIELDS.values() if isinstance(meaning, Becomes)} == {
        field.name for field in fields(STDiT3Config)
    }
    assert translate(as_published(asdict(SMALL)), "here") == asdict(SMALL)


def test_what_we_write_differs_from_what_was_published_by_what_changes_nothing(tmp_path: Path) -> None:
    save_dit(STDiT3(SMALL), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.items() <= {**PUBLISHED, "patch_size": [1, 2, 2]}.items()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000])
def test_transformers_reads_what_we_write(tmp_path: Path, max_shard_bytes: int) -> None:
    """By its own loader, into modules of the published names."""
    transformers = pytest.importorskip("transformers")
    model = STDiT3(SMALL)
    state = model.state_dict()
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    asked: list[int] = []

    def read(names: list[str]) -> dict[str, Tensor]:
        asked.append(sum(sizes[name] for name in names))
        return {name: state[name] for name in names}

    save_dit_weights(asdict(SMALL), sizes, read, tmp_path, max_shard_bytes)
    assert max(asked) <= max_shard_bytes and sum(asked) == sum(sizes.values())
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(asked) > 1) == (max_shard_bytes < 10**9)

    class Config(transformers.PretrainedConfig):
        model_type = "STDiT3"

    class Original(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            known = {name: getattr(config, name) for name, how in FIELDS.items() if isinstance(how, Becomes)}
            for name, module in STDiT3(STDiT3Config(**translate(known, "here"))).named_children():
                setattr(self, name, module)
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """They are all read."""

    theirs, told = Original.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert theirs.config.architectures == ["STDiT3"]
    for read_back in (theirs.state_dict(), load_dit(tmp_path).state_dict()):
        assert read_back.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in read_back.items())
