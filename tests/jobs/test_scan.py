"""A scan reads what is new or has changed, forgets nothing, and does not take a missing disk for a change of mind."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from jobs import scan as job
from jobs.config import RunConfig
from jobs.encode import encode
from jobs.mp4 import write_mp4
from jobs.plan import plan, read_manifest
from jobs.run_toml import load_config
from jobs.scan import scan
from pipeline.errors import Refused
from pipeline.quarantine import read_quarantine
from pipeline.records import Sample, Scene, Video
from pipeline.storage import list_files
from pipeline.tables import read_records
from tests.conftest import digests
from tests.object_store import Bucket

pytestmark = pytest.mark.usefixtures("local_ray")


def write_video(path: Path, seed: int, frames: int = 5, cut: int | None = None) -> None:
    """Grey of a level that `seed` decides, another one from frame `cut` on."""
    levels = np.full(frames, 20 + seed % 60, np.uint8)
    levels[cut if cut is not None else frames :] = 230
    pixels = np.broadcast_to(levels[:, None, None, None], (frames, 48, 64, 3)).copy()
    pixels[:, : 1 + seed % 40, :8] = 255 - pixels[:, : 1 + seed % 40, :8]
    write_mp4(path, pixels, 10)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty videos, all different, to be copied."""
    folder = tmp_path_factory.mktemp("samples")
    for seed in range(30):
        write_video(folder / f"{seed:02d}.mp4", seed)
    return folder


@pytest.fixture
def folder(samples: Path, tmp_path: Path) -> Path:
    """Three of them."""
    (tmp_path / "videos").mkdir()
    return add(samples, tmp_path / "videos", range(3))


def add(samples: Path, folder: Path, numbers: range) -> Path:
    for number in numbers:
        shutil.copy(samples / f"{number:02d}.mp4", folder)
    return folder


def configure(source: Path | str, cache: Path, *more: str) -> RunConfig:
    words = [f"data.source={source}", f"data.cache={cache}", "recipe.scenes=off", "recipe.buckets=[[48, 64]]", *more]
    return load_config(None, words)


def told(config: RunConfig) -> dict:
    """What the last scan said of itself."""
    return json.loads(config.cache.events.read_text().splitlines()[-1])


def names(config: RunConfig, removed: bool = False) -> list[str]:
    return sorted(Path(one.path).name for one in read_manifest(config.cache) if one.removed == removed)


def known(config: RunConfig) -> dict[str, Video]:
    return {Path(one.path).name: one for one in read_manifest(config.cache)}


def change_unseen(path: Path, content: bytes) -> None:
    """Other bytes with the size and time of before: who still knows the old ones has not read it."""
    status = path.stat()
    path.write_bytes(content.ljust(status.st_size, b"\0")[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_videos_and_images_are_told_with_their_scenes(folder: Path, tmp_path: Path) -> None:
    write_video(folder / "cut.mp4", 0, frames=24, cut=12)
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "cut.txt").write_text("a cut")
    (folder / "words.mp4").write_bytes(b"words")
    shutil.copy(folder / "01.mp4", folder / "twin of 01.mp4")
    config = configure(folder, tmp_path / "cache", "recipe.scenes=content")
    assert scan(config) == 2
    videos = known(config)
    assert sorted(videos) == ["00.mp4", "01.mp4", "02.mp4", "cut.mp4", "still.png"]
    assert (videos["cut.mp4"].caption, videos["still.png"].num_frames) == ("a cut", 1)
    scenes = [one for one in read_records([config.cache.scenes], Scene) if one.video == videos["cut.mp4"].id]
    assert [(one.number, one.first_frame, one.num_frames) for one in scenes] == [(0, 0, 12), (1, 12, 12)]
    facts = told(config)
    assert [facts[name] for name in ("videos", "images", "unreadable", "duplicates", "removed")] == [4, 1, 1, 1, 0]
    assert facts["hours"] == round((3 * 0.5 + 2.4) / 3600, 3) and facts["passed_over"] == []
    assert [(Path(one.path).name, one.attempts) for one in read_quarantine(config.cache)] == [
        ("twin of 01.mp4", 1),
        ("words.mp4", 1),
    ]


def test_bytes_depend_neither_on_how_files_were_shared_out_nor_on_where_the_cache_is(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (configure(samples, tmp_path / name, "recipe.scenes=content") for name in ("one", "other"))
    scan(one)
    monkeypatch.setattr(job, "FILES_PER_TASK", 1)
    scan(other)
    assert digests(one.cache.root) == digests(other.cache.root)
    assert len(digests(one.cache.root)) == 2
    scan(other)
    assert digests(one.cache.root) == digests(other.cache.root)


def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    scan(config)
    before = known(config)
    change_unseen(folder / "00.mp4", b"never looked at")
    write_video(folder / "01.mp4", 50, frames=9)
    (folder / "02.txt").write_text("a new caption")
    assert scan(config) == 0
    now = known(config)
    assert told(config)["not read again"] == 2
    assert (now["00.mp4"], now["02.mp4"].caption) == (before["00.mp4"], "a new caption")
    assert now["01.mp4"].num_frames == 9
    assert [one.num_frames for one in read_manifest(config.cache) if one.removed] == [5]  # what 01.mp4 was


def test_other_columns_are_always_as_they_are_now(folder: Path, tmp_path: Path) -> None:
    table = folder / "t.csv"
    table.write_text("path,caption,score\n00.mp4,red,5\n")
    config = configure(table, tmp_path / "cache")
    scan(config)
    table.write_text("path,caption,score\n00.mp4,red,6.5\n")
    scan(config)
    assert (known(config)["00.mp4"].extra, told(config)["not read again"]) == ('{"score": 6.5}', 1)


def test_a_bad_file_is_tried_again_when_it_changed(folder: Path, samples: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    (folder / "bad.mp4").write_bytes(b"words" * 1000)
    os.symlink(tmp_path / "later.mp4", folder / "away.mp4")
    assert scan(config) == 2
    change_unseen(folder / "bad.mp4", (samples / "05.mp4").read_bytes())
    assert scan(config) == 2
    assert told(config)["not read again"] == 4
    shutil.copy(samples / "05.mp4", folder / "bad.mp4")
    shutil.copy(samples / "06.mp4", tmp_path / "later.mp4")
    assert scan(config) == 0
    assert names(config) == ["00.mp4", "01.mp4", "02.mp4", "away.mp4", "bad.mp4"]


def test_a_duplicate_is_not_read_again_and_takes_over(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    shutil.copy(folder / "00.mp4", folder / "zz.mp4")
    assert scan(config) == 1
    (before,) = (one for one in read_manifest(config.cache) if one.path.endswith("00.mp4"))
    change_unseen(folder / "zz.mp4", b"never looked at")
    (folder / "00.mp4").unlink()
    assert scan(config) == 0
    assert told(config)["not read again"] == 3
    now = known(config)["zz.mp4"]
    assert (now.id, now.num_frames, now.removed) == (before.id, before.num_frames, False)


def test_a_file_that_moves_stays_the_same_video(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    scan(config)
    before = known(config)["00.mp4"]
    (folder / "deep").mkdir()
    (folder / "00.mp4").rename(folder / "deep" / "moved.mp4")
    scan(config)
    now = known(config)["moved.mp4"]
    assert (now.id, now.path) == (before.id, str(folder / "deep" / "moved.mp4"))
    assert len(read_manifest(config.cache)) == 3 and told(config)["removed"] == 0


def test_a_video_that_left_is_kept_as_removed_until_it_returns(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    scan(config)
    before = digests(config.cache.root)
    (folder / "00.mp4").rename(tmp_path / "aside.mp4")
    scan(config)
    assert (names(config, removed=True), told(config)["removed"]) == (["00.mp4"], 1)
    assert len(read_records([config.cache.scenes], Scene)) == 3
    (tmp_path / "aside.mp4").rename(folder / "00.mp4")
    scan(config)
    assert digests(config.cache.root) == before
    assert told(config)["not read again"] == 3


def test_scenes_found_in_another_way_are_found_anew(folder: Path, tmp_path: Path) -> None:
    write_video(folder / "cut.mp4", 0, frames=24, cut=12)
    scan(configure(folder, tmp_path / "cache"))
    config = configure(folder, tmp_path / "cache", "recipe.scenes=content")
    scan(config)
    assert told(config)["not read again"] == 0
    assert len(read_records([config.cache.scenes], Scene)) == 5
    scan(config)
    assert told(config)["not read again"] == 4


def test_other_scenes_than_those_of_the_plan_are_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache", "recipe.fps=8", "recipe.buckets=[[32, 32]]", "recipe.tail=pad")
    scan(config)
    plan(config)
    before = digests(config.cache.root)
    with pytest.raises(Refused, match=r"scene_threshold \('off', None\), the run wants \('content', None\)"):
        scan(configure(folder, tmp_path / "cache", "recipe.scenes=content"))
    assert digests(config.cache.root) == before


def test_a_disk_that_is_not_there_is_no_change_of_mind(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    folder = add(samples, tmp_path / "videos", range(30))
    config = configure(folder, tmp_path / "cache")
    scan(config)
    before = digests(config.cache.root)
    for number in range(20):
        (folder / f"{number:02d}.mp4").unlink()
    with pytest.raises(Refused, match=r"20 of 30 known videos are not in .*, such as .*wanted at most 10%"):
        scan(config)
    assert digests(config.cache.root) == before
    add(samples, folder, range(1))  # nineteen are few enough to be meant
    scan(config)
    assert told(config)["removed"] == 19
    scan(configure(folder, tmp_path / "cache", "data.max_bad_fraction=1"))


def test_a_scan_of_much_that_is_bad_stops_and_goes_on_where_it_was(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    folder = add(samples, tmp_path / "videos", range(30))
    for number in range(20):
        (folder / f"zz {number}.mp4").write_bytes(b"words %d" % number)
    config = configure(folder, tmp_path / "cache")
    with pytest.raises(Refused, match=r"found 20 of 50 files that cannot be read, wanted at most 10%.*zz "):
        scan(config)
    assert not config.cache.manifest.exists() and not config.cache.quarantines()
    accepting = configure(folder, tmp_path / "cache", "data.max_bad_fraction=0.5")
    assert scan(accepting) == 20
    assert told(accepting)["not read again"] > 0
    assert not list_files(config.cache.scan_journal, "")


def test_a_source_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "words.mp4").write_bytes(b"words")
    with pytest.raises(Refused, match=r"none of the 1 videos can be read: .*words\.mp4: damaged or not a video"):
        scan(configure(tmp_path / "videos", tmp_path / "cache"))


def test_ray_is_not_started_where_there_is_nothing_to_read(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "cache")
    scan(config)
    program = (
        "import sys, ray; from jobs.run_toml import load_config; from jobs.scan import scan; "
        "scan(load_config(None, sys.argv[1:])); sys.exit(ray.is_initialized())"
    )
    words = [f"data.source={folder}", f"data.cache={config.cache.root}", "recipe.scenes=off"]
    assert subprocess.run([sys.executable, "-c", program, *words], timeout=60).returncode == 0


def kill_readers(config: RunConfig, when_read: tuple[int, ...]) -> None:
    """Kill the one process of ours that still reads when so many files are done, each time."""
    for num_files in when_read:
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            parts = list_files(config.cache.scan_journal, ".jsonl")
            done = sum(len(part.read_text().splitlines()) - 1 for part in parts)
            readers = [one for one in psutil.Process().children(recursive=True) if is_reader(one)]
            if done == num_files and len(readers) == 1:
                readers[0].kill()
                readers[0].wait(10)
                break
            time.sleep(0.05)


def is_reader(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::read_files")
    except psutil.NoSuchProcess:
        return False


def test_a_file_whose_process_dies_costs_none_of_the_others(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    folder = add(samples, tmp_path / "videos", range(16))
    (folder / "15.mp4").rename(folder / "hangs.mp4")  # in its sandbox, until its process is killed
    config = configure(folder, tmp_path / "cache", "data.deadline_s=100")
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_readers, config, (14, 15))
        assert scan(config) == 1
        killing.result()
    (bad,) = read_quarantine(config.cache)
    assert (Path(bad.path).name, bad.attempts) == ("hangs.mp4", 2)
    assert bad.reason == "the process that read it died: WorkerCrashedError"
    assert len(read_manifest(config.cache)) == 15


def test_a_bucket_is_scanned_like_a_folder(store: Bucket, samples: Path, tmp_path: Path) -> None:
    for number in range(3):
        store.put(f"v/{number}.mp4", samples / f"{number:02d}.mp4")
    store.put("v/0.txt", b"from afar")
    store.put("v/words.mp4", b"words")
    config = configure(store.uri("v"), tmp_path / "cache")
    assert scan(config) == 1
    videos = sorted(read_manifest(config.cache), key=lambda one: one.path)
    assert [(one.path, one.caption) for one in videos] == [
        (store.uri("v/0.mp4"), "from afar"),
        (store.uri("v/1.mp4"), ""),
        (store.uri("v/2.mp4"), ""),
    ]
    store.put("v/new.mp4", samples / "09.mp4")
    store.delete("v/1.mp4")
    assert scan(config) == 1
    facts = told(config)
    assert (facts["videos"], facts["removed"], facts["not read again"]) == (3, 1, 3)


def test_videos_of_a_bucket_become_the_latents_of_the_same_files_here(store: Bucket, tmp_path: Path) -> None:
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", number, frames=20)
        store.put(f"e/{number}.mp4", tmp_path / "videos" / f"{number}.mp4")
    table = b"path,caption\n0.mp4,a\nnone.mp4,c\n1.mp4,b\n"
    (tmp_path / "videos" / "t.csv").write_bytes(table)
    latents = []
    for name, source in (("here", tmp_path / "videos" / "t.csv"), ("there", store.put("e/t.csv", table))):
        config = configure(source, tmp_path / name)
        assert scan(config) == 1
        (missing,) = read_quarantine(config.cache)
        assert (missing.path.partition("?")[0].endswith("none.mp4"), missing.reason) == (True, "file not found")
        plan(config)
        encode(config)
        assert len(read_records([config.cache.index], Sample)) == 2
        latents.append({path: one for path, one in digests(config.cache.latents).items() if path.endswith(".tar")})
    assert latents[0] == latents[1]
