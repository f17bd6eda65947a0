"""`vae --explain`: frames -> latents, and every number with where it comes from."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.config import ConfigError
from jobs.explain_vae import FRAMES_SHOWN, explain, frame_rows, grouping, headline, number_rows
from models.vae import VAES, describe_vae
from models.vae.published import PUBLISHED
from tests.checkpoints import publish

OPEN_SORA = PUBLISHED["open-sora-v1.2"]


def shown(capsys: pytest.CaptureFixture[str], what: str) -> str:
    explain(what)
    return " ".join(capsys.readouterr().out.split())


def test_seventeen_frames_are_one_and_four_times_four() -> None:
    rows = {frames: (latents, how) for frames, latents, how in frame_rows(OPEN_SORA, FRAMES_SHOWN)}
    assert list(rows) == [str(frames) for frames in range(1, 41)]
    assert rows["1"] == ("1", "1 -> 1")
    assert rows["17"] == ("5", "1+4+4+4+4 -> 1+4")
    assert rows["34"] == ("10", "1+4+4+4+4 | 1+4+4+4+4 -> 1+4 | 1+4")
    assert rows["20"] == ("6", "1+4+4+4+4 | 3 -> 1+4 | 1")


def test_the_latents_shown_are_those_the_vae_gives() -> None:
    vae = describe_vae("dct").load()
    for frames, latents, _ in frame_rows(describe_vae("dct"), FRAMES_SHOWN):
        assert vae.encode(torch.zeros(1, 3, int(frames), 8, 8)).shape[2] == int(latents)


def test_frames_that_would_be_lost_are_shown_as_refused() -> None:
    rows = {frames: (latents, how) for frames, latents, how in frame_rows(PUBLISHED["open-sora-plan"], 20)}
    assert rows["16"] == ("-", "refused: 3 would be lost; 13 or 17")
    assert rows["18"] == ("6", "1+4+4+4+4 | 1 -> 1+4 | 1")
    assert rows["19"] == ("-", "refused: 1 would be lost; 18 or 22")


def test_frame_by_frame_there_are_no_groups() -> None:
    assert grouping(17, 1) == "17 x 1"
    assert frame_rows(PUBLISHED["sd"], 3)[2] == ("3", "3", "3 x 1 -> 3")


def test_open_soras_numbers_have_their_origins() -> None:
    rows = {name: (value, origin) for name, value, origin in number_rows(OPEN_SORA)}
    assert rows["shift"][0] == "-0.1, 0.34, 0.27, 0.98" and "means over its training videos" in rows["shift"][1]
    assert rows["scale"][0] == "3.85, 2.32, 2.33, 3.06"
    assert rows["scaling_factor"][0] == "1.0" and "0.18215 between its parts" in rows["scaling_factor"][1]
    assert "4x8x8 pixels" in headline(OPEN_SORA.spec)


@pytest.mark.parametrize("family", sorted(VAES.keys() - {"diffusers"}))
def test_every_family_is_explained_by_its_name(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, family)
    assert text.startswith(f"{family}: ") and "where it comes from" in text


@pytest.mark.parametrize(
    ("published", "family"),
    [
        ("sd", "sd"),
        ("open-sora-v1.2", "open-sora-v1.2"),
        ("open-sora-plan", "open-sora-plan"),
        ("AutoencoderKLWan", "diffusers:AutoencoderKLWan"),
        ("AutoencoderKLLTXVideo", "diffusers:AutoencoderKLLTXVideo"),
    ],
)
def test_a_folder_is_recognized(
    published: str, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(published, tmp_path)
    text = shown(capsys, str(tmp_path))
    assert text.startswith(f"{family}: ")
    assert "config.json" in text or "model.safetensors" in text
    assert "weights_sha256" in text


def test_the_published_numbers_load_nothing() -> None:
    with pytest.raises(ValueError, match="give a folder or hub id"):
        OPEN_SORA.load()


@pytest.mark.parametrize(("what", "message"), [("nosuch", "no such file or folder"), ("dct:0", "1 to 64")])
def test_what_is_no_vae_is_one_line(what: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(what)


def test_the_verb_shows_it() -> None:
    result = CliRunner().invoke(app, ["vae", "--explain", "dct"])
    assert result.exit_code == 0 and "1+4+4+4+4 -> 1+4" in result.output
