"""Safetensors in and out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.weights import (
    find_sharded,
    load_weights,
    read_weights,
    save_sharded,
    save_weights,
    split_by_bytes,
    write_whole,
)


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.randn(2).bfloat16(), "c": torch.tensor(7)}
    path = tmp_path / "new" / "w.safetensors"
    save_weights(tensors, path)
    again = read_weights(path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)
    assert load_file(path).keys() == tensors.keys()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(2)}, path)

    def fail(aside: Path) -> None:
        aside.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert torch.equal(read_weights(path)["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"  # the name does not make it one
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"not a safetensors file.*pickled checkpoints are refused"):
        read_weights(path)


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(200)}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_weights(path)


def test_wrong_tensors_are_listed_and_change_nothing(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 2), tmp_path / "w.safetensors"
    before = model.weight.clone()
    save_file({"weight": torch.ones(2, 4), "extra": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="does not fit Linear") as refused:
        load_weights(model, path)
    message = str(refused.value)
    assert "1 missing (bias)" in message
    assert "1 unexpected (extra)" in message
    assert "1 mis-shaped (weight [2, 4] instead of [2, 3])" in message
    assert torch.equal(model.weight, before)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({f"x{index:02d}": torch.ones(1) for index in range(40)}, path)
    with pytest.raises(ValueError, match=r"40 unexpected \(x00, .*x11, and 28 more\)"):
        load_weights(nn.Linear(3, 2), path)


def test_loading_casts_to_the_model_and_keeps_its_parameters(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 2), tmp_path / "w.safetensors"
    save_weights({"weight": torch.full((2, 3), 1.5, dtype=torch.float64), "bias": torch.zeros(2).half()}, path)
    weight = model.weight
    load_weights(model, path)
    assert model.weight is weight and weight.dtype == torch.float32 and weight.eq(1.5).all()


def test_a_meta_model_comes_alive(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"weight": torch.ones(2, 3).bfloat16(), "bias": torch.zeros(2)}, path)
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    load_weights(model, path)
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 2), 3.0))


def save(tensors: dict[str, torch.Tensor], folder: Path, max_shard_bytes: int) -> None:
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    save_sharded(sizes, lambda names: {name: tensors[name] for name in names}, folder, max_shard_bytes)


def test_neighbours_share_a_group_as_long_as_there_is_room() -> None:
    assert split_by_bytes({"a": 3, "b": 3, "c": 5, "d": 9, "e": 1}, 8) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert split_by_bytes({}, 8) == [[]]


def test_shards_are_written_with_an_index_and_those_of_another_model_go(tmp_path: Path) -> None:
    tensors = {name: torch.full((10,), float(number)) for number, name in enumerate("abcde")}
    save(tensors, tmp_path, 80)
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [path.name for path in find_sharded(tmp_path)] == files
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 200},
        "weight_map": {"a": files[0], "b": files[0], "c": files[1], "d": files[1], "e": files[2]},
    }
    for most, count in ((1000, 1), (40, 5), (120, 2)):
        save(tensors, tmp_path, most)
        assert len(find_sharded(tmp_path)) == len(list(tmp_path.glob("*.safetensors"))) == count
        assert {name: float(one[0]) for path in find_sharded(tmp_path) for name, one in read_weights(path).items()} == {
            name: float(tensor[0]) for name, tensor in tensors.items()
        }


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    assert find_sharded(tmp_path) == ()
    save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path, 8)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not found beside it: model-00002-of-00002\.safetensors; fetch"):
        find_sharded(tmp_path)
