"""Sources -> manifest: find the videos, and read the facts of their containers without decoding them."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError

from pipeline.errors import BadVideo, Refused
from pipeline.records import Quarantined, Source, Video

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif"}
TABLE_SUFFIXES = {".csv", ".jsonl", ".parquet"}
CONTENT_SAMPLE_BYTES = 1 << 20  # the head and the tail that identify a file, beside its size


def list_sources(source: Path, caption_from_name: bool = False) -> tuple[list[Source], list[str]]:
    """A folder, or a table of (path, caption) -> sources sorted by path, and the names of the files passed over.

    In a folder the caption of `a.mp4` is the text of `a.txt` beside it; without one it is empty, or with
    `caption_from_name` the words of the file's name. Refused where nothing is found.
    """
    if not source.exists():
        raise Refused(f"data.source: {source} not found; give a folder of videos or a csv, jsonl or parquet table")
    if source.is_dir():
        sources, passed_over = _list_folder(source, caption_from_name)
        wanted = "files ending in " + " ".join(sorted(VIDEO_SUFFIXES))
    elif source.suffix.lower() in TABLE_SUFFIXES:
        sources, passed_over = list(_read_rows(source)), []
        wanted = "rows of path and caption"
    else:
        raise Refused(f"data.source: {source} is neither a folder nor a {', '.join(sorted(TABLE_SUFFIXES))} table")
    if not sources:
        raise Refused(f"data.source: no videos in {source}; found {len(passed_over)} other files, wanted {wanted}")
    return sorted(sources, key=lambda one: one.path), passed_over


def _list_folder(folder: Path, caption_from_name: bool) -> tuple[list[Source], list[str]]:
    sources, passed_over = [], []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        text = path.with_suffix(".txt")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            if text.exists():
                caption = _read_text(text).strip()
            else:
                caption = " ".join(path.stem.replace("-", "_").split("_")) if caption_from_name else ""
            sources.append(Source(str(path), caption))
        elif path.suffix != ".txt":
            passed_over.append(str(path.relative_to(folder)))
    return sources, passed_over


def _read_rows(table: Path) -> Iterator[Source]:
    """Rows of a table with columns `path` and `caption` (or `text`); relative paths start at the table's folder."""
    for number, row in enumerate(_TABLE_READERS[table.suffix.lower()](table), start=1):
        path, caption = row.get("path"), row.get("caption", row.get("text"))
        if not path or caption is None:
            raise Refused(f"{table}, row {number}: found {row}, wanted a path and a caption (or text)")
        yield Source(str(table.parent / path), str(caption))


def _read_text(path: Path) -> str:
    """A UTF-8 file, with or without the byte-order mark that spreadsheets write; Refused where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error


def _read_csv(table: Path) -> Iterable[dict]:
    yield from csv.DictReader(io.StringIO(_read_text(table), newline=""))


def _read_jsonl(table: Path) -> Iterable[dict]:
    for number, line in enumerate(_read_text(table).rstrip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(f"{table}, line {number}: not JSON ({error}); wanted one object per line") from error
        if not isinstance(row, dict):
            raise Refused(f"{table}, line {number}: found {type(row).__name__}, wanted an object with path and caption")
        yield row


def _read_parquet(table: Path) -> Iterable[dict]:
    try:
        return pq.read_table(table).to_pylist()
    except pa.ArrowInvalid as error:
        raise Refused(f"{table}: not a Parquet file: {error}") from error


_TABLE_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def content_id(path: Path, size_bytes: int) -> str:
    """16 hex digits that name a file by what is in it: SHA-256 of its size, first and last MiB."""
    digest = hashlib.sha256(str(size_bytes).encode())
    with open(path, "rb") as file:
        digest.update(file.read(CONTENT_SAMPLE_BYTES))
        file.seek(max(0, size_bytes - CONTENT_SAMPLE_BYTES))
        digest.update(file.read(CONTENT_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def presentation_times(path: Path, stream: int) -> np.ndarray:
    """The times in seconds at which the frames of a stream are shown, ascending, from its packets: (frames,) float64.

    The container's clock, not the decoder's: AVI has no reordering in it, and decoders then report holes.
    """
    with av.open(str(path), metadata_errors="ignore") as container:
        video = container.streams[stream]
        packets = (packet for packet in container.demux(video) if packet.size and not packet.is_discard)
        ticks = sorted(packet.pts for packet in packets if packet.pts is not None)
        return np.array(ticks, dtype=np.float64) * float(video.time_base or 0)


def probe(source: Source) -> Video:
    """Read a file's facts; BadVideo with a plain reason where it is not a video that can be read."""
    path = Path(source.path)
    try:
        status = path.stat()
        identity = content_id(path, status.st_size)
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise BadVideo("no video stream")
            first = next(container.decode(stream), None)
            if first is None:
                raise BadVideo("no frame can be decoded")
            index, codec = stream.index, stream.codec_context.name
            turned = first.rotation % 180 != 0
            height, width = (first.width, first.height) if turned else (first.height, first.width)
        times_s = presentation_times(path, index)
    except FileNotFoundError as error:
        raise BadVideo("file not found") from error
    except PermissionError as error:
        raise BadVideo("permission to read it is denied") from error
    except (FFmpegError, OSError) as error:
        raise BadVideo(f"damaged or not a video: {error.strerror}") from error
    if len(times_s) == 0:
        raise BadVideo("no timestamps")
    duration_s = float(times_s[-1] - times_s[0])
    if len(times_s) > 1 and duration_s <= 0:
        raise BadVideo(f"{len(times_s)} frames, all at the same time")
    return Video(
        id=identity,
        path=source.path,
        caption=source.caption,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        codec=codec,
        stream=index,
        height=height,
        width=width,
        num_frames=len(times_s),
        start_s=float(times_s[0]),
        end_s=float(times_s[-1]),
        fps=round((len(times_s) - 1) / duration_s, 6) if duration_s > 0 else 1.0,
    )


def drop_duplicates(videos: Iterable[Video]) -> tuple[list[Video], list[Quarantined]]:
    """Videos sorted by id, one for each content, and the others with the reason; the first path and caption win."""
    kept: dict[str, Video] = {}
    dropped = []
    for video in sorted(videos, key=lambda video: (video.path, video.caption)):
        first = kept.setdefault(video.id, video)
        if first is not video:
            dropped.append(Quarantined(video.path, "scan", f"same content as {first.path}", 1))
    return sorted(kept.values(), key=lambda video: video.id), dropped
