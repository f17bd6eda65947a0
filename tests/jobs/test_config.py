"""The knobs: paths are made whole, and nothing changes after that."""

from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.run_toml import load_config
from tests.checkpoints import publish


def test_relative_paths_start_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["data.source=mine"]).data.source == str(tmp_path / "mine")
    assert load_config(None, []).data.cache == str(tmp_path / "cache")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.steps = 3  # pyright: ignore


def test_a_vae_in_a_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("AutoencoderKLWan", tmp_path / "wan")
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["recipe.vae=diffusers:wan"])
    assert config.recipe.vae == f"diffusers:{tmp_path / 'wan'}"
    config = load_config(None, ["recipe.vae=diffusers", "recipe.vae_path=wan"])
    assert config.recipe.vae_path == str(tmp_path / "wan")
