"""Copies of checkpoints in another place, made while training goes on, and where a run whose folder is empty goes on.

A copy is as the checkpoint is, below the same name, and its `COMMITTED.json` comes last. Beside the copies lies what
else of `train.out` a run needs to go on as the same one.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from jobs.config import TrainConfig
from jobs.events import Events
from jobs.progress import say
from jobs.training import committed
from jobs.training.committed import COMMIT_NAME, find_damage, list_committed, parse_committed, step_of
from pipeline.errors import Refused
from pipeline.location import Place, place_of
from pipeline.storage import copy_file, in_parallel, list_files, list_folders, size_of, writing


class Keeper:
    """Keeps as many checkpoints as [train] says, and copies of them where it says so, in a thread; used by one rank.

    What goes wrong with copying is told, and tried again after the next checkpoint and at the end.
    """

    def __init__(self, settings: TrainConfig, events: Events) -> None:
        self.settings, self.events = settings, events
        self.folder = settings.out / "checkpoints"
        self.place = None if settings.checkpoint_to is None else place_of(settings.checkpoint_to)
        self._copied: set[str] = set()  # names of checkpoints
        self._copying: Path | None = None
        self._choosing = Lock()  # what is chosen to be copied is not deleted before it is
        self._thread = ThreadPoolExecutor(1)
        self._work: Future[None] | None = None

    def keep(self) -> None:
        """After a checkpoint: delete those that it supersedes, and have it copied."""
        with self._choosing:
            spared = () if self._copying is None else (self._copying,)
            committed.prune(self.folder, self.settings.keep_checkpoints, self.settings.keep_every, spared)
        if self.place is not None and (self._work is None or self._work.done()):
            if self._work is not None:
                self._work.result()  # raises what was not foreseen
            self._work = self._thread.submit(self._copy_all, self.place)

    def finish(self) -> None:
        """Wait until all is copied."""
        if self._work is not None:
            self._work.result()
        if self.place is not None:
            self._copy_all(self.place)  # what was committed while it ended

    def _copy_all(self, place: Place) -> None:
        """Copy what has no copy yet, the newest first."""
        try:
            self._copied |= {copy.name for copy in list_copies(place)}
            while checkpoint := self._choose():
                copy_records(self.settings.out, place)
                copy_checkpoint(checkpoint, place)
                self._copied.add(checkpoint.name)
                prune_copies(place, self.settings.keep_checkpoints, self.settings.keep_every)
                self.events.write("copied", checkpoint=checkpoint.name, to=str(place))
        except (OSError, Refused) as error:
            self.events.write("copy failed", to=str(place), message=str(error))
            say(f"train: a checkpoint is not copied, and training goes on: {error}")
        finally:
            self._copying = None

    def _choose(self) -> Path | None:
        with self._choosing:
            left = [path for path in list_committed(self.folder) if path.name not in self._copied]
            self._copying = left[-1] if left else None
        return self._copying


def copy_checkpoint(checkpoint: Path, place: Place) -> None:
    """Bring a committed checkpoint to another place, its mark last."""
    files, copy = committed.read_committed(checkpoint).files, place / checkpoint.name
    for file in files:
        copy_file(checkpoint / file.name, copy / file.name)
    if gone := [file.name for file in files if size_of(copy / file.name) != file.num_bytes]:
        raise Refused(f"{copy / gone[0]}: changed while it was copied; another run writes there")
    copy_file(checkpoint / COMMIT_NAME, copy / COMMIT_NAME)


def copy_records(source: Place, place: Place) -> None:
    """Bring along what a run needs to go on as the same one, as far as it is there."""
    stretches = [f"stretches/{folder.name}/stretch.json" for folder in list_folders(source / "stretches")]
    for name in ("run.json", "metrics.jsonl", *stretches):
        if (source / name).exists():
            copy_file(source / name, place / name)


def list_copies(place: Place) -> list[Place]:
    """The checkpoints that are whole in another place, oldest first."""
    folders = _folders(place)
    marks = in_parallel(lambda folder: (folder / COMMIT_NAME).exists(), folders)
    return [folder for folder, is_marked in zip(folders, marks) if is_marked]


def prune_copies(place: Place, keep_last: int, keep_every: int) -> None:
    """Delete superseded copies and what is not whole. Called while nothing is being copied."""
    whole = {step_of(copy.name): copy.name for copy in list_copies(place)}
    for step in committed.superseded(list(whole), keep_last, keep_every):
        del whole[step]
    for folder in _folders(place):
        if folder.name not in whole.values():
            _remove(folder)


def _folders(place: Place) -> list[Place]:
    return [folder for folder in list_folders(place) if folder.name.startswith("step-")]


def _remove(copy: Place) -> None:
    """Its mark first, so that a half deleted copy is none."""
    with writing(copy):
        if (copy / COMMIT_NAME).exists():
            (copy / COMMIT_NAME).unlink()
        for file in list_files(copy, ""):
            file.unlink()
        if isinstance(copy, Path):
            copy.rmdir()


def fetch_newest(settings: TrainConfig) -> None:
    """Bring the newest copy to a run that has no checkpoint, before it starts, so that it goes on from there.

    Refused where a file of the copy is damaged.
    """
    folder = settings.out / "checkpoints"
    if settings.checkpoint_to is None or list_committed(folder):
        return
    place = place_of(settings.checkpoint_to)
    if not (copies := list_copies(place)):
        return
    newest, final = copies[-1], folder / copies[-1].name
    say(f"train: goes on from {newest}")
    mark = (newest / COMMIT_NAME).read_bytes()
    files = parse_committed(mark, str(newest)).files
    aside = committed.begin(final)
    if aside is None:
        return
    for name in [*(file.name for file in files), COMMIT_NAME]:
        copy_file(newest / name, aside / name)
    if damage := find_damage(aside, files):
        committed.remove(aside)
        raise Refused(f"{newest}: damaged, or on its way here: {damage}")
    copy_records(place, settings.out)
    committed.settle(aside, final)
