"""Small videos of every kind for tests, written by the real encoders, and the plain way to read them."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph

from pipeline.container import read_facts
from pipeline.identity import content_id
from pipeline.plan import clip_key
from pipeline.records import Clip, Video

CHUNK = 17
SETTINGS = {  # with its macroblock tree, x264 gives the same frames other bytes from one run to the next
    "libx264": {"x264-params": "mbtree=0"},
    "libx265": {"x265-params": "log-level=none"},
}


def pictures(count: int, height: int = 96, width: int = 160) -> np.ndarray:
    """Hills in which nothing lies in the middle, and a bar that moves four pixels each frame: no two are alike."""
    rows, columns = np.mgrid[:height, :width]
    hills = 100 + 35 * np.sin(rows / 7) + 35 * np.sin(columns / 9 + 1)
    frames = np.repeat(np.stack([hills, 255 - hills, hills / 2 + rows / 2], axis=-1)[None], count, axis=0)
    for index in range(count):
        left = 4 * index % (width - 8)
        frames[index, :, left : left + 8] = 255 - index % 40 * 2
    return frames.astype(np.uint8)


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: np.ndarray | None = None,
    ticks: Sequence[int] | None = None,
    clock: Fraction = Fraction(1, 30),
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    container: str | None = None,
    **options: Any,
) -> Path:
    """`frames` shown at `ticks` of `clock`; `options` are the encoder's, with _ for -."""
    frames = pictures(60) if frames is None else frames
    named = {name.replace("_", "-"): value for name, value in options.items()}
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=30, options={**SETTINGS.get(codec, {}), **named})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.codec_context.time_base = stream.time_base = clock
        stream.codec_context.thread_count = 1  # x264's choices depend on how many threads share a frame
        if aspect is not None:
            stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = aspect
        for pixels_rgb, tick in zip(frames, range(len(frames)) if ticks is None else ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels_rgb, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = tick, clock
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def copy_packets(source: Path, path: Path, kept: Iterable[int]) -> Path:
    """The packets of these numbers, in the order in which they are stored, in another container."""
    numbers = set(kept)
    with av.open(str(source)) as whole, av.open(str(path), "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        for packet in (packet for number, packet in enumerate(packets) if number in numbers):
            packet.stream = stream
            part.mux(packet)
    return path


def stored(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # degrees clockwise


def turn(source: Path, path: Path, degrees: int) -> Path:
    """A copy of an mp4 that says it is to be turned clockwise."""
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 44  # behind name, version, times, duration, layer and volume
    a, b, c, d = (65536 * one for one in MATRICES[degrees])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut_by_edit_list(source: Path, path: Path, first_s: float, lasts_s: float, per_s: int) -> Path:
    """A copy of an mp4 whose edit list shows a part of it only; `per_s` is the clock of its video track."""
    content = bytearray(source.read_bytes())
    at = content.index(b"elst") + 12  # behind name, version and number of entries
    _, media, rate = struct.unpack(">IiI", content[at : at + 12])
    content[at : at + 12] = struct.pack(">IiI", round(lasts_s * 1000), media + round(first_s * per_s), rate)
    path.write_bytes(content)
    return path


def video_of(path: Path) -> Video:
    """The row of the manifest for a local file."""
    status = path.stat()
    return Video(
        content_id(path, "fast"), str(path), "", status.st_size, status.st_mtime_ns, **asdict(read_facts(path))
    )


def clip_of(video: Video, first_frame: int, num_chunks: int, fps: float, bucket: tuple[int, int]) -> Clip:
    frames, key = num_chunks * CHUNK, clip_key(video.id, first_frame, bucket)
    scene = (video.start_s, video.end_s)
    return Clip(key, "s", video.id, first_frame, num_chunks, frames, frames, fps, *bucket, *scene)


def decoded(path: Path, stream: int = 0) -> list[av.VideoFrame]:
    """All that PyAV makes of a stream, with its own timestamps: the oracle."""
    with av.open(str(path)) as container:
        return list(container.decode(container.streams[stream]))


def shown_at(path: Path, stream: int = 0) -> list[float]:
    return [time_of(frame) for frame in decoded(path, stream)]


def time_of(frame: av.VideoFrame) -> float:
    assert frame.pts is not None and frame.time_base is not None
    return frame.pts * float(frame.time_base)


def scaled(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """What `ffmpeg -vf scale=WIDTH:HEIGHT:flags=bicubic,format=rgb24` makes of a frame."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(
        source,
        graph.add("scale", f"{width}:{height}:flags=bicubic"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def textured(count: int) -> np.ndarray:
    """Frames that need many bytes, and lean on each other: coloured squares that pass by under a little noise."""
    noise = np.random.default_rng(0)
    squares = np.kron(noise.integers(0, 256, (18, 32 + count, 3)), np.ones((10, 10, 1))).astype(int)
    frames = [squares[:, 3 * n : 3 * n + 320] + noise.integers(-12, 13, (180, 320, 3)) for n in range(count)]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def harm(path: Path, number: int, how: str) -> Path:
    """Overwrite or cut out bytes in the middle of the packet that is stored as number `number`."""
    packet = stored(path)[number]
    content = bytearray(path.read_bytes())
    assert packet.pos is not None
    at = packet.pos + packet.size // 3
    if how == "flipped":
        content[at : at + 64] = bytes(byte ^ 0xFF for byte in content[at : at + 64])
    elif how == "zeroed":
        content[at : at + packet.size // 2] = bytes(packet.size // 2)
    else:
        del content[at : at + packet.size // 2]
    path.write_bytes(content)
    return path
