"""Writers of small odd files: each takes a path, and writes what a video must not, or rarely does, look like."""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

Writer = Callable[[Path], None]
FPS = 10  # of the files, where nothing else is said
TENTHS = Fraction(1, FPS)
H264 = {"crf": "10", "bf": "0", "g": "10"}
B_FRAMES = {"crf": "10", "bf": "3", "b-adapt": "0", "g": "20"}
X265 = "log-level=none:pools=none:frame-threads=1:keyint=10:bframes=3:b-adapt=0:crf=10"


def pictures(num_frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """Hills, and a bar that moves on in each frame: no two frames are alike, nor are those of two seeds."""
    rows, columns = np.mgrid[:height, :width]
    hills = 110 + 30 * np.sin(rows / 7 + seed) + 30 * np.sin(columns / 9 + 1)
    frames = np.repeat(np.stack([hills, 230 - hills, hills / 2 + rows / 2], axis=-1)[None], num_frames, axis=0)
    for index in range(num_frames):
        left = (5 * index + seed) % (width - 12)
        frames[index, :, left : left + 12] = 255 - index % 40 * 2
    return frames.astype(np.uint8)


def write_frames(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    ticks: Iterable[int] | None = None,
    clock: Fraction = TENTHS,
    options: Mapping[str, str] = H264,
    muxing: Mapping[str, str] | None = None,
    aspect: Fraction | None = None,
) -> None:
    """A file whose frames are shown at `ticks` of the clock, 0 1 2 ... by default."""
    with av.open(str(path), "w", options=dict(muxing or {})) as container:
        stream: Any = container.add_stream(
            codec, rate=round(1 / clock) if ticks is None else FPS, options=dict(options)
        )
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.codec_context.time_base = stream.time_base = clock
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for picture, tick in zip(frames, range(len(frames)) if ticks is None else ticks):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = tick, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def video(num_frames: int = 20, height: int = 64, width: int = 96, **how: Any) -> Writer:
    """Writes a video whose pictures are those of its name."""

    def write(path: Path) -> None:
        write_frames(path, pictures(num_frames, height, width, zlib.crc32(os.fsencode(path.name)) % 1000), **how)

    return write


def edited(write: Writer, edit: Callable[[bytes], bytes]) -> Writer:
    """Writes a file, and changes its bytes."""

    def write_and_edit(path: Path) -> None:
        write(path)
        path.write_bytes(edit(path.read_bytes()))

    return write_and_edit


def with_caption(write: Writer, caption: bytes) -> Writer:
    """Writes a file, and its caption beside it."""

    def write_both(path: Path) -> None:
        write(path)
        path.with_suffix(".txt").write_bytes(caption)

    return write_both


def first(share: float) -> Callable[[bytes], bytes]:
    """The first part of a file, as a download that broke off."""
    return lambda content: content[: round(len(content) * share)]


def content(data: bytes) -> Writer:
    """Writes these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def turned(a: int, b: int, c: int, d: int) -> Callable[[bytes], bytes]:
    """An mp4 with this display matrix in its track header."""

    def edit(data: bytes) -> bytes:
        at = data.index(b"tkhd") + 44  # behind name, version, times, duration, layer and volume
        matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return data[:at] + matrix + data[at + 36 :]

    return edit


def starting_later(num_frames: int) -> Callable[[bytes], bytes]:
    """An mp4 whose edit list hides its first frames."""

    def edit(data: bytes) -> bytes:
        at = data.index(b"elst") + 4
        version, entries, duration_ms, start, rate = struct.unpack(">IIIiI", data[at : at + 20])
        assert (version, entries, start) == (0, 1, 0), "one plain edit is expected"
        [ticks_per_s] = struct.unpack(">I", data[(mdhd := data.index(b"mdhd") + 16) : mdhd + 4])
        start, duration_ms = num_frames * ticks_per_s // FPS, duration_ms - 1000 * num_frames // FPS
        return data[:at] + struct.pack(">IIIiI", version, entries, duration_ms, start, rate) + data[at + 20 :]

    return edit


def flipped(data: bytes) -> bytes:
    """All bits flipped in the middle of the compressed frames; the tables that say where they lie stay whole."""
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    middle, length = (start + end) // 2, (end - start) // 8
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + length]) + data[middle + length :]


def without_packets(write: Writer, ending: str, lost: Callable[[Sequence[Any]], slice]) -> Writer:
    """Writes a video, and copies its packets but those that `lost` names."""

    def copy(path: Path) -> None:
        whole = path.with_suffix(f".whole{ending}")
        write(whole)
        with av.open(str(whole)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            packets = [packet for packet in source.demux(video=0) if packet.size]
            del packets[lost(packets)]
            for packet in packets:
                packet.stream = stream
                target.mux(packet)
        whole.unlink()

    return copy


def first_group(packets: Sequence[Any]) -> slice:
    """All before the second key frame. In an open group, frames behind that still lean on what was before it."""
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    return slice(0, keys[1])


def sound(path: Path) -> None:
    """A second of a tone."""
    tone = (9000 * np.sin(np.arange(1024 * 40) / 20)).astype(np.float32) / 32768
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        for number in range(40):
            samples = np.stack([tone[1024 * number : 1024 * (number + 1)]] * 2)  # (channels, samples)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def song_with_cover(path: Path) -> None:
    """An mp3 with a picture in its tag, under the name of a video."""
    song, cover = path.with_suffix(".song.mp3"), path.with_suffix(".cover.jpg")
    with av.open(str(song), "w") as container:
        stream: Any = container.add_stream("libmp3lame", rate=44100)
        for number in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.int16), format="s16p", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 1152 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    still("mjpeg", "yuvj420p")(cover)
    picture = b"\0image/jpeg\0\3\0" + cover.read_bytes()
    body = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + body + song.read_bytes())
    song.unlink()
    cover.unlink()


def still(codec: str, pixels: str, height: int = 64, width: int = 96) -> Writer:
    """Writes an image."""
    return video(1, height, width, codec=codec, pixels=pixels, options={}, muxing={"update": "1"})


def png(height: int, width: int, rows: int) -> bytes:
    """A PNG that declares a size and holds that many black rows."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packed = zlib.compressobj(1)
    row = bytes(1 + 3 * width) if rows else b""
    data = b"".join(packed.compress(row) for _ in range(rows)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


def black_image(height: int, width: int) -> Writer:
    """Writes a PNG that is small as a file and as large as it says when it is decoded."""
    return lambda path: content(png(height, width, height))(path)


def huge(path: Path) -> None:
    """Twenty times the same packet of 8192x8192 black pixels."""
    one = path.with_suffix(".one.mp4")
    write_frames(one, np.zeros((1, 8192, 8192, 3), np.uint8), options={"preset": "ultrafast"})
    with av.open(str(one)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        [packet] = [packet for packet in source.demux(video=0) if packet.size]
        step = packet.duration
        for number in range(20):
            packet.stream, packet.pts, packet.dts = stream, number * step, number * step
            target.mux(packet)
    one.unlink()


def even(level: int) -> Writer:
    """Writes a video in which nothing moves: black, or a still picture behind a `level` of grey."""
    return lambda path: write_frames(path, np.repeat((pictures(1) * (level / 255)).astype(np.uint8), 20, axis=0))


def unreadable(path: Path) -> None:
    video()(path)
    path.chmod(0)
