"""The frames that decoding should give, found the long way by PyAV alone: all of them, by their own timestamps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph
from einops import rearrange

from pipeline.records import Clip, Video

SAME_TIME_S = 1.001e-3  # of two frames whose distances to a time differ by less, the earlier is taken


class Shown(NamedTuple):
    """A decoded frame, and when it is shown."""

    time_s: float
    frame: av.VideoFrame
    pixel_aspect: float


def shown_frames(video: Video, fps_by_order: float = 0.0) -> list[Shown]:
    """All frames of a video by their own time, or where they have none by their number and `fps_by_order`."""
    with av.open(f"file:{video.path}", metadata_errors="ignore") as container:
        source: Any = container.streams[video.stream]
        aspect = float(source.sample_aspect_ratio or 1)
        frames = list(container.decode(source))
    if fps_by_order:
        return [Shown(video.start_s + number / fps_by_order, frame, aspect) for number, frame in enumerate(frames)]
    shown = [Shown(float((frame.pts or 0) * frame.time_base), frame, aspect) for frame in frames]
    return sorted(shown, key=lambda one: one.time_s)


def nearest(shown: Sequence[Shown], time_s: float) -> Shown:
    """The frame shown nearest a time; of two as near the earlier."""
    distances = [abs(one.time_s - time_s) for one in shown]
    limit = min(distances) + SAME_TIME_S
    return next(one for one, distance in zip(shown, distances) if distance <= limit)


def clip_frames(shown: Sequence[Shown], clip: Clip) -> np.ndarray:
    """What a clip should hold, out of all frames of its video: (num_frames, H, W, 3) uint8."""
    scene = [one for one in shown if clip.scene_start_s - 1e-6 <= one.time_s <= clip.scene_end_s + 1e-6]
    slots = [min(slot, clip.valid_frames - 1) for slot in range(clip.num_frames)]
    chosen = [nearest(scene, shown[0].time_s + (clip.first_frame + slot) / clip.fps) for slot in slots]
    return np.stack([covered(one, clip.height, clip.width) for one in chosen])


def covered(one: Shown, height: int, width: int) -> np.ndarray:
    """A frame as it is displayed, resized to cover (height, width) and cropped to its middle, (H, W, 3) uint8."""
    upright = turned(one.frame, round(one.frame.rotation / 90))
    tall, wide = upright.height, upright.width * one.pixel_aspect
    factor = max(height / tall, width / wide)
    tall, wide = max(height, round(tall * factor)), max(width, round(wide * factor))
    top, left = (tall - height) // 2, (wide - width) // 2
    return scaled(upright, tall, wide)[top : top + height, left : left + width]


def turned(frame: av.VideoFrame, quarters: int) -> av.VideoFrame:
    """A frame by so many quarter turns counterclockwise: each of its planes is turned."""
    if quarters % 4 == 0:
        return frame
    assert frame.format.name == "yuv420p", "other formats have other planes"
    height, width = frame.height, frame.width
    planes = frame.to_ndarray()  # (3/2 height, width): luma, and below it both chromas, of half the size
    chromas = rearrange(rearrange(planes[height:], "h w -> (h w)"), "(c h w) -> c h w", c=2, h=height // 2)
    packed = np.concatenate([np.rot90(plane, quarters).ravel() for plane in (planes[:height], *chromas)])
    packed = rearrange(packed, "(h w) -> h w", w=height if quarters % 2 else width).astype(np.uint8)
    result = av.VideoFrame.from_ndarray(packed, format="yuv420p")
    result.time_base, result.colorspace, result.color_range = frame.time_base, frame.colorspace, frame.color_range
    return result


def scaled(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """What `ffmpeg -vf scale=WIDTH:HEIGHT:flags=bicubic,format=rgb24` makes of a frame."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    scale, rgb = graph.add("scale", f"{width}:{height}:flags=bicubic"), graph.add("format", "rgb24")
    graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
    graph.push(frame)
    result: Any = graph.pull()
    return result.to_ndarray()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest mean difference of one frame, in grey levels."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.uint8
    return float(np.abs(found.astype(int) - wanted).mean(axis=(1, 2, 3)).max())
