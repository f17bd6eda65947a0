"""`t5`: the encoder of a T5 of any size, as it is published for transformers, alone or within a diffusers pipeline.

The module and its tokenizer are those of transformers. Here is which files they come from, which captions go together,
and what float16 does to them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor, nn

from models.hub import locate
from models.text.clean import CLEANING
from models.text.interface import TextDescription, TextEncoder, TextSettings
from models.weights import (
    INDEX,
    LISTED,
    SHARDS,
    WHOLE,
    file_sha256,
    fill_weights,
    find_sharded,
    read_config,
    read_weights,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one matrix, published by either name or both
ENCODER = ("encoder.", "shared.")  # the names that are not the decoder's or its head's
BATCH_TOKENS = 8192  # padded tokens that go through the model together: 2 GB of activations in T5-XXL, in bfloat16

VOCABULARIES = ["tokenizer.json", "spiece.model"]  # either will do
TOKENIZER = [*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
PUBLISHED = [
    *(folder + name for folder in ("", "text_encoder/") for name in ("config.json", WHOLE, INDEX, SHARDS)),
    *(folder + name for folder in ("", "tokenizer/") for name in TOKENIZER),
]

# Settings of config.json that change an embedding, besides the weights.
ARCHITECTURE = (
    *("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The files of one published T5."""

    config: Mapping[str, Any]
    weights: tuple[Path, ...]  # safetensors, one or several
    tokenizer: tuple[Path, ...]  # those of TOKENIZER that are there

    def fingerprint(self, settings: TextSettings) -> str:
        """SHA-256 of the files' content, wherever they are, and of the settings."""
        facts = {
            "config": {name: self.config.get(name) for name in ARCHITECTURE},
            "weights": [file_sha256(path) for path in self.weights],
            "tokenizer": {path.name: file_sha256(path) for path in self.tokenizer},
            "settings": asdict(settings) | {"clean": CLEANING if settings.clean else None},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def describe_t5(path: str | Path | None, settings: TextSettings) -> TextDescription:
    """`t5`: a folder as published or a hub id; no weights are read. ValueError where files are missing or another's."""
    if path is None:
        raise ValueError("t5 has weights: give the folder of a T5 as published, or its hub id (owner/name)")
    folder = locate(path, PUBLISHED)
    if not folder.is_dir():
        raise ValueError(f"{folder}: a file; wanted the folder it is in, with config.json and the tokenizer's files")
    is_pipeline = (folder / "text_encoder").is_dir()
    model, tokenizer = (folder / "text_encoder", folder / "tokenizer") if is_pipeline else (folder, folder)
    config = read_config(model / "config.json")
    found = {name: config.get(name) for name in ("model_type", "d_model", "vocab_size")}
    if [type(value) for value in found.values()] != [str, int, int] or found["model_type"] != "t5":
        raise ValueError(
            f"{model / 'config.json'}: has {found}; wanted model_type 't5' and its sizes: give that of a T5"
        )
    checkpoint = Checkpoint(config, _find_weights(model), _find_tokenizer(tokenizer))
    found_here = "bfloat16" if torch.cuda.is_available() else "float32"
    settings = replace(settings, dtype=settings.dtype or found_here)
    return TextDescription(
        name="t5",
        dim=config["d_model"],
        settings=settings,
        fingerprint=partial(checkpoint.fingerprint, settings),
        load=partial(T5Encoder, checkpoint, settings),
    )


class T5Encoder(TextEncoder):
    """Captions -> the last hidden state of a T5 encoder, one embedding per token and one for the end token.

    An empty caption is the end token alone. It is not the null caption of guidance: STDiT3 learns that one itself.
    """

    name = "t5"

    def __init__(self, checkpoint: Checkpoint, settings: TextSettings) -> None:
        super().__init__(checkpoint.config["d_model"], settings)
        self._checkpoint = checkpoint
        self._tokenizer = _load_tokenizer(checkpoint)
        self._model = _load_model(checkpoint, DTYPES[settings.dtype or "float32"])

    def fingerprint(self) -> str:
        return self._checkpoint.fingerprint(self.settings)

    def to(self, device: Any) -> "T5Encoder":
        self._model.to(device)
        return self

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> (tokens, dim) float16, unpadded, the end token included even where the text was cut."""
        if not texts:
            return []
        ids = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        embedded: dict[int, np.ndarray] = {}
        for batch in similar_lengths([len(one) for one in ids], BATCH_TOKENS):
            hidden = self._embed([torch.tensor(ids[place]) for place in batch])  # (B, L, dim)
            embedded |= {place: row[: len(ids[place])] for place, row in zip(batch, hidden)}
        return [embedded[place] for place in range(len(texts))]

    def _embed(self, ids: list[Tensor]) -> np.ndarray:
        """Token ids (tokens,) of each text of a batch -> (B, L, dim) float16, padded at the end."""
        lengths = torch.tensor([len(one) for one in ids])
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (B, L), with zeros, which the mask hides
        mask = torch.arange(padded.shape[1]) < rearrange(lengths, "b -> b 1")  # (B, L), True = a token
        device = self._model.device
        output = self._model(input_ids=padded.to(device), attention_mask=mask.long().to(device))
        return output.last_hidden_state.half().cpu().numpy()


def similar_lengths(lengths: Sequence[int], padded: int) -> Iterator[list[int]]:
    """Places of `lengths`, the longest first, in groups of at most `padded` when each is padded to its longest."""
    places = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while places:
        count = max(1, padded // lengths[places[0]])
        yield places[:count]
        places = places[count:]


def _find_weights(folder: Path) -> tuple[Path, ...]:
    """The safetensors of one model, all of them there and none a pickle of that name."""
    weights = find_sharded(folder)
    if not weights:
        raise ValueError(
            f"{folder}: found {_listing(folder)}; wanted {WHOLE}, or {INDEX} and its files. Pickled checkpoints "
            f"(*.bin), all that some repositories have, are refused because reading one can run any code: where you "
            f"trust it, convert it with T5EncoderModel.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
        )
    for path in weights:
        read_weights(path, only=())
    return weights


def _find_tokenizer(folder: Path) -> tuple[Path, ...]:
    if not any((folder / name).exists() for name in VOCABULARIES):
        found = _listing(folder) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder}: found {found}; wanted the tokenizer, {' or '.join(VOCABULARIES)}: put its files there, as "
            f"published with the weights"
        )
    return tuple(folder / name for name in TOKENIZER if (folder / name).exists())


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:LISTED]) or "nothing"


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer; ValueError where it is not that of this T5."""
    from transformers import AutoTokenizer  # takes seconds

    folder = checkpoint.tokenizer[0].parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, by what is wrong in which file
        raise ValueError(f"{folder}: its tokenizer cannot be read ({error}); fetch its files again") from error
    highest, rows = max(tokenizer.get_vocab().values()), checkpoint.config["vocab_size"]
    if highest >= rows:
        raise ValueError(f"{folder}: tokens up to {highest} for a T5 of {rows}; give the tokenizer of that T5")
    if tokenizer("")["input_ids"] != [tokenizer.eos_token_id]:
        raise ValueError(f"{folder}: the tokenizer ends no text with its end token, as a T5's does; fetch it again")
    return tokenizer


def _load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The encoder with its weights, in eval mode."""
    from transformers import T5Config, T5EncoderModel  # takes seconds

    with torch.device("meta"):
        model: Any = T5EncoderModel(T5Config.from_dict(dict(checkpoint.config)))
    model.to(dtype)
    if dtype == torch.float16:  # the sum of the residual stream overflows it: in float32 it stays float32 from there on
        for name, module in model.named_modules():
            if name.endswith(".wo"):
                module.float()
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:  # one tensor at a time: T5-XXL has 19 GB in float32
            for name in file.keys():  # noqa: SIM118
                if name.startswith(ENCODER):
                    found[name] = file.get_tensor(name).to(dtypes.get(name))
    for name, same in (EMBEDDINGS, EMBEDDINGS[::-1]):
        if same in found:
            found.setdefault(name, found[same])
    fill_weights(model, found, str(checkpoint.weights[0].parent))
    model.tie_weights()  # one matrix again
    return model.eval().requires_grad_(False)
