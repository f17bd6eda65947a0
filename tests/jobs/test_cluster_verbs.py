"""The command line of a submitted verb is that of the verb itself."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.cluster_verbs import take_apart

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("verb", "given", "words", "options"),
    [
        ("encode", [], [], []),
        ("encode", ["run.toml", "encode.batch=2"], ["run.toml", "encode.batch=2"], []),
        ("encode", ["--limit", "3", "run.toml", "--only=a b*"], ["run.toml"], ["--limit", "3", "--only", "a b*"]),
        ("verify", ["run.toml", "--repair"], ["run.toml"], ["--repair"]),
        ("text", ["run.toml", "--follow"], ["run.toml"], ["--follow"]),
        ("export", ["--step", "40", "--to", "/models/a"], [], ["--step", "40", "--to", "/models/a"]),
        ("no-verb", ["run.toml", "--bogus"], ["run.toml", "--bogus"], []),
    ],
)
def test_what_a_verb_is_given_is_its_words_and_its_own_options(
    verb: str, given: list[str], words: list[str], options: list[str]
) -> None:
    context: Any = get_command(app).make_context("latentmill", ["submit", verb])
    assert take_apart(context, verb, given) == (words, options)


def test_a_folder_given_to_a_verb_is_one_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context: Any = get_command(app).make_context("latentmill", ["submit", "export"])
    assert take_apart(context, "export", ["--to", "model"])[1] == ["--to", str(tmp_path / "model")]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["encode", "--bogus"], "No such option: --bogus"),
        (["encode", "--limit", "-1"], "Invalid value for '--limit'"),
        (["train", "--limit", "1"], "No such option: --limit"),
    ],
)
def test_an_option_that_the_verb_has_not_is_refused_before_anything_is_sent(given: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["submit", *given, "cluster.address=http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert told in ANSI.sub("", result.output)
