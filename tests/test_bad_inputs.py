"""Whatever lies in the folder, the run ends; each file is cached and right, or in the quarantine with its reason."""

import io
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from einops import rearrange
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from jobs.__main__ import main
from jobs.config import RunConfig
from jobs.plan import read_manifest, read_plan
from jobs.run_toml import load_config
from models.vae import load_vae
from pipeline.decode import decode_clips
from pipeline.encode import encode_chunks
from pipeline.quarantine import read_quarantine
from pipeline.records import Clip, Quarantined, Sample, Video
from pipeline.tables import read_records
from tests.bad_videos import KINDS, Bad, Cached, Kind, write_folder
from tests.conftest import digests
from tests.oracle import clip_frames, difference, shown_frames
from tests.shards import local
from tests.video_writers import FPS, content, pictures, write_frames

VERBS = ("scan", "plan", "encode", "text")
OVERRIDES = [
    "recipe.fps=120",
    "recipe.buckets=[[48, 64], [64, 48]]",
    "recipe.scenes=off",
    "recipe.max_chunks=2",
    "data.deadline_s=3",
    "data.reader_bytes=200000000",
]
SAME = 0.5  # grey levels, on average of a frame; the bar in the pictures moves by ten and more
CACHED = [(kind, kind.outcome) for kind in KINDS if isinstance(kind.outcome, Cached)]
BAD = [(kind, kind.outcome) for kind in KINDS if isinstance(kind.outcome, Bad)]
each_cached = pytest.mark.parametrize(("kind", "wanted"), CACHED, ids=[ascii(kind.name) for kind, _ in CACHED])
each_bad = pytest.mark.parametrize(("kind", "wanted"), BAD, ids=[ascii(kind.name) for kind, _ in BAD])


@dataclass(frozen=True)
class Run:
    """What verbs over a folder have left."""

    folder: Path
    words: tuple[str, ...]  # the command line behind the verb
    exit_codes: dict[str, int]
    config: RunConfig
    videos: dict[str, Video]  # by path
    clips: dict[str, list[Clip]]  # by the id of their video
    samples: dict[str, list[Sample]]  # by the id of their video
    quarantined: dict[str, Quarantined]  # by path
    latents: dict[str, np.ndarray]  # by key


def call(verb: str, *words: str) -> tuple[int, str]:
    """Run `latentmill VERB WORDS` in this process: its exit code, and what it told on stderr."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(told), pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["latentmill", verb, *words])
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, told.getvalue()


def command_line(folder: Path, *more: str) -> tuple[str, ...]:
    """The words of a run over `folder`, whose cache lies beside it."""
    run_toml = folder.parent / "run.toml"
    run_toml.write_text("")
    return str(run_toml), f"data.source={folder}", f"data.cache={folder.parent / 'cache'}", *OVERRIDES, *more


def run_verbs(folder: Path, *more: str, verbs: Sequence[str] = VERBS) -> Run:
    words = command_line(folder, *more)
    exit_codes = {verb: call(verb, *words)[0] for verb in verbs}
    config = load_config(None, list(words[1:]))
    cache = config.cache
    tars = [str(path) for path in sorted(local(cache.latents).rglob("*.tar"))]
    return Run(
        folder,
        words,
        exit_codes,
        config,
        {video.path: video for video in read_manifest(cache) if not video.removed},
        by_video(read_plan(cache)),
        by_video(read_records([cache.index], Sample)),
        {one.path: one for one in read_quarantine(cache)},
        {sample["__key__"]: sample["latent.npy"] for sample in WebDataset(tars, shardshuffle=False).decode()},
    )


def path_of(run: Run, kind: Kind) -> str:
    """As tables name it: bytes that are no text are shown by their numbers."""
    return str(run.folder / kind.name).encode("utf-8", "backslashreplace").decode()


def by_video(records: list) -> dict[str, list]:
    found = defaultdict(list)
    for record in records:
        found[record.video].append(record)
    return dict(found)


@pytest.fixture(scope="module")
def ended(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every verb up to training, over the whole folder."""
    folder = tmp_path_factory.mktemp("bad inputs") / "videos"
    write_folder(folder)
    return run_verbs(folder, "data.max_bad_fraction=0.6")


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 25 and len(CACHED) > 25 and len(BAD) > 25


def test_the_run_ends_and_says_by_its_exit_code_that_something_is_in_the_quarantine(ended: Run) -> None:
    assert ended.exit_codes == {"scan": 3, "plan": 3, "encode": 3, "text": 0}


def test_every_file_is_accounted_for(ended: Run) -> None:
    names = {path_of(ended, kind) for kind in KINDS}
    cached = {path for path, video in ended.videos.items() if video.id in ended.samples}
    assert cached | ended.quarantined.keys() == names
    assert not cached & ended.quarantined.keys()


@each_bad
def test_a_bad_file_is_in_the_quarantine_with_its_reason(ended: Run, kind: Kind, wanted: Bad) -> None:
    found = ended.quarantined[path_of(ended, kind)]
    assert found.stage == wanted.stage
    assert re.search(wanted.reason, found.reason)


@each_cached
def test_a_good_file_is_cached_with_its_facts(ended: Run, kind: Kind, wanted: Cached) -> None:
    video = ended.videos[path_of(ended, kind)]
    samples = ended.samples[video.id]
    assert len(samples) == wanted.clips
    assert sum(sample.valid_frames for sample in samples) == wanted.valid_frames
    for sample in samples:
        facts = asdict(sample) | asdict(video)
        assert {name: facts[name] for name in wanted.facts} == pytest.approx(dict(wanted.facts))


@each_cached
def test_frames_and_latents_are_those_of_an_oracle(ended: Run, kind: Kind, wanted: Cached) -> None:
    video = ended.videos[path_of(ended, kind)]
    shown = shown_frames(video, FPS if wanted.by_order else 0)
    if not wanted.by_order:
        assert video.start_s == pytest.approx(shown[0].time_s)
    vae = load_vae("dct")
    for clip in ended.clips[video.id]:
        expected = clip_frames(shown, clip)  # (num_frames, H, W, 3)
        decoded = np.concatenate([frames for _, _, frames in decode_clips(video, [clip])])
        assert difference(decoded, expected) < SAME
        chunks = rearrange(expected, "(n t) h w c -> n t h w c", n=clip.num_chunks)
        latents = rearrange(encode_chunks(vae, chunks, [0] * len(chunks)), "n c t h w -> c (n t) h w")
        assert np.abs(ended.latents[clip.key] - latents).max() < 0.1


def test_running_again_reads_nothing_and_changes_no_byte(ended: Run) -> None:
    """Nothing can be read within a millisecond, so whatever were read again would end in the quarantine."""
    before = digests(ended.config.cache.root)
    words = [*ended.words, "data.deadline_s=0.001"]
    assert {verb: call(verb, *words)[0] for verb in VERBS} == ended.exit_codes
    assert digests(ended.config.cache.root) == before


def test_too_many_bad_files_stop_the_scan(local_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    good = [Kind(f"good {n}.mp4", KINDS[0].write, KINDS[0].outcome) for n in range(3)]
    words = [Kind(f"words {n}.mp4", content(b"words"), KINDS[0].outcome) for n in range(20)]
    write_folder(folder, [*good, *words])
    code, told = call("scan", *command_line(folder))
    assert code == 1
    assert re.search(r"20 of (the )?23 .*max_bad_fraction", told)
    assert call("scan", *command_line(folder, "data.max_bad_fraction=0.9"))[0] == 3


def two_videos(tmp_path: Path) -> Path:
    """The folder of `change.mp4` and `stay.mp4`."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed, name in enumerate(["change.mp4", "stay.mp4"]):
        write_frames(folder / name, pictures(20, seed=seed))
    return folder


def test_a_file_that_changes_after_the_scan_is_quarantined_and_cached_when_scanned_again(
    local_ray: None, tmp_path: Path
) -> None:
    folder = two_videos(tmp_path)
    words = command_line(folder)
    assert [call(verb, *words)[0] for verb in ("scan", "plan")] == [0, 0]
    write_frames(folder / "change.mp4", pictures(20, seed=9))  # as many frames at the same times
    assert call("encode", *words)[0] == 3
    [found] = read_quarantine(load_config(None, list(words[1:])).cache)
    assert (found.path, found.stage) == (str(folder / "change.mp4"), "decode")
    assert "changed since `scan`" in found.reason
    changed = run_verbs(folder, verbs=("scan", "plan", "encode"))
    assert not changed.quarantined and set(changed.exit_codes.values()) == {0}  # what it was before is gone
    video = changed.videos[str(folder / "change.mp4")]
    [clip] = changed.clips[video.id]
    [latent] = encode_chunks(load_vae("dct"), clip_frames(shown_frames(video), clip)[None], [0])
    assert np.abs(changed.latents[clip.key] - latent).max() < 0.1
    assert len(changed.latents) == 2


def test_a_file_out_of_reach_stops_the_run_which_goes_on_when_it_is_back(local_ray: None, tmp_path: Path) -> None:
    folder = two_videos(tmp_path)
    path, words = folder / "change.mp4", command_line(folder)
    assert [call(verb, *words)[0] for verb in ("scan", "plan")] == [0, 0]
    path.rename(tmp_path / "elsewhere.mp4")
    code, told = call("encode", *words)
    assert code == 1 and "change.mp4: found by `scan`, now gone" in told
    (tmp_path / "elsewhere.mp4").rename(path)
    path.chmod(0)
    code, told = call("encode", *words)
    assert code == 1 and "change.mp4: read by `scan`, now denied" in told
    assert not list((tmp_path / "cache").rglob("*.tar"))
    path.chmod(0o600)
    assert call("encode", *words)[0] == 0
    assert len(read_records([tmp_path / "cache" / "index.parquet"], Sample)) == 2
