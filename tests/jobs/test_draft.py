"""A shard in the making: videos are written when they have passed, in plan order, whatever decoding yields."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from jobs.decode import Decoded, Failed, Passed, ShardWork, Slot, VideoWork, Yielded
from jobs.draft import ShardDraft
from jobs.intake import Intake
from models.vae import load_vae
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Video
from pipeline.shard import ShardWriter
from pipeline.stats import ChannelStats

RECIPE = Recipe(load_vae("dct").spec, fps=8.0, buckets=((16, 16),), max_chunks=2)
FRAMES = np.zeros((17, 16, 16, 3), np.uint8)


def video_work(name: str, *chunks: int) -> VideoWork:
    """A video with a clip of so many chunks for each number."""
    video = Video(name, f"/{name}.mp4", "", 1, 1, "h264", 0, 16, 16, 999, 0.0, 99.0, 8.0)
    clips = [
        Clip(f"{name}-{place}", "s", name, 100 * place, count, 17 * count, 17 * count, 8.0, 16, 16, 0.0, 99.0)
        for place, count in enumerate(chunks)
    ]
    return VideoWork(video, tuple(clips))


def shard_work(*videos: VideoWork) -> ShardWork:
    return ShardWork("s", (17, 16, 16), videos, (), ())


def decoded(work: ShardWork) -> Iterator[Yielded]:
    """What decode tasks yield of a shard of which nothing is bad."""
    for video in work.videos:
        for slot in shard_work(video).slots:
            yield Decoded(slot, FRAMES, Look(0.5, 0.1, 0.2))
        yield Passed(video.video.id, tuple(clip.key for clip in video.clips))


def latents_of(slot: Slot) -> np.ndarray:
    """Other values for each slot, (16, 5, 2, 2) float16."""
    seed = int.from_bytes(f"{slot.key}{slot.number}".encode(), "little")
    return np.random.default_rng(seed).normal(size=(16, 5, 2, 2)).astype(np.float16)


class Written:
    """A shard that is drafted as an encoder does it, batch by batch."""

    def __init__(self, work: ShardWork, items: Sequence[Yielded], batch: int = 1) -> None:
        file = io.BytesIO()
        tar = ShardWriter(file)
        intake = Intake(iter(items))
        self.draft = ShardDraft(RECIPE, work, intake, tar)
        self.most_held = 0  # chunks' latents
        for first in range(0, len(work.slots), batch):
            members = work.slots[first : first + batch]
            for slot in members:
                intake.frames(slot)
            for slot in members:
                self.draft.take(slot, latents_of(slot))
            self.most_held = max(self.most_held, sum(map(len, self.draft.latents.values())))
            self.draft.write_settled()
        intake.finish()
        self.draft.write_settled()
        tar.finish()
        self.content = file.getvalue()
        self.keys = [row.key for row in self.draft.rows]


WORK = shard_work(video_work("a", 2), video_work("b", 1, 2), video_work("c", 1))


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_all_clips_are_written_in_plan_order_whatever_the_batches(batch: int) -> None:
    written = Written(WORK, list(decoded(WORK)), batch)
    assert written.keys == ["a-0", "b-0", "b-1", "c-0"]
    assert written.content == Written(WORK, list(decoded(WORK))).content
    assert not written.draft.latents and not written.draft.waiting


def test_what_a_decode_task_yields_when_it_is_executed_twice_changes_no_byte() -> None:
    once = list(decoded(WORK))
    interleaved = [item for pair in zip(once, once) for item in pair]
    begun_again = once[:4] + once
    for twice in (once + once, interleaved, begun_again):
        assert Written(WORK, twice).content == Written(WORK, once).content


def test_a_video_that_fails_with_its_last_frame_leaves_nothing_behind() -> None:
    failed = Failed("b", "damaged", 2)
    items = [failed if isinstance(item, Passed) and item.video == "b" else item for item in decoded(WORK)]
    written, without = Written(WORK, items), shard_work(WORK.videos[0], WORK.videos[2])
    assert written.keys == ["a-0", "c-0"]
    assert written.content == Written(without, list(decoded(without))).content
    assert not written.draft.latents


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bad", [False, True])
def test_no_more_is_held_than_one_video_and_a_batch(batch: int, bad: bool) -> None:
    longest = 8
    work = shard_work(*(video_work(f"v{place}", longest // 2, longest // 2) for place in range(20)))
    items = list(decoded(work))
    if bad:  # the long one in the middle, at its very start
        items = [
            Failed("v9", "damaged", 2) if isinstance(i, Decoded) and i.slot == Slot("v9", "v9-0", 0) else i
            for i in items
        ]
    written = Written(work, items, batch)
    assert written.most_held <= longest + batch
    assert len(written.keys) == 2 * (20 - bad)


def test_the_sidecar_tells_the_statistics_of_all_that_is_no_padding() -> None:
    [video] = WORK.videos[:1]
    padded = replace(video.clips[0], valid_frames=17 + 5)  # latents of 17 frames, and of 1 + 4
    work = shard_work(replace(video, clips=(padded,)))
    found = ChannelStats.from_json(Written(work, list(decoded(work))).draft.footer()["stats"])
    values = np.concatenate([latents_of(slot) for slot in work.slots], axis=1)[:, : 5 + 2]
    assert found.count == values[0].size
    np.testing.assert_allclose(found.mean, values.astype(float).mean(axis=(1, 2, 3)), atol=1e-12)


def test_a_shard_of_nothing_has_no_statistics() -> None:
    nothing = Written(shard_work(), [])
    assert nothing.draft.footer() == {} and nothing.keys == []


def test_the_row_tells_how_the_checked_chunks_came_back() -> None:
    intake = Intake(iter(decoded(WORK)))
    draft = ShardDraft(RECIPE, WORK, intake, ShardWriter(io.BytesIO()))
    draft.psnr["b-1"] += [30.0, 20.0]
    for slot in WORK.slots:
        draft.take(slot, latents_of(slot))
    intake.finish()
    draft.write_settled()
    assert [row.psnr for row in draft.rows] == pytest.approx([np.nan, np.nan, 25.0, np.nan], nan_ok=True)
