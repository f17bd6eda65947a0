"""A small T5 with random weights and its tokenizer, in a folder as DeepFloyd/t5-v1_1-xxl or google/t5-v1_1 have it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

SENTENCE = "a the red green blue circle square moves slowly left right across white field person dog runs beach"
EXTRA_IDS = [f"<extra_id_{number}>" for number in range(100)]
IDS: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}  # as T5's
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": EXTRA_IDS}
TINY: dict[str, Any] = {"vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole T5, decoder and all; not to be changed."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = transformers.T5Config(**TINY, feed_forward_proj="gated-gelu", initializer_factor=2.0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    corpus = folder / "corpus.txt"
    words = SENTENCE.split()
    corpus.write_text("\n".join(" ".join(words[place:] + words[:place]) for place in range(len(words))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
        **IDS,
    )
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    settings = {**SPECIAL, "extra_ids": 100, "tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(published, tmp_path / "t5"))
