"""Copies of checkpoints in folders and object stores, while others are written and deleted."""

import shutil
from pathlib import Path
from threading import Event

import pytest

from jobs.config import TrainConfig
from jobs.events import Events, read_events
from jobs.training.committed import list_committed, read_committed
from jobs.training.copies import Keeper, fetch_newest, list_copies
from pipeline.errors import Refused
from pipeline.location import place_of
from tests.jobs.training.test_committed import committed, names
from tests.object_store import Bucket, Request


def keeper_of(settings: TrainConfig) -> Keeper:
    return Keeper(settings, Events(settings.out / "events.jsonl", "train"))


def copied(settings: TrainConfig) -> list[str]:
    assert settings.checkpoint_to is not None
    return [copy.name for copy in list_copies(place_of(settings.checkpoint_to))]


def told(settings: TrainConfig, event: str) -> list[dict]:
    return [one for one in read_events(settings.out / "events.jsonl") if one["event"] == event]


@pytest.mark.parametrize("where", ["folder", "store"])
def test_copies_are_kept_as_checkpoints_are_and_a_run_without_any_is_given_the_newest(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    place = request.getfixturevalue("store").uri("copies") if where == "store" else str(tmp_path / "to")
    settings = TrainConfig(out=tmp_path / "run", checkpoint_to=place, keep_checkpoints=1, keep_every=10)
    folder = settings.out / "checkpoints"
    for name in ("run.json", "metrics.jsonl", "stretches/0/stretch.json"):
        (settings.out / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.out / name).write_text(name)
    keeper = keeper_of(settings)
    for step in (10, 15, 20, 25):
        committed(folder, step)
        keeper.keep()
        keeper.finish()
    assert names(folder) == copied(settings) == ["step-00000010", "step-00000020", "step-00000025"]
    newest = read_committed(folder / "step-00000025")
    shutil.rmtree(settings.out)
    fetch_newest(settings)
    assert names(folder) == ["step-00000025"] and read_committed(folder / "step-00000025") == newest
    for name in ("run.json", "metrics.jsonl", "stretches/0/stretch.json"):
        assert (settings.out / name).read_text() == name
    committed(folder, 30)
    fetch_newest(settings)  # it has its own
    assert names(folder) == ["step-00000025", "step-00000030"]


def test_what_is_being_copied_is_not_deleted_and_training_does_not_wait(store: Bucket, tmp_path: Path) -> None:
    settings = TrainConfig(out=tmp_path / "run", checkpoint_to=store.uri("slow"), keep_checkpoints=1)
    folder, begun, go_on = settings.out / "checkpoints", Event(), Event()

    def wait(request: Request) -> None:
        if request.verb == "PUT" and request.key == "slow/step-00000001/b":
            begun.set()
            assert go_on.wait(60)

    store.door.before = wait
    keeper = keeper_of(settings)
    committed(folder, 1)
    keeper.keep()
    assert begun.wait(60)
    for step in (2, 3):
        committed(folder, step)
        keeper.keep()
    assert names(folder) == ["step-00000001", "step-00000003"]
    go_on.set()
    keeper.finish()
    keeper.keep()
    assert names(folder) == copied(settings) == ["step-00000003"]
    keys = [request.key for request in store.asked("PUT") if request.key.startswith("slow/step-00000001/")]
    assert keys[-1].endswith("COMMITTED.json")


def test_a_copy_that_fails_is_told_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainConfig(out=tmp_path / "run", checkpoint_to=str(tmp_path / "to"))
    (tmp_path / "to").write_text("a file where the folder should be")
    keeper = keeper_of(settings)
    committed(settings.out / "checkpoints", 1)
    keeper.keep()
    keeper.finish()
    assert "a checkpoint is not copied, and training goes on: " in capsys.readouterr().out
    assert "cannot be written" in told(settings, "copy failed")[0]["message"]
    (tmp_path / "to").unlink()
    keeper.keep()
    keeper.finish()
    assert copied(settings) == ["step-00000001"]
    assert [one["checkpoint"] for one in told(settings, "copied")] == ["step-00000001"]


def test_half_copies_do_not_count_and_are_removed(tmp_path: Path) -> None:
    settings = TrainConfig(out=tmp_path / "run", checkpoint_to=str(tmp_path / "to"))
    half = committed(tmp_path / "to", 1)
    (half / "COMMITTED.json").unlink()
    fetch_newest(settings)
    assert not settings.out.exists()
    committed(settings.out / "checkpoints", 2)
    keeper_of(settings).finish()
    assert names(tmp_path / "to") == ["step-00000002"]


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    settings = TrainConfig(out=tmp_path / "run", checkpoint_to=str(tmp_path / "to"))
    (committed(tmp_path / "to", 1) / "b").write_bytes(b"123456788")
    with pytest.raises(Refused, match=r"to/step-00000001: damaged, or on its way here: .*b: is not as it was written"):
        fetch_newest(settings)
    assert list_committed(settings.out / "checkpoints") == [] and names(settings.out / "checkpoints") == []
