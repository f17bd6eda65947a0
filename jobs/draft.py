"""A shard in the making: what was encoded of its clips, until their video has passed and they are written."""

from collections import defaultdict
from statistics import fmean

import numpy as np

from jobs.decode import ShardWork, Slot
from jobs.intake import Intake
from pipeline.recipe import Recipe
from pipeline.records import UNKNOWN, Clip, Sample, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample
from pipeline.shard import Packed, ShardWriter
from pipeline.stats import ChannelStats, merge_all


class ShardDraft:
    """Holds the latents of the videos that are not decoded to their end yet, and writes those that are, in plan order.

    A video may turn out to be bad with its last frame; until then nothing of it is in the tar. Memory is thus bounded
    by what one video has in the shard, and by how far decoding has run ahead.
    """

    def __init__(self, recipe: Recipe, work: ShardWork, intake: Intake, tar: ShardWriter) -> None:
        self.recipe, self.intake, self.tar = recipe, intake, tar
        self.waiting = list(reversed(work.videos))  # the next one last
        self.latents: dict[str, list[np.ndarray]] = defaultdict(list)  # (C, t, h, w) of each chunk, by key
        self.psnr: dict[str, list[float]] = defaultdict(list)  # of the chunks that were checked, by key
        self.rows: list[Sample] = []
        self.stats: list[ChannelStats] = []  # of each clip

    def take(self, slot: Slot, latents: np.ndarray) -> None:
        """Keep the latents of a chunk, unless its video has failed; chunks of a clip come in their order."""
        if slot.video not in self.intake.failed:
            self.latents[slot.key].append(latents)

    def write_settled(self) -> None:
        """Write the clips of the next videos as long as these have passed; leave out those that failed."""
        while self.waiting:
            work = self.waiting[-1]
            done = all(len(self.latents.get(clip.key, [])) == clip.num_chunks for clip in work.clips)
            if work.video.id not in self.intake.failed and not (done and self.intake.has_passed(work)):
                return
            for clip in work.clips:
                latents = self.latents.pop(clip.key, [])
                if work.video.id not in self.intake.failed:
                    self._write(work.video, clip, np.concatenate(latents, axis=1))  # (C, t, h, w) of all chunks
            self.waiting.pop()

    def footer(self) -> dict[str, str]:
        """What the sidecar says of the latents in the shard; nothing where there are none."""
        stats = merge_all(self.stats)
        return {"stats": stats.to_json()} if stats else {}

    def _write(self, video: Video, clip: Clip, latents: np.ndarray) -> None:
        start_s = clip_start_s(video, clip)
        facts = clip_facts(clip, start_s, self.recipe)
        where = self.tar.add(Packed(clip.key, {"latent.npy": array_bytes(latents), "json": facts}))
        psnr = fmean(self.psnr[clip.key]) if clip.key in self.psnr else UNKNOWN
        self.rows.append(make_sample(clip, clip.shard, start_s, self.intake.look(clip), psnr, where))
        self.stats.append(ChannelStats.of(latents[:, : self.recipe.latent.filled_latents(clip.valid_frames)]))
