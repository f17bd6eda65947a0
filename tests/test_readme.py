"""The READMEs tell the truth about the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("models", "pipeline", "jobs", "cluster"))]
PATH = re.compile(r"`([\w./-]+(?:\.(?:py|md|toml|txt|png)|/))`")
MADE_BY_RUNS = {"demo", "run.toml", "a.txt", "loss.png", "init.txt", "tensorboard", "latents", "model", "ema"}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_it_names_exists(readme: Path) -> None:
    named = {name for name in PATH.findall(readme.read_text()) if name.split("/")[0] not in MADE_BY_RUNS}
    missing = [name for name in named if not any((top / name).exists() for top in (readme.parent, ROOT))]
    assert named and not missing


def test_the_file_map_names_everything_at_the_top() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("models/", "pipeline/", "jobs/", "cluster/", "tests/", "LOG.md", "constraints.txt", "pyproject.toml"):
        assert f"`{name}`" in text


@pytest.mark.parametrize("floor", ["pipeline", "jobs", "cluster"])
def test_a_folders_readme_names_every_file_in_it(floor: str) -> None:
    text = (ROOT / floor / "README.md").read_text()
    unnamed = [path.name for path in (ROOT / floor).glob("*.py") if path.stem != "__init__" and path.name not in text]
    assert not unnamed


def test_the_picture_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert (ROOT / picture).stat().st_size <= 200_000
