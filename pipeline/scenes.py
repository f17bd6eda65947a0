"""A video -> its scenes: where it cuts and how each part looks, from one pass over small frames."""

from array import array
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from einops import rearrange
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from pipeline.container import read_clock
from pipeline.decode import read_frames
from pipeline.look import sharpness, thinned_luma
from pipeline.recipe import Scenes
from pipeline.records import Scene, Video

LONGER_SIDE = 256  # pixels: about what PySceneDetect's thresholds were chosen at, and a tenth of the work of 720p
THRESHOLDS = {"content": 27.0, "adaptive": 3.0}  # PySceneDetect's
# Of PySceneDetect's adaptive detector: a frame is compared with as many on either side, and a cut changes this much.
NEIGHBOURS, LEAST_CHANGE = 2, 15.0


def find_scenes(path: Path, video: Video, method: Scenes, threshold: float | None) -> list[Scene]:
    """The file of a video -> its scenes, in order, which hold every frame once; BadVideo where it cannot be read.

    With method "off" nothing is decoded: one scene, whose looks are unknown.
    """
    if method == "off":
        return [Scene(video.id, 0, 0, video.num_frames, video.start_s, video.end_s)]
    seen = watch(read_frames(path, video, small_size(video.height, video.width)))
    cuts = find_cuts(seen[:, 0], method, threshold)
    times_s = read_clock(path, video.stream).times_s if cuts else (video.start_s,)
    return [
        Scene(
            video=video.id,
            number=number,
            first_frame=first,
            num_frames=end - first,
            start_s=float(times_s[first]),
            end_s=video.end_s if end == len(seen) else float(times_s[end - 1]),
            luminance=float(seen[first:end, 1].mean()),
            motion=float(seen[first + 1 : end, 2].mean()) if end - first > 1 else 0.0,  # not across the cut
            sharpness=float(seen[first:end, 3].mean()),
        )
        for number, (first, end) in enumerate(pairwise([0, *cuts, len(seen)]))
    ]


def small_size(height: int, width: int) -> tuple[int, int]:
    """The size that a video is looked at: its own, or that with a longer side of 256."""
    factor = min(1.0, LONGER_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def watch(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Frames (h, w, 3) uint8 RGB, streamed -> (T, 4) float64 of each: score, luminance, motion, sharpness.

    The score is PySceneDetect's of the change from the frame before, motion is of the same change; of the first frame
    both are 0. These numbers are all that is kept, 28 MB for ten hours.
    """
    detector, seen, before = _Detector(), array("d"), None
    for number, frame in enumerate(frames):
        luma = thinned_luma(frame)
        motion = 0.0 if before is None else np.abs(luma - before).mean()
        seen.extend((detector.score(number, frame), luma.mean(), motion, sharpness(frame)))
        before = luma
    return rearrange(np.array(seen), "(frames numbers) -> frames numbers", numbers=4)


class _Detector(ContentDetector):
    def score(self, number: int, frame: np.ndarray) -> float:
        """The change of hue, saturation and brightness from the frame before, 0..255."""
        self.process_frame(FrameTimecode(number, fps=1.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return self._frame_score or 0.0


def find_cuts(scores: np.ndarray, method: Scenes, threshold: float | None) -> list[int]:
    """The change of each frame from the one before (T,) -> the frames that begin another scene, ascending.

    "content" asks for a change of `threshold`, "adaptive" for one `threshold` times the mean of its neighbours, so that
    a fast camera is no cut; neither sees a dissolve. This is PySceneDetect's rule but for two things. A cut near an end
    of the video counts too, by the neighbours that are there. And no cut is left out for being near another: a scene
    too short for a chunk costs its frames, but a chunk across a cut spoils what is trained on.
    """
    changes = scores[1:]  # (T-1,)
    threshold = THRESHOLDS[method] if threshold is None else threshold
    if method == "content" or not len(changes):
        cuts = changes >= threshold
    else:
        around = np.ones(2 * NEIGHBOURS + 1)
        around[NEIGHBOURS] = 0
        sums, counts = (np.convolve(one, around)[NEIGHBOURS:-NEIGHBOURS] for one in (changes, np.ones(len(changes))))
        cuts = (changes >= LEAST_CHANGE) & (changes * counts >= threshold * sums)
    return (1 + np.flatnonzero(cuts)).tolist()
