"""Scratch files lie where nobody else can write, or are refused."""

import os
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.scratch import scratch_folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's folder is to be."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"latentmill-{os.getuid()}"


def test_each_purpose_has_a_folder_that_stays(own: Path) -> None:
    (scratch_folder("views") / "file").touch()
    assert scratch_folder("downloads") == own / "downloads"
    assert [path.name for path in scratch_folder("views").iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_nobody_else_can_open_it(own: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        scratch_folder("views")
    finally:
        os.umask(before)
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_open_is_refused(own: Path, mode: int) -> None:
    own.mkdir()
    own.chmod(mode)
    with pytest.raises(Refused, match=rf"{own}: belongs to another user, or others can open it.*set TMPDIR"):
        scratch_folder("views")
    assert not (own / "views").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_refused(own: Path) -> None:
    own.mkdir(mode=0o700)
    os.chown(own, 12345, 12345)
    with pytest.raises(Refused, match="belongs to another user"):
        scratch_folder("views")


def test_a_link_is_refused_wherever_it_leads(own: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="belongs to another user, or others can open it"):
        scratch_folder("views")


@pytest.mark.parametrize("where", ["nowhere", "file"])
def test_where_none_can_be_made_it_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / where))
    with pytest.raises(Refused, match=rf"no folder for views: .*{where}.*; set TMPDIR to one that can be written"):
        scratch_folder("views")
