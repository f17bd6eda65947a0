"""What follows a verb on the command line: a run.toml and changes to it; and what Ctrl-C is answered with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from jobs.config import RunConfig
from jobs.outcome import INTERRUPTED
from jobs.run_toml import load_config

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN.TOML] [SECTION.KEY=VALUE]...", help="The run's configuration and changes to it."),
]

CachePlace = Annotated[
    str | None,
    typer.Option("--cache", metavar="PLACE", help="Short for data.cache=PLACE: a folder, s3://... or gs://..."),
]


def read_words(words: list[str] | None, cache: str | None) -> RunConfig:
    """The configuration that they name, or run.toml, with their changes."""
    words = list(words or [])
    if cache is not None:
        words.append(f"data.cache={json.dumps(cache, ensure_ascii=False)}")  # quoted: a place named 1 is no number
    path = Path(words.pop(0)) if words and "=" not in words[0] else Path("run.toml")
    return load_config(path, words)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the verb in one line."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; what is committed stays, and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
