"""A text encoder is described by its files before they are read, known by their content, and refused in one line."""

import json
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from models.text import describe_text_encoder, load_text_encoder
from models.text.interface import TextSettings
from models.text.t5 import PUBLISHED
from models.weights import write_whole

CAPTIONS = ["a red circle", "", "the dog runs slowly across the beach"]
TOKENIZER = ("spiece.model", "tokenizer_config.json", "special_tokens_map.json")
SHARED, COPY = "shared.weight", "encoder.embed_tokens.weight"


def same(one: Path, other: Path) -> bool:
    """Whether the T5 of two folders embed alike."""
    pairs = zip(load_text_encoder("t5", one).encode(CAPTIONS), load_text_encoder("t5", other).encode(CAPTIONS))
    return all(np.array_equal(a, b) for a, b in pairs)


def fingerprint(folder: Path, **settings: Any) -> str:
    return describe_text_encoder("t5", folder, TextSettings(**settings)).fingerprint()


def edit(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of a folder."""
    path = folder / "model.safetensors"
    write_whole(path, lambda aside: save_file(change(load_file(path)), aside))  # those that are read are the file's own


def as_pipeline(folder: Path, root: Path) -> Path:
    """The same T5 as a diffusers pipeline has it."""
    (root / "vae").mkdir(parents=True)
    (root / "model_index.json").write_text("{}")
    for name, files in (("text_encoder", ("config.json", "model.safetensors")), ("tokenizer", TOKENIZER)):
        (root / name).mkdir()
        for file in files:
            shutil.copy(folder / file, root / name)
    return root


def as_shards(folder: Path) -> None:
    """The same weights in several files with an index."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()


# Described before they are read.


def test_a_description_says_what_training_asks_without_reading_the_weights(folder: Path):
    rewrite(folder, lambda tensors: {"nothing": torch.zeros(1)})
    described = describe_text_encoder("t5", folder, TextSettings(max_tokens=77))
    assert (described.name, described.dim, described.max_tokens) == ("t5", 16, 77)
    assert len(described.fingerprint()) == 64
    with pytest.raises(ValueError, match=r"does not fit T5EncoderModel: \d+ missing \(encoder.block.0"):
        described.load()


def test_describing_does_not_import_transformers(published: Path):
    code = (
        "import sys; from models.text import describe_text_encoder; "
        "describe_text_encoder('t5', sys.argv[1]).fingerprint(); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(published)], check=True)


def test_a_loaded_encoder_is_what_was_described(published: Path):
    for name, path in (("t5", published), ("bytes", None)):
        described = describe_text_encoder(name, path, TextSettings(max_tokens=9, clean=True))
        encoder = described.load()
        found = (encoder.name, encoder.dim, encoder.max_tokens, encoder.settings, encoder.fingerprint())
        wanted = (described.name, described.dim, described.max_tokens, described.settings, described.fingerprint())
        assert found == wanted
        assert all(len(tokens) <= 9 and tokens.shape[1] == described.dim for tokens in encoder.encode(CAPTIONS))


def test_a_description_travels_to_another_process(published: Path):
    for name, path in (("t5", published), ("bytes", None)):
        described = describe_text_encoder(name, path)
        travelled = pickle.loads(pickle.dumps(described))
        assert travelled.fingerprint() == described.fingerprint()
        assert np.array_equal(travelled.load().encode(["dog"])[0], described.load().encode(["dog"])[0])


def test_the_dtype_left_open_follows_the_machine(published: Path, monkeypatch: pytest.MonkeyPatch):
    for has_gpu, dtype in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert describe_text_encoder("t5", published).settings.dtype == dtype
        assert describe_text_encoder("t5", published, TextSettings(dtype="float16")).settings.dtype == "float16"


# Found, however it is published.


def test_a_diffusers_pipeline_has_the_same_t5(published: Path, tmp_path: Path):
    pipeline = as_pipeline(published, tmp_path / "pipeline")
    assert same(pipeline, published)
    assert fingerprint(pipeline) == fingerprint(published)


def test_weights_in_several_files_are_the_same_t5(published: Path, folder: Path):
    as_shards(folder)
    assert same(folder, published)


def test_the_encoder_alone_is_the_same_t5(published: Path, folder: Path):
    transformers.T5EncoderModel.from_pretrained(folder).save_pretrained(folder)
    assert not any(name.startswith("decoder.") for name in load_file(folder / "model.safetensors"))
    assert same(folder, published)


@pytest.mark.parametrize("names", [[SHARED], [COPY], [SHARED, COPY]])
def test_the_embedding_matrix_goes_by_either_name(published: Path, folder: Path, names: list[str]):
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        matrix = tensors[SHARED]
        others = {name: tensor for name, tensor in tensors.items() if name not in (SHARED, COPY)}
        return others | {name: matrix.clone() for name in names}

    rewrite(folder, rename)
    assert same(folder, published)


def test_a_tokenizer_of_the_newer_format_is_the_same(published: Path, folder: Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for name in TOKENIZER:
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").exists() and not (folder / "spiece.model").exists()
    assert same(folder, published)


def test_nothing_is_asked_of_the_network(published: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something asks the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert load_text_encoder("t5", published).encode(["dog"])


def test_a_hub_id_is_found_in_the_hubs_cache(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository, commit = tmp_path / "models--owner--t5", "a" * 40
    as_pipeline(published, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fingerprint(Path("owner/t5")) == fingerprint(published)


def test_only_what_is_needed_is_fetched():
    """Of a diffusers pipeline, and of a repository that has a T5 in every format."""
    needed = [
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        *("config.json", "model.safetensors", "spiece.model", "tokenizer.json", "tokenizer_config.json"),
        *("tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json", "tokenizer/spiece.model"),
    ]
    not_needed = [
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md", "model_index.json"),
        "text_encoder/pytorch_model-00001-of-00002.bin",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    ]
    assert sorted(filter_repo_objects(needed + not_needed, allow_patterns=PUBLISHED)) == sorted(needed)


# Known by their content.


def test_the_fingerprint_does_not_depend_on_the_place(published: Path, folder: Path):
    (folder / "README.md").write_text("a T5")
    edit(folder / "config.json", _name_or_path="elsewhere", dropout_rate=0.5)
    assert fingerprint(folder) == fingerprint(published)


def test_settings_change_the_fingerprint(published: Path):
    changes: list[dict[str, Any]] = [{}, {"max_tokens": 299}, {"dtype": "bfloat16"}, {"clean": True}]
    assert len({fingerprint(published, **change) for change in changes}) == len(changes)


def test_weights_change_the_fingerprint(published: Path, folder: Path):
    rewrite(folder, lambda tensors: {name: tensor + (name == SHARED) for name, tensor in tensors.items()})
    assert fingerprint(folder) != fingerprint(published)


def test_each_of_several_weight_files_changes_the_fingerprint(folder: Path):
    as_shards(folder)
    for path in sorted(folder.glob("model-*.safetensors")):
        before = fingerprint(folder)
        save_file({name: torch.zeros(1) for name in load_file(path)}, path)
        assert fingerprint(folder) != before


@pytest.mark.parametrize("name", TOKENIZER)
def test_each_file_of_the_tokenizer_changes_the_fingerprint(published: Path, folder: Path, name: str):
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert fingerprint(folder) != fingerprint(published)


@pytest.mark.parametrize(
    "setting",
    [{"feed_forward_proj": "gated-relu"}, {"layer_norm_epsilon": 1e-5}, {"relative_attention_max_distance": 9}],
)
def test_settings_of_the_architecture_change_the_fingerprint(published: Path, folder: Path, setting: dict[str, Any]):
    edit(folder / "config.json", **setting)
    assert fingerprint(folder) != fingerprint(published)


def test_cleaning_and_length_of_bytes_change_the_fingerprint():
    changes = [TextSettings(), TextSettings(clean=True), TextSettings(max_tokens=20)]
    assert len({describe_text_encoder("bytes", None, change).fingerprint() for change in changes}) == 3


def test_bytes_are_cleaned_and_cut_as_asked():
    (tokens,) = load_text_encoder("bytes", None, TextSettings(max_tokens=5, clean=True)).encode(["A  RED circle"])
    assert np.array_equal(tokens, load_text_encoder("bytes").encode(["a red"])[0])


# Refused, in one line.


def refused(folder: Path | None, message: str) -> None:
    """Describing already says so."""
    with pytest.raises(ValueError, match=message):
        describe_text_encoder("t5", folder)


def test_t5_needs_a_path_and_bytes_have_none(tmp_path: Path):
    refused(None, "t5 has weights: give the folder of a T5 as published, or its hub id")
    with pytest.raises(ValueError, match="bytes has no weights to read from"):
        describe_text_encoder("bytes", tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'t6' is not known; known: bytes, t5"):
        describe_text_encoder("t6")


def test_a_file_is_not_a_folder(published: Path):
    refused(published / "model.safetensors", "model.safetensors: a file; wanted the folder it is in")


def test_a_place_that_is_not_there_is_no_hub_id(tmp_path: Path):
    refused(tmp_path / "no" / "such", "no such file or folder")


def test_pickled_weights_are_refused_and_how_to_convert_them_is_said(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"found .*pytorch_model.bin.*wanted model.safetensors.*\(\*.bin\).*refused.*convert it with T5Enc")


def test_a_pickle_by_the_name_of_weights_is_refused(folder: Path):
    torch.save({"shared.weight": torch.zeros(1)}, folder / "model.safetensors")
    refused(folder, "model.safetensors is not a safetensors file; pickled checkpoints are refused")


def test_a_missing_weight_file_is_named(folder: Path):
    as_shards(folder)
    (lost := sorted(folder.glob("model-00002-of-*.safetensors"))[0]).unlink()
    refused(folder, f"index.json: not found beside it: {lost.name}; fetch the folder again")


def test_an_index_of_no_files_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "index.json: not found beside it: any")


def test_a_missing_config_is_named(folder: Path):
    (folder / "config.json").unlink()
    refused(folder, "config.json: not found; give the folder as it was published")


@pytest.mark.parametrize(
    "setting", [{"model_type": "umt5"}, {"model_type": "clip_text_model"}, {"d_model": None}, {"vocab_size": "many"}]
)
def test_a_config_of_another_model_is_refused(folder: Path, setting: dict[str, Any]):
    edit(folder / "config.json", **setting)
    refused(folder, f"config.json: has .*{next(iter(setting.values()))}.*wanted model_type 't5' and its sizes")


def test_a_missing_tokenizer_is_named(folder: Path, tmp_path: Path):
    pipeline = as_pipeline(folder, tmp_path / "pipeline")
    shutil.rmtree(pipeline / "tokenizer")
    refused(pipeline, "tokenizer: found no such folder; wanted the tokenizer, tokenizer.json or spiece.model")
    (folder / "spiece.model").unlink()
    refused(folder, "found config.json, .*; wanted the tokenizer, tokenizer.json or spiece.model: put its files there")


def test_a_broken_tokenizer_is_refused(folder: Path):
    (folder / "spiece.model").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its tokenizer cannot be read \(.*\); fetch its files again"):
        load_text_encoder("t5", folder)


def test_the_tokenizer_of_a_larger_vocabulary_is_refused(folder: Path):
    edit(folder / "config.json", vocab_size=100)
    with pytest.raises(ValueError, match=r"tokens up to \d+ for a T5 of 100; give the tokenizer of that T5"):
        load_text_encoder("t5", folder)


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "spiece.model").unlink(missing_ok=True)
    edit(folder / "tokenizer.json", post_processor=None)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ValueError, match="ends no text with its end token"):
        load_text_encoder("t5", folder)


def test_weights_of_more_layers_than_the_config_are_refused(folder: Path):
    edit(folder / "config.json", num_layers=1)
    with pytest.raises(ValueError, match=r"does not fit T5EncoderModel: \d+ unexpected \(encoder.block.1"):
        load_text_encoder("t5", folder)


@pytest.mark.parametrize(
    ("setting", "message"), [({"max_tokens": 0}, "at least one token"), ({"dtype": "half"}, "'half'; known: float32")]
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TextSettings(**setting)
