"""Checkpoints -> folders that any reader of safetensors opens."""

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from jobs.config import RunConfig
from jobs.export import export, export_checkpoint
from jobs.training.checkpoint import read_pieces
from jobs.training.committed import list_committed, read_committed
from jobs.training.zero_state import Piece
from models.dit import load_dit
from pipeline.errors import Refused


def test_weights_and_their_average_are_those_of_the_checkpoint(trained: RunConfig) -> None:
    checkpoint = list_committed(trained.train.out / "checkpoints")[-1]
    told = read_committed(checkpoint)
    for folder, state in (("model", "master"), ("ema", "ema")):
        model = load_dit(trained.train.out / folder).state_dict()
        assert told.shapes.keys() < model.keys()
        for name, shape in told.shapes.items():
            assert list(model[name].shape) == shape
            flat = torch.full((model[name].numel(),), torch.nan)
            read_pieces(checkpoint, told, [Piece(name, 0, {state: flat}, True)])
            assert torch.equal(flat, rearrange(model[name], "... -> (...)")), name
    ours, average = (load_file(trained.train.out / folder / "model.safetensors") for folder in ("model", "ema"))
    assert any(not torch.equal(ours[name], average[name]) for name in told.shapes)


def test_a_step_is_exported_to_any_folder(
    trained: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained, step=4, to=tmp_path) == 0
    assert f"export: step-00000004 -> {tmp_path / 'model'}, {tmp_path / 'ema'}" in capsys.readouterr().out
    facts = json.loads((tmp_path / "ema" / "trained.json").read_text())
    assert facts["steps"] == 4 and facts["recipe"] and "model" not in facts
    export(trained, to=tmp_path)
    assert json.loads((tmp_path / "model" / "trained.json").read_text())["steps"] == 8
    for folder in ("model", "ema"):
        ours, theirs = (root / folder / "model.safetensors" for root in (tmp_path, trained.train.out))
        assert ours.read_bytes() == theirs.read_bytes()


def test_shards_hold_the_same_and_replace_the_whole_file(trained: RunConfig, tmp_path: Path) -> None:
    checkpoint = list_committed(trained.train.out / "checkpoints")[-1]
    export_checkpoint(checkpoint, tmp_path)
    whole = load_dit(tmp_path / "ema").state_dict()
    export_checkpoint(checkpoint, tmp_path, max_shard_bytes=40_000)
    shards = list((tmp_path / "ema").glob("*.safetensors"))
    assert len(shards) > 2 and (tmp_path / "ema" / "model.safetensors") not in shards
    sharded = load_dit(tmp_path / "ema").state_dict()
    assert sharded.keys() == whole.keys() and all(torch.equal(sharded[name], whole[name]) for name in whole)


def test_a_step_that_is_not_there_is_refused(trained: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"checkpoints: no checkpoint of step 5; there are: 4, 8; run `train`"):
        export(trained, step=5)
    empty = trained.model_copy(update={"train": trained.train.model_copy(update={"out": tmp_path})})
    with pytest.raises(Refused, match=r"checkpoints: no checkpoint; there are: none"):
        export(empty)
