"""What a run finds in its environment stays there: nothing that it writes has it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jobs.config import RunConfig
from tests.object_store import CREDENTIALS
from tests.shards import local

SECRET = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture(scope="module")
def written(trained: RunConfig) -> list[Path]:
    """Every file of a run: its cache, checkpoints, models, events and metrics."""
    folders = (local(trained.cache.root), trained.train.out)
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def parts(path: Path) -> Iterator[bytes]:
    """A file in pieces that overlap by as much as a secret is long."""
    with open(path, "rb") as file:
        while content := file.read(1 << 24):
            yield content
            if len(content) == 1 << 24:
                file.seek(-len(SECRET), os.SEEK_CUR)


def test_no_byte_that_a_run_writes_is_of_a_secret(written: list[Path]) -> None:
    assert ray.get(ray.remote(os.getenv).remote("AWS_SECRET_ACCESS_KEY")) == SECRET  # in all processes of the run
    assert {"events.jsonl", "metrics.jsonl", "COMMITTED.json", "index.parquet"} <= {path.name for path in written}
    for path in written:
        assert not any(SECRET.encode() in part or SECRET.encode("utf-16-le") in part for part in parts(path)), path


def test_files_are_no_more_open_to_others_than_the_umask_says(written: list[Path]) -> None:
    mask = os.umask(0o077)
    os.umask(mask)
    assert not [path for path in written if path.stat().st_mode & mask]
