"""A folder of videos as people have them: every kind that breaks a pipeline, and what must become of each."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jobs.mp4 import write_mp4
from tests.video_writers import (
    B_FRAMES,
    FPS,
    X265,
    Writer,
    black_image,
    content,
    edited,
    even,
    first,
    first_group,
    flipped,
    huge,
    pictures,
    png,
    song_with_cover,
    sound,
    starting_later,
    still,
    turned,
    unreadable,
    video,
    with_caption,
    without_packets,
    write_frames,
)


@dataclass(frozen=True)
class Cached:
    """The file is cached: so many clips, and so many frames of them that are its own."""

    clips: int
    valid_frames: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # columns of its Video and of its Samples
    by_order: bool = False  # its frames have no clock of their own: the decoder's order counts


@dataclass(frozen=True)
class Bad:
    """The file is in the quarantine: since which stage, and a pattern of the reason."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Kind:
    """One file of the folder."""

    name: str  # its path below the folder
    write: Writer
    outcome: Cached | Bad


UNEVEN = np.cumsum([0, *np.random.default_rng(1).choice([30, 70, 100, 130, 240], 39)]).tolist()  # milliseconds

WHOLE = Cached(1, 17, {"num_frames": 20, "fps": 10.0, "height": 64, "width": 96, "rotation": 0, "bit_depth": 8})
LONG = {"num_frames": 40, "height": 64, "width": 96}
FAST_START = {"movflags": "faststart"}
HEVC = video(codec="libx265", options={"x265-params": X265})  # decord is asked for h264 only: PyAV reads this one
OPEN_GOP = video(40, codec="libx265", options={"x265-params": f"{X265}:open-gop=1"})


def copy_of_twin_a(path: Path) -> None:
    """Copied, for on a busy machine x264 may write the same pictures as other bytes."""
    path.write_bytes(path.with_name("twin a.mp4").read_bytes())


KINDS = (
    Kind("whole.mp4", video(), WHOLE),
    # What a download or a disk leaves of a file.
    Kind("empty.mp4", content(b""), Bad("scan", "empty|not a video")),
    Kind("words.mp4", content(b"this is not a video\n" * 99), Bad("scan", "not a video")),
    Kind("cut at 10.mp4", edited(video(40), first(0.1)), Bad("scan", "not a video")),
    Kind("cut at 50.mp4", edited(video(40), first(0.5)), Bad("scan", "not a video")),
    Kind("cut at 90.mp4", edited(video(40), first(0.9)), Bad("scan", "not a video")),
    Kind("streamed, cut at 10.mp4", edited(video(40, muxing=FAST_START), first(0.1)), Bad("scan", "damaged")),
    Kind("streamed, cut at 50.mp4", edited(video(40, muxing=FAST_START), first(0.5)), Bad("scan", "cut short")),
    Kind("streamed, cut at 90.mp4", edited(video(40, muxing=FAST_START), first(0.9)), Bad("scan", "cut short")),
    Kind("cut at 70.mkv", edited(video(40), first(0.7)), Cached(1, 17)),  # it has no table: what is there is whole
    Kind("flipped.mp4", edited(video(40), flipped), Bad("decode", "damaged")),
    # How long it is.
    Kind("1 frame.mp4", video(1), Cached(1, 1, {"num_frames": 1, "num_chunks": 1})),
    Kind("2 frames.mp4", video(2), Bad("plan", "too short: 2 frames at 10 fps; a clip needs 17")),
    Kind("16 frames.mp4", video(16), Bad("plan", "too short: 16 frames at 10 fps; a clip needs 17")),
    Kind("17 frames.mp4", video(17), Cached(1, 17, {"num_frames": 17})),
    Kind("18 frames.mp4", video(18), Cached(1, 17, {"num_frames": 18})),
    # When its frames are shown.
    Kind(
        "variable.mp4",
        video(40, ticks=UNEVEN, clock=Fraction(1, 1000)),
        Cached(1, 34, {**LONG, "variable": True}),
    ),
    Kind("b-frames.mp4", video(40, options=B_FRAMES), Cached(1, 34, {**LONG, "variable": False})),
    Kind(
        "negative start.ts",
        video(40, ticks=range(-12, 28), options=B_FRAMES, muxing={"avoid_negative_ts": "disabled"}),
        Cached(1, 34, {**LONG, "start_s": -1.2}),
    ),
    Kind("late start.mkv", video(40, ticks=range(77, 117)), Cached(1, 34, {**LONG, "start_s": 7.7})),
    Kind("edit list.mp4", edited(video(40), starting_later(13)), Cached(1, 17, {"num_frames": 27, "start_s": 0.0})),
    Kind("no clock.avi", video(40, codec="mpeg4", options={"bf": "2"}), Cached(1, 34, LONG, by_order=True)),
    Kind("no clock, reordered.avi", video(40, options=B_FRAMES), Cached(1, 34, LONG, by_order=True)),
    Kind(
        "no clock.mkv",
        video(40, ticks=range(-60, -20), muxing={"avoid_negative_ts": "disabled"}),
        Bad("scan", "no timestamps"),
    ),
    # How it is shown.
    Kind("turned 90.mp4", edited(video(), turned(0, 1, -1, 0)), Cached(1, 17, {"height": 96, "width": 64})),
    Kind("turned 180.mp4", edited(video(), turned(-1, 0, 0, -1)), Cached(1, 17, {"rotation": 180, "width": 96})),
    Kind("turned 270.mp4", edited(video(), turned(0, -1, 1, 0)), Cached(1, 17, {"height": 96, "width": 64})),
    Kind("turned hevc.mp4", edited(HEVC, turned(0, 1, -1, 0)), Cached(1, 17, {"height": 96, "width": 64})),
    Kind(
        "anamorphic.mp4",
        video(aspect=Fraction(4, 3)),
        Cached(1, 17, {"height": 64, "width": 128, "pixel_aspect": 4 / 3}),
    ),
    Kind("odd.mp4", video(20, 181, 321, pixels="yuv444p"), Cached(1, 17, {"height": 181, "width": 321})),
    Kind("small.mp4", video(20, 24, 32), Bad("plan", "too small: 24x32")),
    Kind("black.mp4", even(0), Cached(1, 17, {"dark": True, "static": True})),
    Kind("frozen.mp4", even(255), Cached(1, 17, {"dark": False, "static": True})),
    # What it is made of.
    Kind("10 bit.mp4", video(pixels="yuv420p10le"), Cached(1, 17, {"codec": "h264", "bit_depth": 10})),
    Kind(
        "10 bit hevc.mp4",
        video(codec="libx265", pixels="yuv420p10le", options={"x265-params": X265}),
        Cached(1, 17, {"codec": "hevc", "bit_depth": 10}),
    ),
    Kind("open gop.mp4", OPEN_GOP, Cached(1, 34, {**LONG, "codec": "hevc"})),
    Kind("open gop, cut.mkv", without_packets(OPEN_GOP, ".mp4", first_group), Cached(1, 17)),
    Kind("key frame lost.mkv", without_packets(video(40), ".mp4", lambda packets: slice(0, 1)), Cached(1, 17)),
    Kind("frame lost.mkv", without_packets(video(40), ".mp4", lambda packets: slice(15, 16)), Cached(1, 34)),
    Kind("av1.mkv", video(codec="libsvtav1", options={"crf": "20", "preset": "10"}), Cached(1, 17, {"codec": "av1"})),
    Kind("vp9.webm", video(codec="libvpx-vp9", options={"deadline": "realtime"}), Cached(1, 17, {"codec": "vp9"})),
    Kind("prores.mov", video(codec="prores_ks", pixels="yuv422p10le", options={}), Cached(1, 17, {"codec": "prores"})),
    Kind("animated.gif", video(codec="gif", pixels="rgb8", options={}), Cached(1, 17, {"codec": "gif"})),
    Kind("still.png", still("png", "rgb24"), Cached(1, 1, {"num_frames": 1, "codec": "png"})),
    Kind("still.jpg", still("mjpeg", "yuvj420p"), Cached(1, 1, {"num_frames": 1, "codec": "mjpeg"})),
    Kind("sound.mp4", sound, Bad("scan", "no video stream")),
    Kind("song with cover.mp4", song_with_cover, Bad("scan", "no video stream|cover")),
    # What it is called, and where it lies.
    Kind("ünï 影片 🎬.mp4", video(), WHOLE),
    Kind("with space.mp4", video(), WHOLE),
    Kind("two\nlines.mp4", video(), WHOLE),
    Kind("a.b.c.mp4", video(), WHOLE),
    Kind("-dash 100%20 #1 ?a=b.mp4", video(), WHOLE),
    Kind("still %03d.png", still("png", "rgb24"), Cached(1, 1)),
    Kind("LOUD.MP4", video(), WHOLE),
    Kind("not \udcff text.mp4", video(), Bad("scan", "name is not UTF-8")),
    Kind("bad caption.mp4", with_caption(video(), "café".encode("latin-1")), Bad("scan", "caption .*not UTF-8")),
    Kind("good caption.mp4", with_caption(video(), "café".encode()), Cached(1, 17, {"caption": "café"})),
    Kind("north/same name.mp4", video(), WHOLE),
    Kind("south/same name.mp4", lambda path: write_mp4(path, pictures(20, seed=7), FPS), WHOLE),
    Kind("twin a.mp4", lambda path: write_frames(path, pictures(20, seed=2000)), WHOLE),
    Kind(
        "twin b.mp4",
        copy_of_twin_a,
        Bad("scan", "same content as .*twin a"),
    ),
    Kind("folder.mp4/inside.mp4", video(), WHOLE),
    Kind("unreadable.mp4", unreadable, Bad("scan", "permission")),
    Kind("dangling.mp4", lambda path: path.symlink_to("nowhere.mp4"), Bad("scan", "not found|link")),
    Kind("twin link.mp4", lambda path: path.symlink_to("twin a.mp4"), Bad("scan", "same content as .*twin a")),
    Kind("pipe.mp4", lambda path: os.mkfifo(path), Bad("scan", "not a file|pipe")),
    # What it does to its decoder; tests/faults makes these names true.
    Kind("segfaults.mp4", video(), Bad("scan", "crashed|died|killed|SIGSEGV")),
    Kind("segfaults late.mp4", video(), Bad("decode", "crashed|died|killed|SIGSEGV")),
    Kind("hangs.mp4", video(), Bad("scan", "took longer|deadline|longer than")),
    Kind(
        "hangs late.mp4",
        video(17, ticks=range(17), clock=Fraction(1, 120)),
        Bad("decode", "took longer|deadline|longer than"),
    ),
    Kind("bomb.png", black_image(12000, 12000), Bad("scan", "memory|too large")),
    Kind("bomb.mp4", huge, Bad("decode", "memory")),
    Kind("4k.png", black_image(2160, 3840), Cached(1, 1, {"height": 2160, "width": 3840, "dark": True})),
    Kind("absurd.png", content(png(2**31 - 1, 2**31 - 1, 0)), Bad("scan", "damaged|not a video|too large")),
    Kind(
        "absurd.gif",
        content(b"GIF89a" + b"\xff" * 4 + b"\0\0\0" + b"\x2c" + b"\0" * 4 + b"\xff" * 4 + b"\0\2\2L\1\0\0;"),
        Bad("scan", "damaged|not a video|too large"),
    ),
)


def write_folder(folder: Path, kinds: Iterable[Kind] = KINDS) -> None:
    """Write all of them."""
    for kind in kinds:
        path = folder / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind.write(path)
