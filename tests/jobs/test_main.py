"""The command line: one clear line and the right exit code for each way to hold it wrong."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from jobs.__main__ import app, main
from jobs.config import RunConfig
from jobs.events import read_events
from jobs.mp4 import write_mp4
from jobs.plan import read_manifest, read_plan
from pipeline.plan import shards_of
from pipeline.records import Sample
from pipeline.tables import read_records
from tests.conftest import CACHE_OVERRIDES, cache_config, digests
from tests.test_end_to_end import moving_bar

VERBS = [
    "init",
    "setup",
    "scan",
    "plan",
    "encode",
    "text",
    "stats",
    "train",
    "export",
    "schedule",
    "sample",
    "verify",
    "preview",
    "explain",
    "vae",
    "run",
    "submit",
    "status",
    "logs",
    "stop",
    "list",
    "chain",
    "manifest",
    "demo",
]


Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `latentmill WORDS` in this process; returns its exit code."""
    return partial(run_main, monkeypatch)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["latentmill", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('[recipe]\nfps = 8\nbuckets = [[64, 64]]\n[data]\nsource = "videos"\n')
    return tmp_path


def test_every_verb_is_there_and_explains_itself(call: Call, capsys: pytest.CaptureFixture) -> None:
    commands: Any = get_command(app)
    assert set(commands.commands) - {"quarantine"} == set(VERBS)
    for verb in VERBS:
        assert call(verb, "--help") == 0
        assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("verb", ["list", "retry"])
def test_the_quarantine_can_be_listed_and_retried(
    here: Path, call: Call, capsys: pytest.CaptureFixture, verb: str
) -> None:
    assert call("quarantine", verb, "--help") == 0
    assert len(capsys.readouterr().out) > 200
    assert call("quarantine", verb, "data.cache=other", "--paths", "*.mp4") == 0
    assert capsys.readouterr().out.startswith("quarantine: 0 ")


def test_python_m_jobs_is_the_console_script() -> None:
    told = subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, text=True, check=True)
    assert "Raw videos in, a trained video diffusion transformer out." in told.stdout
    assert "from jobs.__main__ import main" not in told.stderr


def test_init_writes_a_configuration_and_keeps_an_old_one(
    here: Path, call: Call, capsys: pytest.CaptureFixture
) -> None:
    assert call("init", "new.toml") == 0
    written = (here / "new.toml").read_text()
    assert call("init", "new.toml") == 2
    assert "exists already" in capsys.readouterr().err
    assert (here / "new.toml").read_text() == written


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["scan", "other.toml"], 2, "other.toml: not found; write one with `latentmill init`"),
        (["scan", "recipe.fpz=3"], 2, "recipe.fpz: unknown key"),
        (["scan", "recipe.chunk_frames=16"], 2, "16 frames do not fit dct"),
        (["scan", "recipe.buckets=[[60,64]]"], 2, "height 60 is not a multiple of 8"),
        (["scan"], 1, "videos not found; give a folder of videos"),
        (["plan"], 1, "run `scan` first"),
        (["encode"], 1, "run `plan` first"),
        (["text"], 1, "run `plan` first"),
        (["train"], 1, "run `plan` first"),
        (["schedule"], 1, "run `plan` first"),
        (["schedule", "--steps", "3"], 2, "--steps: found '3', wanted A:B"),
        (["sample"], 1, "run `train` first"),
        (["explain", "0123"], 1, "run `plan` first"),
    ],
)
def test_bad_use_is_one_line_and_a_code(
    here: Path,
    call: Call,
    capsys: pytest.CaptureFixture,
    words: list[str],
    code: int,
    message: str,
) -> None:
    assert call(*words) == code
    told = capsys.readouterr().err
    assert message in told and told.startswith("latentmill: ") and told.count("\n") == 1


def test_every_command_is_in_the_log_of_jobs_once_there_is_a_cache(here: Path, call: Call) -> None:
    assert call("plan") == 1
    assert not (here / "cache").exists()
    assert call("scan") == 1
    began, ended = read_events(here / "cache" / "events.jsonl")
    assert (began["verb"], ended["verb"], ended["outcome"], ended["exit_code"]) == ("scan", "scan", "refused", 1)
    assert f"{here / 'videos'} not found" in ended["message"]


@pytest.mark.parametrize("verb", ["plan", "encode", "text", "verify", "stats", "train", "preview"])
def test_a_cache_can_be_named_in_short(here: Path, call: Call, capsys: pytest.CaptureFixture, verb: str) -> None:
    for place in ("1", "true", 'Ä "quoted" 📦'):
        assert call(verb, "data.cache=other", "--cache", place) == 1
        assert str(here / place) in capsys.readouterr().err


def test_an_empty_folder_is_told(here: Path, call: Call, capsys: pytest.CaptureFixture) -> None:
    (here / "videos").mkdir()
    (here / "videos" / "notes.md").write_text("nothing")
    assert call("scan") == 1
    assert "no videos in" in capsys.readouterr().err
    assert [path.name for path in (here / "cache").iterdir()] == ["events.jsonl"]  # the log of jobs, and nothing else


def test_a_quarantine_is_exit_code_three_and_a_table(here: Path, call: Call, capsys: pytest.CaptureFixture) -> None:
    write_mp4(here / "videos" / "good.mp4", moving_bar(20, 1), 8)
    (here / "videos" / "bad.mp4").write_text("not a video")
    assert call("scan") == 3
    told = capsys.readouterr().out
    assert "bad.mp4" in told and "not a video" in told


def test_a_shards_missing_video_stops_the_run_in_one_line(
    local_ray: None, here: Path, call: Call, capsys: pytest.CaptureFixture
) -> None:
    """A broken mount is not a thousand bad videos. The refusal comes from a decode task, through an actor."""
    write_mp4(here / "videos" / "good.mp4", moving_bar(20, 1), 8)
    assert call("scan") == 0
    assert call("plan") == 0
    (here / "videos" / "good.mp4").unlink()
    capsys.readouterr()
    assert call("encode") == 1
    told = capsys.readouterr().err
    assert "good.mp4: found by `scan`, now gone" in told
    assert not list((here / "cache").rglob("*.tar"))


def test_part_of_a_plan_can_be_encoded_and_the_rest_later(
    cached: RunConfig, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture
) -> None:
    """In the end all bytes are those of a run in one go."""
    root = tmp_path / "cache"
    shutil.copytree(cached.data.cache, root, ignore=shutil.ignore_patterns("latents", "text", "index.parquet"))
    config = cache_config(Path(cached.data.source), tmp_path)
    (tmp_path / "run.toml").write_text("")
    words = [str(tmp_path / "run.toml"), f"data.source={cached.data.source}", f"data.cache={root}", *CACHE_OVERRIDES]
    shards = shards_of(read_plan(cached.cache))
    names, videos = list(shards), {video.id: video for video in read_manifest(cached.cache)}
    assert len(names) > 3

    def indexed() -> list[str]:
        return list(dict.fromkeys(sample.shard for sample in read_records([config.cache.index], Sample)))

    assert call("encode", *words, "--limit", "2") == 0
    assert f"2 shards encoded, 0 were there already, {len(names) - 2} are left for later" in capsys.readouterr().out
    assert indexed() == names[:2]
    last = shards[names[-1]][0].video
    assert call("encode", "--only", f"*/{Path(videos[last].path).name}", *words) == 0
    of_video = [name for name in names if any(clip.video == last for clip in shards[name])]
    assert indexed() == [name for name in names if name in {*names[:2], *of_video}]
    assert call("encode", "--only", last, "--limit", "1", *words) == 0
    assert "encode: 0 shards encoded" in capsys.readouterr().out
    assert call("encode", *words, "--only", "nothing") == 1
    assert "--only nothing: found no such video among" in capsys.readouterr().err
    assert call("encode", *words) == 0
    assert digests(config.cache.latents) == digests(cached.cache.latents)
    assert (root / "index.parquet").read_bytes() == (Path(cached.data.cache) / "index.parquet").read_bytes()


def test_a_negative_limit_is_bad_usage(here: Path, call: Call) -> None:
    assert call("encode", "--limit", "-1") == 2
