"""The knobs: paths are made whole, and nothing changes after that."""

import re
from pathlib import Path

import pytest

from jobs.config import ConfigError, RunConfig
from jobs.run_toml import load_config, make_config
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


SECRET = re.compile(r"passw|credential|(access|api|private|secret)_?key|(^|_)(token|auth)$")
CODE = re.compile(r"env|runtime|module|class|import|hook|plugin|entrypoint|command|script|shell")


def knobs() -> list[str]:
    sections = RunConfig.model_fields.items()
    return [f"{name}.{knob}" for name, field in sections for knob in getattr(field.annotation, "model_fields")]  # noqa: B009


def test_no_knob_is_for_a_secret_or_for_code() -> None:
    named = [knob.partition(".")[2] for knob in knobs()]
    assert len(named) > 100
    assert not list(filter(SECRET.search, named)) and not list(filter(CODE.search, named))
    with pytest.raises(ConfigError, match="cluster.runtime_env: unknown key"):
        load_config(None, ["cluster.runtime_env={env_vars = {LD_PRELOAD = 'evil.so'}}"])


@pytest.mark.parametrize("knob", ["secret", "redis_secret"])
@pytest.mark.parametrize("value", ["AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG", "a b", "-"])
def test_a_secret_is_named_and_not_given(knob: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{knob}: found"):
        load_config(None, [f"cluster.{knob}={value}"])
    assert getattr(load_config(None, [f"cluster.{knob}=s3-keys.v1"]).cluster, knob) == "s3-keys.v1"


WORDS = ("image", "gpu_machine", "machine_image", "volume", "mount", "service_account", "queue", "redis")
WORDS = (*WORDS, "region", "zone", "project")


@pytest.mark.parametrize("knob", WORDS)
@pytest.mark.parametrize("evil", ["a b", "a;b", "$(a)", "`a`", "a|b", "a\nb", "a'b", 'a"b', "a&b", "a\\b"])
def test_what_manifests_put_into_lines_for_a_shell_cannot_end_a_word(knob: str, evil: str) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.{knob}: found"):
        make_config({"cluster": {knob: evil}}, "run.toml")


@pytest.mark.parametrize("evil", ["--a\nrm -rf ~", "rm -rf ~", "", "--a\x1b"])
def test_an_option_of_sbatch_is_one_line(evil: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.slurm_options\.0: found"):
        make_config({"cluster": {"slurm_options": (evil,)}}, "run.toml")
