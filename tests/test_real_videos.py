"""Real files that break something, from the test folders of other projects: every verb over all of them."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from einops import rearrange

from jobs.configured import configured_recipe
from jobs.plan import read_scenes
from models.vae import load_vae
from pipeline.decode import decode_clips
from pipeline.encode import encode_chunks
from pipeline.plan import Account, Plan, make_plan
from pipeline.recipe import Tail
from tests.oracle import clip_frames, covered, difference, shown_frames
from tests.test_bad_inputs import Run, run_verbs

SHARED = Path(__file__).resolve().parents[1] / "../shared/videos"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the collection of real videos is not here")
OVERRIDES = ["recipe.fps=24", "recipe.scenes=adaptive", "recipe.tail=pad", "data.deadline_s=60"]
OVERRIDES += ["recipe.buckets=[[48, 48], [48, 80], [80, 48]]", "data.reader_bytes=2000000000"]
CHUNK = 17


class Real(NamedTuple):
    """What is known of a file."""

    num_frames: int
    fps: float
    size: tuple[int, int]  # (height, width) as displayed
    codec: str
    by_order: bool = False  # its timestamps are garbage to decord and shifted by one to FFmpeg


REAL = {
    "arm_wrestling.mp4": Real(280, 28, (256, 427), "h264"),  # stored 340 wide: its pixels are not square
    "av1_video.mkv": Real(125, 25, (360, 640), "av1"),
    "h265_10bits.mp4": Real(30, 30, (200, 200), "hevc"),
    "h265_video.mp4": Real(10, 10, (128, 128), "hevc"),
    "mm_test.avi": Real(164, 25, (240, 320), "mpeg4", by_order=True),
    "nasa.mp4": Real(390, 30000 / 1001, (270, 480), "h264"),
    "pancake.mkv": Real(310, 30, (240, 426), "h264"),
    "rotated_90.mov": Real(3, 30, (568, 320), "h264"),
    "unordered.mov": Real(4, 32, (50, 50), "h264"),
}
TOO_SHORT = {"h265_video.mp4", "rotated_90.mov", "unordered.mov"}
NASA_CUT_S = 8.008  # the only hard cut between its shots, frame 240
each = pytest.mark.parametrize("name", REAL)
each_tail = pytest.mark.parametrize("tail", ["drop", "pad", "overlap"])


@pytest.fixture(scope="module")
def ended(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every verb up to training, over all of them."""
    folder = tmp_path_factory.mktemp("real") / "videos"
    folder.symlink_to(SHARED.resolve())
    return run_verbs(folder, *OVERRIDES)


def plan_of(ended: Run, name: str, tail: Tail) -> Plan:
    """The plan of one of the videos."""
    settings = ended.config.recipe.model_copy(update={"tail": tail})
    recipe = configured_recipe(ended.config.model_copy(update={"recipe": settings}))
    return make_plan([ended.videos[str(ended.folder / name)]], read_scenes(ended.config.cache), recipe, 10**9, 0)


def sampled(real: Real) -> int:
    """Frames at 24 per second, or at the video's own rate where that is lower."""
    return real.num_frames if real.fps <= 24 else math.floor((real.num_frames - 1) / real.fps * 24 + 0.5) + 1


def test_all_are_cached_but_the_corrupted_one(ended: Run) -> None:
    assert ended.exit_codes == {"scan": 3, "plan": 0, "encode": 3, "text": 0}
    assert {Path(path).name for path, video in ended.videos.items() if video.id in ended.samples} == REAL.keys()
    [bad] = ended.quarantined.values()
    assert (Path(bad.path).name, bad.stage) == ("corrupted.mp4", "scan")
    assert re.search("damaged", bad.reason)


@each
def test_facts(ended: Run, name: str) -> None:
    video, real = ended.videos[str(ended.folder / name)], REAL[name]
    assert (video.num_frames, video.codec) == (real.num_frames, real.codec)
    assert video.fps == pytest.approx(real.fps, rel=1e-3)
    assert (video.height, video.width) == real.size
    assert video.stream == (3 if name == "nasa.mp4" else 0)
    assert video.bit_depth == (10 if name == "h265_10bits.mp4" else 8)
    assert (video.rotation % 180 == 90) == (name == "rotated_90.mov")


@each
@each_tail
def test_every_frame_is_accounted_for(ended: Run, name: str, tail: Tail) -> None:
    made, real = plan_of(ended, name, tail), REAL[name]
    account: Account = made.account
    assert (account.container, account.frames) == (real.num_frames, sampled(real))
    kept = {slot for clip in made.clips for slot in range(clip.first_frame, clip.first_frame + clip.valid_frames)}
    filled = sum(clip.valid_frames % CHUNK for clip in made.clips)  # frames of chunks that are filled up
    assert (account.used, account.padded) == (len(kept) - filled, filled)
    assert account.frames - len(kept) == account.dropped_short + account.dropped_tail
    if tail == "pad":
        assert account.frames == len(kept)
    if tail == "overlap":
        assert account.dropped_tail == account.padded == 0


@pytest.mark.parametrize("name", sorted(TOO_SHORT))
@each_tail
def test_short_videos_are_padded_or_set_aside(ended: Run, name: str, tail: Tail) -> None:
    made = plan_of(ended, name, tail)
    if tail == "pad":
        [clip] = made.clips
        assert (clip.num_frames, clip.valid_frames) == (CHUNK, sampled(REAL[name]))
    else:
        assert not made.clips
        assert re.match(f"too short: {sampled(REAL[name])} frames", made.quarantined[0].reason)


@each_tail
def test_no_clip_goes_across_the_cut_between_two_shots(ended: Run, tail: Tail) -> None:
    made = plan_of(ended, "nasa.mp4", tail)
    sides = {clip.first_frame / clip.fps > NASA_CUT_S for clip in made.clips}
    assert sides == {True, False}
    for clip in made.clips:
        first_s, last_s = (slot / clip.fps for slot in (clip.first_frame, clip.first_frame + clip.valid_frames - 1))
        assert last_s < NASA_CUT_S or first_s >= NASA_CUT_S


@each
def test_frames_and_latents_are_those_of_an_oracle(ended: Run, name: str) -> None:
    """Nothing decoded may come from beyond a cut, or be another frame than the nearest in time."""
    video, real = ended.videos[str(ended.folder / name)], REAL[name]
    shown = shown_frames(video, real.fps if real.by_order else 0)
    assert len(shown) == real.num_frames
    vae = load_vae("dct")
    for clip in ended.clips[video.id]:
        expected = clip_frames(shown, clip)
        decoded = np.concatenate([frames for _, _, frames in decode_clips(video, [clip])])
        assert difference(decoded, expected) < 0.5
        chunks = rearrange(expected, "(n t) h w c -> n t h w c", n=clip.num_chunks)
        latents = rearrange(encode_chunks(vae, chunks, [0] * len(chunks)), "n c t h w -> c (n t) h w")
        assert np.abs(ended.latents[clip.key] - latents).max() < 0.1


def test_the_last_frame_of_an_avi_is_that_of_sequential_decoding(ended: Run) -> None:
    """It is another one when it is sought by number."""
    video = ended.videos[str(ended.folder / "mm_test.avi")]
    last = ended.clips[video.id][-1]
    assert last.first_frame + last.valid_frames == sampled(REAL["mm_test.avi"])
    frames = np.concatenate([frames for _, _, frames in decode_clips(video, [last])])
    shown = shown_frames(video, REAL["mm_test.avi"].fps)
    wanted = covered(shown[-1], last.height, last.width)
    assert difference(frames[[last.valid_frames - 1]], wanted[None]) < 0.5
