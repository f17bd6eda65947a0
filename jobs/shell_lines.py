"""Lines for a shell: the frames of a clip by ffmpeg, its latents by tar, dd or Python. None needs this project but the
last one, which reads object stores too."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.av_reader import upright_filters
from pipeline.bucket import cover_size, crop_offset
from pipeline.decode import ClipFrames
from pipeline.location import Location, Place
from pipeline.records import Clip, Video
from pipeline.shard import Member

MOST_TERMS = 50  # of one sum: ffmpeg gives up on expressions a hundred deep, and every term of a sum is one deeper


def ffmpeg_line(video: Video, clip: Clip, frames: ClipFrames) -> str:
    """What writes KEY-001.png ...: each frame of a clip once, as it was decoded, to the bit.

    Frames are chosen by their number, which is right at any frame rate. Wants ffmpeg 5.1 or newer, and of a video in
    an object store a copy in the working directory.
    """
    indices = np.unique(frames.indices)
    size = cover_size(video.height, video.width, (clip.height, clip.width))
    top, left = crop_offset(size, (clip.height, clip.width))
    filters = [
        ("select", _sum([_term(first, last) for first, last in runs(indices)])),
        ("setpts", "N/TB"),  # one each second: PNGs have no times, and ffmpeg complains of frames that are too close
        *upright_filters(video.rotation, *size),
        ("crop", f"{clip.width}:{clip.height}:{left}:{top}"),
    ]
    location = Location.of(video.path)
    source = [  # a name like `a%d.png` is that of one image, not of a sequence
        *(["-pattern_type", "none"] if frames.container == "image2" else []),
        *["-noautorotate", "-i", f"file:{location.name if location.bucket else location}"],
        *["-map", f"0:{video.stream}"],
    ]
    graph = ",".join(name if arguments is None else f"{name}={arguments}" for name, arguments in filters)
    shown = ["-vf", graph, "-fps_mode", "passthrough", "-frames:v", str(len(indices)), f"{clip.key}-%03d.png"]
    return shlex.join(["ffmpeg", "-nostdin", "-v", "error", *source, *shown])


def runs(indices: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers as runs without gaps: 3 4 5 9 -> (3, 5) (9, 9)."""
    parts = np.split(np.asarray(indices), np.flatnonzero(np.diff(indices) > 1) + 1)
    return [(int(part[0]), int(part[-1])) for part in parts]


def _term(first: int, last: int) -> str:
    return f"eq(n\\,{first})" if first == last else f"between(n\\,{first}\\,{last})"


def _sum(terms: list[str]) -> str:
    if len(terms) <= MOST_TERMS:
        return "+".join(terms)
    half = len(terms) // 2
    return f"({_sum(terms[:half])})+({_sum(terms[half:])})"


def member_lines(tar: Place, name: str, member: Member) -> list[str]:
    """What writes a member of a tar, a .npy file, to the working directory, or prints its shape."""
    source = shlex.quote(str(tar))
    place = json.dumps(str(tar), ensure_ascii=False)  # a string of Python's too, without the quotes of the shell's
    code = (
        f"import io, numpy; from pipeline.location import place_of; from pipeline.storage import read_range; "
        f"member = read_range(place_of({place}), {member.offset}, {member.num_bytes}); "
        f"print(numpy.load(io.BytesIO(member)).shape)"
    )
    python = f"python -c {shlex.quote(code)}"
    if not isinstance(tar, Path):
        return [python]
    span = f"iflag=skip_bytes,count_bytes skip={member.offset} count={member.num_bytes}"
    member_name = shlex.quote(name)
    return [f"tar -xf {source} {member_name}", f"dd if={source} of={member_name} {span} status=none", python]
