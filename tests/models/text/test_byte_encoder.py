"""One token per byte, always the same, unlike any other, and aware of the three bytes before."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from models.text import load_text_encoder
from models.text.byte_encoder import ByteEncoder
from models.text.interface import TextSettings

ENCODER = ByteEncoder()


def tokens(caption: str, encoder: ByteEncoder = ENCODER) -> np.ndarray:
    return encoder.encode([caption])[0].astype(np.float64)


def positions(length: int) -> np.ndarray:
    """The position part alone: what is common to different texts at the same place."""
    half = ENCODER.dim // 2
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1) * np.sqrt(0.5)


@pytest.mark.parametrize(("caption", "length"), [("", 0), ("a", 1), ("red", 3), ("Grün", 5), ("🙂", 4)])
def test_a_token_for_every_byte(caption: str, length: int) -> None:
    (encoded,) = ENCODER.encode([caption])
    assert encoded.shape == (length, 256) and encoded.dtype == np.float16


def test_long_captions_are_cut() -> None:
    long = "ab" * 400
    assert np.array_equal(tokens(long), tokens(long[: ENCODER.max_tokens]))
    assert len(tokens(long)) == 300


def test_captions_do_not_disturb_each_other() -> None:
    together = ENCODER.encode(["red", "", "a green circle"])
    assert all(np.array_equal(one, tokens(text)) for one, text in zip(together, ["red", "", "a green circle"]))


def test_the_last_four_bytes_and_the_place_decide_a_token() -> None:
    first, second = tokens("xx a red square"), tokens("yy a red square")
    assert not np.allclose(first[4], second[4])  # still sees the second letter
    assert np.array_equal(first[5:], second[5:])


def test_order_matters_within_the_window() -> None:
    bytes_of_red, bytes_of_der = tokens("red")[-1], tokens("der")[-1]
    assert np.corrcoef(bytes_of_red, bytes_of_der)[0, 1] < 0.9
    assert not np.allclose(tokens("abcd")[-1], tokens("bacd")[-1])


def test_the_same_bytes_elsewhere_differ_by_position_only() -> None:
    text = tokens("redsredsreds") - positions(12)
    assert np.allclose(text[3], text[7], atol=2e-3) and np.allclose(text[7], text[11], atol=2e-3)
    raw = tokens("redsredsreds")
    assert not np.allclose(raw[3], raw[7], atol=0.1)


def test_the_bytes_have_unit_variance_and_the_places_a_quarter() -> None:
    text = tokens("the quick brown fox jumps over the lazy dog")
    content = text - positions(len(text))
    assert np.var(content[3:]) == pytest.approx(1, abs=0.15)
    assert np.var(positions(300)) == pytest.approx(0.25, abs=0.08)


def test_different_bytes_are_nearly_orthogonal() -> None:
    vectors = np.concatenate([tokens(chr(code))[:1] for code in range(32, 127)]) - positions(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    overlaps = vectors @ vectors.T - np.eye(len(vectors))
    assert np.abs(overlaps).max() < 0.35


def test_another_process_gives_the_same_embedding() -> None:
    code = (
        "import hashlib; from models.text.byte_encoder import ByteEncoder; "
        "print(hashlib.sha256(ByteEncoder(48).encode(['a red square'])[0].tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == hashlib.sha256(ByteEncoder(48).encode(["a red square"])[0].tobytes()).hexdigest()


def test_byte_vectors_are_those_of_shake_256() -> None:
    digest = np.frombuffer(hashlib.shake_256(b"0/97").digest(32), np.uint8)  # of "a" at its own place
    signs = np.unpackbits(digest).astype(float) * 2 - 1
    assert np.array_equal(np.sign(tokens("a")[0, :128]), signs[:128])  # at place 0 the sines are zero


def test_everything_that_decides_an_embedding_is_in_the_fingerprint() -> None:
    before = ByteEncoder().fingerprint()
    assert ByteEncoder().fingerprint() == before != ByteEncoder(128).fingerprint()
    assert ByteEncoder(settings=TextSettings(max_tokens=20)).fingerprint() != before
    assert ByteEncoder(settings=TextSettings(clean=True)).fingerprint() != before


def test_it_is_known_by_name() -> None:
    assert load_text_encoder("bytes").name == "bytes"
