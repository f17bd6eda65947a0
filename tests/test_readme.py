"""The README tells the truth about the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("models", "pipeline", "jobs", "cluster"))]
PATH = re.compile(r"`([\w./-]+(?:\.(?:py|md|toml|txt|png)|/))`")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_it_names_exists(readme: Path) -> None:
    named = [name for name in PATH.findall(readme.read_text()) if "CACHE" not in name]
    produced = {"run.toml", "loss.png", "contact_sheet.png", "samples.png", "tensorboard/", "latents/", "demo/"}
    missing = [
        name for name in set(named) - produced if not ((readme.parent / name).exists() or (ROOT / name).exists())
    ]
    assert named and not missing


def test_the_file_map_names_every_folder_and_file_of_the_top_level() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("models/", "pipeline/", "jobs/", "cluster/", "tests/", "LOG.md", "constraints.txt", "pyproject.toml"):
        assert f"`{name}`" in text


def test_the_picture_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert (ROOT / picture).stat().st_size <= 200_000
