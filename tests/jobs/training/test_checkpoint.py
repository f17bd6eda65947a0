"""Checkpoints: what counts as one, and which are kept."""

from pathlib import Path

from jobs.training.checkpoint import list_committed, prune, step_of


def commit(folder: Path, step: int) -> Path:
    checkpoint = folder / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED.json").write_text("{}")
    return checkpoint


def test_only_committed_checkpoints_count(tmp_path: Path) -> None:
    second, first = commit(tmp_path, 20), commit(tmp_path, 3)
    (tmp_path / "step-00000030").mkdir()  # renamed by nobody: no mark
    (commit(tmp_path, 40)).rename(tmp_path / "step-00000040.tmp")  # marked, but not renamed
    assert list_committed(tmp_path) == [first, second]
    assert step_of(second) == 20


def test_pruning_keeps_the_newest_and_removes_what_crashes_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        commit(tmp_path, step)
    (tmp_path / "step-00000004.tmp").mkdir()
    prune(tmp_path, keep_last=2, keep_every=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
