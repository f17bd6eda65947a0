"""The token's file is its owner's alone, whoever made it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.token import keep_token_private, make_token, token_path

MODE = "import cluster, os; print(os.environ.get('RAY_AUTH_MODE'))"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it goes at home, where there is none yet."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_a_new_token_was_never_readable_by_others(token: Path) -> None:
    before = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(before)
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert len(token.read_text()) == 64 and [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_is_there_is_kept(token: Path) -> None:
    make_token()
    first = token.read_text()
    make_token()
    assert token.read_text() == first


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "s"), ("RAY_AUTH_TOKEN_PATH", "s"), ("RAY_AUTH_MODE", "disabled")]
)
def test_none_is_made_where_another_is_meant(
    token: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_token()
    assert not token.exists()


def test_a_token_that_others_could_read_is_mended(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.parent.mkdir()
    elsewhere = token.with_name("elsewhere")
    for path in (token, elsewhere):
        path.write_text("s")
        path.chmod(0o644)
    keep_token_private()
    assert [path.stat().st_mode & 0o777 for path in (token, elsewhere)] == [0o600, 0o644]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(elsewhere))
    keep_token_private()
    assert token_path() == elsewhere and elsewhere.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("program", "given", "mode"),
    [(MODE, {}, "token"), (MODE, {"RAY_AUTH_MODE": "disabled"}, "disabled"), (f"import ray; {MODE}", {}, "None")],
    ids=["by default", "a user's own word counts", "not once Ray has read it"],
)
def test_ray_is_told_to_want_a_token_before_it_is_imported(program: str, given: dict[str, str], mode: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | given
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [mode]
