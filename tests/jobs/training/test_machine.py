"""What DeepSpeed needs of a machine is told before it fails."""

from pathlib import Path

import pytest

from jobs.training.machine import compiler_problem


def test_a_missing_compiler_is_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_problem() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_problem().startswith("no C++ compiler")
    assert "install g++" in compiler_problem()
