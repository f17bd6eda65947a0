"""The embeddings are those of transformers' encoder on SentencePiece's tokens, whatever captions stand together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.text import load_text_encoder, t5
from models.text.interface import TextEncoder, TextSettings
from models.text.t5 import similar_lengths

END = 1
CAPTIONS = [
    "a red circle moves across the field",
    "",
    "dog",
    "the blue square " * 9,
    "Grün, “odd”!  two  spaces",
    "dog",
]
HALF: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5}  # the rounding of float16


@pytest.fixture(scope="module")
def encoder(published: Path) -> TextEncoder:
    return load_text_encoder("t5", published)


def token_ids(folder: Path, caption: str) -> list[int]:
    """Of SentencePiece itself, and the end token."""
    return [*sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode(caption), END]


def expected(folder: Path, ids: list[int]) -> np.ndarray:
    """The last hidden state (tokens, dim) of one caption that nothing pads, by transformers alone."""
    model = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()


def test_embeddings_are_the_last_hidden_state_at_the_true_length(published: Path, encoder: TextEncoder):
    for caption, tokens in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        wanted = expected(published, token_ids(published, caption))
        assert tokens.dtype == np.float16 and tokens.shape == wanted.shape
        assert np.allclose(tokens, wanted, **HALF)


def test_padding_to_300_tokens_as_open_sora_does_changes_nothing(published: Path, encoder: TextEncoder):
    ids = token_ids(published, CAPTIONS[0])
    padded = torch.tensor([ids + [0] * (300 - len(ids))])
    model = transformers.T5EncoderModel.from_pretrained(published).eval()
    with torch.no_grad():
        states = model(input_ids=padded, attention_mask=(torch.arange(300) < len(ids))[None].long()).last_hidden_state
    assert np.allclose(encoder.encode(CAPTIONS[:1])[0], states[0, : len(ids)].numpy(), **HALF)


def test_captions_do_not_disturb_each_other(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch):
    together = encoder.encode(CAPTIONS)
    monkeypatch.setattr(t5, "BATCH_TOKENS", 20)
    in_batches = encoder.encode(CAPTIONS)
    alone = [encoder.encode([caption])[0] for caption in CAPTIONS]
    for one, other, third in zip(together, in_batches, alone, strict=True):
        assert np.allclose(one, other, **HALF) and np.allclose(one, third, **HALF)


def test_an_empty_caption_is_the_end_token_alone(published: Path, encoder: TextEncoder):
    (tokens,) = encoder.encode([""])
    assert np.allclose(tokens, expected(published, [END]), **HALF)


def test_no_captions_have_no_embeddings(encoder: TextEncoder):
    assert encoder.encode([]) == []


def test_long_captions_are_cut_and_still_end(published: Path):
    encoder = load_text_encoder("t5", published, TextSettings(max_tokens=5))
    ids = token_ids(published, CAPTIONS[3])
    short, long = encoder.encode(["dog", CAPTIONS[3]])
    assert len(short) == len(token_ids(published, "dog"))
    assert np.allclose(long, expected(published, [*ids[:4], END]), **HALF)


def test_three_hundred_tokens_are_the_default(encoder: TextEncoder):
    assert encoder.max_tokens == 300
    assert [len(tokens) for tokens in encoder.encode(["red " * 299, "red " * 300])] == [300, 300]


def test_captions_are_cleaned_where_asked_only(published: Path, encoder: TextEncoder):
    cleaning = load_text_encoder("t5", published, TextSettings(clean=True))
    dirty = "A RED <b>Circle</b> http://example.com/a"
    assert np.array_equal(cleaning.encode([dirty])[0], encoder.encode(["a red circle"])[0])
    assert len(encoder.encode([dirty])[0]) > len(encoder.encode(["a red circle"])[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_own_padding_side_does_not_matter(folder: Path, encoder: TextEncoder, side: str):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    for one, other in zip(load_text_encoder("t5", folder).encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True):
        assert np.array_equal(one, other)


def scale_weights(folder: Path, ending: str, factor: float) -> None:
    path = folder / "model.safetensors"
    scaled = {name: tensor * (factor if name.endswith(ending) else 1) for name, tensor in load_file(path).items()}
    save_file(scaled, path)


def relative_error(encoder: TextEncoder, exact: TextEncoder) -> float:
    """Of all tokens of CAPTIONS: length of the difference over length."""
    found, wanted = (np.concatenate(one.encode(CAPTIONS)).astype(np.float64) for one in (encoder, exact))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_half_precision_is_close(published: Path, encoder: TextEncoder):
    assert 1e-4 < relative_error(load_text_encoder("t5", published, TextSettings(dtype="float16")), encoder) < 0.01
    assert 5e-3 < relative_error(load_text_encoder("t5", published, TextSettings(dtype="bfloat16")), encoder) < 0.08


def test_a_residual_stream_beyond_float16_does_not_hurt_it(folder: Path):
    scale_weights(folder, "DenseReluDense.wo.weight", 1e6)
    exact, half = load_text_encoder("t5", folder), load_text_encoder("t5", folder, TextSettings(dtype="float16"))
    assert relative_error(half, exact) < 0.01


def test_an_embedding_beyond_float16_names_its_caption(folder: Path):
    scale_weights(folder, "final_layer_norm.weight", 1e6)
    with pytest.raises(ValueError, match="'dog' by t5 in float32 is not finite in float16.*use bfloat16 or float32"):
        load_text_encoder("t5", folder).encode(["dog"])


def test_weights_that_are_not_numbers_are_not_kept(folder: Path):
    scale_weights(folder, "SelfAttention.q.weight", float("nan"))
    with pytest.raises(ValueError, match="is not finite"):
        load_text_encoder("t5", folder).encode(["dog", "a red circle"])


def test_it_moves_to_a_device_and_stays_the_same_encoder(published: Path):
    encoder = load_text_encoder("t5", published)
    assert encoder.to("meta") is encoder
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the weights are gone there
        encoder.encode(["dog"])


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 1000))
def test_every_place_is_in_one_batch_that_fits(lengths: list[int], padded: int):
    batches = list(similar_lengths(lengths, padded))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= padded


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 1000))
def test_batches_go_from_long_to_short(lengths: list[int], padded: int):
    order = [lengths[place] for batch in similar_lengths(lengths, padded) for place in batch]
    assert order == sorted(lengths, reverse=True)
