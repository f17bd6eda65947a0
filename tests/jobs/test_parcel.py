"""What travels with a job: code and configuration, the same for the same run, and nothing that is not meant to."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.parcel import CONFIG_NAME, PACKAGES, pack, packages
from jobs.run_toml import load_config
from tests.conftest import cache_config

MOST_BYTES = 3 * 2**20  # it is sent for every change of a knob


def config_of(tmp_path: Path, *more: str) -> RunConfig:
    return cache_config(tmp_path / "videos.csv", tmp_path, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_run_makes_the_same_small_parcel_of_code_and_configuration(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    first, second = (contents(pack(config, tmp_path / name)) for name in ("first", "second"))
    assert first == second
    assert {name.partition("/")[0] for name in first} == {*PACKAGES, CONFIG_NAME}
    assert {os.path.splitext(name)[1] for name in first} == {".py", ".toml"}
    assert sum(map(len, first.values())) < MOST_BYTES


def test_the_configuration_arrives_whole_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    knobs = ["data.source=videos", "train.tokens=77", 'train.mix={"more" = 0.5}', r'sample.prompts=["\"a\nb\\"]']
    config = load_config(None, [*knobs, "cluster.address=http://there:8265"])
    path = pack(config, tmp_path / "parcel") / CONFIG_NAME
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the default data.cache would be another one
    arrived = load_config(path, [])
    assert arrived.model_dump(exclude={"cluster": {"address"}}) == config.model_dump(exclude={"cluster": {"address"}})
    assert arrived.cluster.address == ""  # over there it is another


def test_no_credential_of_this_machine_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "not-for-other-eyes")
    assert not [name for name, data in contents(pack(config_of(tmp_path), tmp_path / "p")).items() if b"-eyes" in data]


def test_pip_is_told_the_versions_that_are_installed_here_and_nothing_without_being_asked(tmp_path: Path) -> None:
    assert packages(pack(config_of(tmp_path), tmp_path / "plain")) == ()
    pins = packages(pack(config_of(tmp_path, "cluster.pip=true"), tmp_path / "pinned"))
    versions = dict(pin.split("==") for pin in pins)
    assert versions["einops"] == importlib.metadata.version("einops")
    assert versions["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert {"ray", "pytest", "tomli"} & versions.keys() <= {"tomli"}
