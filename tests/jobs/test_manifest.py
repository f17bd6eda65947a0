"""`manifest`: what it prints is what it writes, and both are whole."""

import subprocess
from pathlib import Path

import pytest
import yaml

from jobs.config import RunConfig
from jobs.manifest import DOCUMENTS, Target, make_manifest, manifest, yaml_text
from jobs.run_toml import load_config
from pipeline.errors import Refused

TARGETS: list[Target] = [*DOCUMENTS, "slurm"]  # of clusters
each = pytest.mark.parametrize("target", TARGETS)


@pytest.fixture
def config() -> RunConfig:
    words = ["data.cache=/mnt/latentmill/cache", "data.source=/mnt/latentmill/videos", "train.out=/mnt/latentmill/out"]
    cloud = ["volume=shared", "region=us-west-2", "machine_image=ami-1", "project=mine"]
    return load_config(None, [*words, *(f"cluster.{word}" for word in cloud)])


@each
def test_prints_or_writes_the_same(
    config: RunConfig, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    manifest(config, target, "encode", None)
    printed = capsys.readouterr().out
    manifest(config, target, "encode", tmp_path / "new")
    [path] = (tmp_path / "new").iterdir()
    assert path.read_text() == printed
    told = capsys.readouterr().out
    assert str(path) in told
    assert path.name == f"latentmill-encode.{target}.{'sbatch' if target == 'slurm' else 'yaml'}"


@each
def test_no_manifest_repeats_a_secret_of_this_machine(
    config: RunConfig, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("s3cret-of-ray")
    for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "s3cret-of-the-environment")
    assert "s3cret" not in make_manifest(config, target, "run")


@each
def test_what_is_refused_writes_nothing(target: Target, tmp_path: Path) -> None:
    config = load_config(None, ["encode.encoder_cpus=100"])
    with pytest.raises(Refused):
        manifest(config, target, "encode", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["kuberay", "kuberay-cluster", "aws", "gcp"])
def test_yaml_reads_back_as_it_was_made(config: RunConfig, target: Target) -> None:
    text = make_manifest(config, target, "run")
    assert yaml_text(list(yaml.safe_load_all(text))) == text
    assert not any(line.lstrip().startswith(("&", "*")) or ": &" in line or ": *" in line for line in text.splitlines())


def test_a_text_of_several_lines_stays_one() -> None:
    assert yaml_text([{"b": "x\ny\n", "a": 1}]) == "b: |\n  x\n  y\na: 1\n"


def test_a_cache_that_this_machine_cannot_open_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    nowhere = "s3://bucket/cache?region=us-west-2&scheme=http&endpoint_override=127.0.0.1:9"
    words = ["data.source=s3://bucket/videos", "train.out=/mnt/latentmill/out", "cluster.volume=shared"]
    assert nowhere in make_manifest(load_config(None, [f"data.cache={nowhere}", *words]), "kuberay", "run")


def test_slurm_needs_no_volume_for_its_nodes_share_their_folders(tmp_path: Path) -> None:
    config = load_config(None, [f"data.cache={tmp_path}/cache", "cluster.decode_nodes=4", "cluster.gpu_nodes=1"])
    script = make_manifest(config, "slurm", "encode")
    assert "#SBATCH --nodes=1\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
