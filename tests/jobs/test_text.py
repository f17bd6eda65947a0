"""T5 goes the whole way: its embeddings in a column of their own, trained on, and used again for prompts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from jobs.config import RunConfig
from jobs.mp4 import read_mp4
from jobs.sample import sample
from jobs.text import text
from jobs.train import train
from models.text import load_text_encoder
from pipeline.batch_reader import BatchReader
from pipeline.errors import Refused
from pipeline.recipe import read_recipe
from pipeline.records import TextSample, Video
from pipeline.sample import read_array
from pipeline.schedule import Slot
from pipeline.tables import read_metadata, read_records, write_records
from pipeline.text_column import read_text_origin
from pipeline.training_set import open_training_set
from tests.checkpoints import publish_t5
from tests.conftest import digests, train_here
from tests.shards import local


@pytest.fixture(scope="module")
def t5_config(cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the cache with a text column by a small T5."""
    root = tmp_path_factory.mktemp("t5")
    shutil.copytree(cached.data.cache, root / "cache")
    published = publish_t5(root / "weights")
    config = cached.model_copy(
        update={
            "data": cached.data.model_copy(update={"cache": str(root / "cache")}),
            "text": cached.text.model_copy(update={"encoder": "t5", "path": str(published), "max_tokens": 24}),
            "train": cached.train.model_copy(update={"out": root / "run", "steps": 1, "workers": 1}),
            "sample": cached.sample.model_copy(update={"prompts": ("a red circle",), "steps": 2}),
        }
    )
    text(config)
    return config


def test_the_column_holds_t5s_embeddings_and_says_what_made_it(t5_config: RunConfig) -> None:
    origin = read_text_origin(t5_config.cache, "t5")
    assert (origin.name, origin.dim, origin.max_tokens, origin.dtype, origin.clean) == ("t5", 16, 24, "float32", False)
    encoder = load_text_encoder("t5", t5_config.text.path, origin.settings)
    assert encoder.fingerprint() == origin.fingerprint
    data = open_training_set(t5_config.cache, read_recipe(t5_config.cache), "t5")
    num_chunks = int(data.rows(np.array([0]))["num_chunks"][0])
    [tokens] = BatchReader(data).__getitems__([Slot(0, 0, num_chunks, 1.0, 0)]).text.numpy()
    [first, *_] = read_records([t5_config.cache.text_index("t5")], TextSample)
    np.testing.assert_allclose(tokens, encoder.encode([first.caption])[0], atol=2e-3)


def test_text_that_is_current_is_left_alone(t5_config: RunConfig) -> None:
    files = sorted(local(t5_config.cache.text("t5")).rglob("*.*"))
    before, times = digests(t5_config.cache.text("t5")), [path.stat().st_mtime_ns for path in files]
    text(t5_config)
    assert digests(t5_config.cache.text("t5")) == before
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_model_is_trained_on_it_and_sampled_with_it(alone: None, t5_config: RunConfig) -> None:
    train_here(t5_config)
    trained = json.loads((t5_config.train.out / "model" / "trained.json").read_text())
    assert trained["text"]["name"] == "t5" and trained["text"]["clean"] is False
    sample(t5_config)
    assert read_mp4(t5_config.train.out / "samples" / "000.mp4").shape == (17, 64, 64, 3)

    weights = shutil.copytree(str(t5_config.text.path), t5_config.train.out / "other")
    tensors = load_file(weights / "model.safetensors")
    name = "encoder.final_layer_norm.weight"
    save_file({**tensors, name: tensors[name].clone() * 2}, weights / "new.safetensors")
    (weights / "new.safetensors").replace(weights / "model.safetensors")
    other = t5_config.model_copy(
        update={
            "text": t5_config.text.model_copy(update={"path": str(weights)}),
            "sample": t5_config.sample.model_copy(update={"seed": 1}),
        }
    )
    with pytest.raises(Refused, match="is another t5 .* than the model was trained with"):
        sample(other)


@pytest.mark.parametrize(("knob", "value"), [("clean", True), ("max_tokens", 12), ("dtype", "bfloat16")])
def test_text_made_otherwise_than_the_run_says_is_refused(t5_config: RunConfig, knob: str, value: object) -> None:
    other = t5_config.model_copy(update={"text": t5_config.text.model_copy(update={knob: value})})
    with pytest.raises(Refused, match=rf"made with text\.{knob} = .*, the run wants {value}; run `text` again"):
        train(other)


def test_cleaning_makes_the_column_again_and_is_recorded(t5_config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(t5_config.data.cache, tmp_path / "cache")
    cleaned = t5_config.model_copy(
        update={
            "data": t5_config.data.model_copy(update={"cache": str(tmp_path / "cache")}),
            "text": t5_config.text.model_copy(update={"clean": True}),
        }
    )
    text(cleaned)
    before, after = (read_text_origin(config.cache, "t5") for config in (t5_config, cleaned))
    assert after == replace(before, clean=True, fingerprint=after.fingerprint)
    assert after.fingerprint != before.fingerprint


def test_training_without_text_says_what_to_run(cached: RunConfig, tmp_path: Path) -> None:
    path = publish_t5(tmp_path / "weights")
    other = cached.model_copy(update={"text": cached.text.model_copy(update={"encoder": "t5", "path": str(path)})})
    with pytest.raises(Refused, match="run `text` first"):
        train(other)


@pytest.fixture
def copied(cached: RunConfig, tmp_path: Path) -> RunConfig:
    """A cache of its own, one of whose captions was edited."""
    shutil.copytree(cached.data.cache, tmp_path / "cache")
    config = cached.model_copy(update={"data": cached.data.model_copy(update={"cache": str(tmp_path / "cache")})})
    manifest = config.cache.manifest
    first, *others = read_records([manifest], Video)
    write_records(manifest, Video, [replace(first, caption="edited"), *others], read_metadata(manifest))
    return config


def test_an_edited_caption_makes_its_shards_again_and_nothing_else(cached: RunConfig, copied: RunConfig) -> None:
    text(copied)
    before, after = digests(cached.cache.root), digests(copied.cache.root)
    shards = {
        row.shard for row in read_records([copied.cache.text_index("bytes")], TextSample) if row.caption == "edited"
    }
    assert shards
    wanted = {f"text/bytes/{shard}.{ending}" for shard in shards for ending in ("tar", "parquet")}
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {
        *wanted,
        "text/bytes/index.parquet",
        "manifest/part-00000.parquet",
    }


def test_interrupted_text_leaves_no_index_that_points_into_other_tars(copied: RunConfig) -> None:
    folders = [path for path in local(copied.cache.text("bytes")).iterdir() if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)  # the actor cannot write
    with pytest.raises(Refused, match="cannot be written"):
        text(copied)
    assert not copied.cache.text_index("bytes").exists()
    with pytest.raises(Refused, match="run `text` first"):
        open_training_set(copied.cache, read_recipe(copied.cache), "bytes")
    for folder in folders:
        folder.chmod(0o700)
    text(copied)
    open_training_set(copied.cache, read_recipe(copied.cache), "bytes")


def test_the_null_caption_is_encoded_once(cached: RunConfig, t5_config: RunConfig) -> None:
    for config, encoder, num_tokens in ((cached, "bytes", 0), (t5_config, "t5", 1)):
        tokens = read_array(config.cache.null_text(encoder).read_bytes())
        assert tokens.shape == (num_tokens, read_text_origin(config.cache, encoder).dim)  # T5's is "end of text"
        assert tokens.dtype == np.float16
