"""A small T5 with random weights and its tokenizer, to read or to change."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import publish_t5


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole T5, decoder and all; not to be changed."""
    return publish_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(published, tmp_path / "t5"))
