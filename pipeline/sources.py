"""What the user named, a folder or a table -> sources: the files, their captions and what else the table says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import Refused
from pipeline.files import Listed, is_folder, list_folder, open_file, read_all, stat_all
from pipeline.location import Location
from pipeline.records import Quarantined, Source
from pipeline.user_table import TABLES, Row, decode_text, extra_json, read_rows

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
KINDS = ", ".join(sorted(TABLES))


@dataclass(frozen=True)
class Found:
    """What is there: sources by path, names of the files passed over, and what is no source for a reason."""

    sources: tuple[Source, ...]
    passed_over: tuple[str, ...] = ()
    unusable: tuple[Quarantined, ...] = ()


def list_sources(source: str, caption_from_name: bool = False, images: bool = True) -> Found:
    """A folder of videos (and images), or a table of path and caption -> sources with the size and time of each file.

    In a folder the caption of `a.mp4` is the text of `a.txt` beside it; without one it is empty, or with
    `caption_from_name` the words of the file's name. Refused where nothing is found.
    """
    suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES if images else VIDEO_SUFFIXES
    try:
        if is_folder(source):
            found = _list_folder(source, caption_from_name, suffixes)
            wanted = "files ending in " + " ".join(sorted(suffixes))
        elif Location.of(source).suffix in TABLES:
            found, wanted = Found(tuple(_list_table(source))), "rows of path and caption"
        else:
            raise Refused(f"data.source: {source} is neither a folder nor a {KINDS} table")
    except FileNotFoundError as error:
        raise Refused(f"data.source: {source} not found; give a folder of videos or a {KINDS} table") from error
    except OSError as error:
        raise Refused(f"data.source: {source} cannot be read: {error.strerror or error}; mend that first") from error
    if not found.sources and not found.unusable:
        raise Refused(
            f"data.source: no videos in {source}; found {len(found.passed_over)} other files, wanted {wanted}"
        )
    return found


def _list_folder(folder: str, caption_from_name: bool, suffixes: set[str]) -> Found:
    files, locked = list_folder(folder)
    unusable = [Quarantined(path, "scan", "permission to read this folder is denied", 1) for path in map(_text, locked)]
    readable = [one for one in files if _text(one.path) == one.path]
    unusable += [
        Quarantined(_text(one.path), "scan", "its name is not UTF-8; rename it", 1)
        for one in files
        if _text(one.path) != one.path and Location.of(one.path).suffix in suffixes
    ]
    videos = [one for one in readable if Location.of(one.path).suffix in suffixes]
    captions, illegible = _read_captions(videos, {one.path for one in files})
    unusable += [Quarantined(path, "scan", reason, 1) for path, reason in illegible.items()]
    sources = [_source(one, captions, caption_from_name) for one in videos if one.path not in illegible]
    top = Location.of(folder).pure
    others = (Location.of(one.path) for one in readable)
    passed_over = [str(one.pure.relative_to(top)) for one in others if one.suffix not in suffixes | {".txt"}]
    return Found(tuple(sources), tuple(passed_over), tuple(unusable))


def _text(path: str) -> str:
    """A path as it can be written in UTF-8: bytes of a name that are not shown by their numbers."""
    return path.encode("utf-8", "backslashreplace").decode()


def _source(file: Listed, captions: Mapping[str, str], caption_from_name: bool) -> Source:
    name = Location.of(file.path).pure
    words = " ".join(name.stem.replace("-", "_").split("_")) if caption_from_name else ""
    caption = captions.get(file.path, words)
    return Source(file.path, caption, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns)


def _read_captions(videos: Sequence[Listed], paths: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """By video: the caption beside it, where there is one, or the reason why that cannot be read."""
    beside = {one.path: str(_caption_file(one.path)) for one in videos}
    beside = {video: text for video, text in beside.items() if text in paths}
    captions: dict[str, str] = {}
    illegible: dict[str, str] = {}
    for (video, text), content in zip(beside.items(), read_all(beside.values()), strict=True):
        if isinstance(content, OSError):
            illegible[video] = f"its caption {text} cannot be read: {content.strerror or content}"
            continue
        try:
            captions[video] = decode_text(content, text).strip()
        except Refused as error:
            illegible[video] = f"its caption {error}"
    return captions, illegible


def _caption_file(path: str) -> Location:
    location = Location.of(path)
    return location.at(location.pure.with_suffix(".txt"))


def _list_table(table: str) -> list[Source]:
    """Rows of path and caption (or text), by path, with size and time of their files where these are there."""
    with open_file(table) as file:
        rows = read_rows(file, table, Location.of(table).suffix)
        named = [_named(table, number, row) for number, row in enumerate(rows, start=1)]
    listed = stat_all({one.path for one in named})
    found = ((one, listed.get(one.path)) for one in named)
    sources = [replace(one, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns) if file else one for one, file in found]
    return sorted(sources, key=lambda one: (one.path, one.caption, one.extra))


def _named(table: str, number: int, row: Row) -> Source:
    """What a row names; a relative path starts at the table's folder."""
    column = "caption" if "caption" in row else "text"
    path, caption = row.get("path"), row.get(column)
    if not path or column not in row:
        raise Refused(f"{table}, row {number}: found {row}, wanted a path and a caption (or text)")
    source = Source(_beside(table, str(path)), str(caption or ""), extra_json(row, {"path", column}))
    if _text(source.path + source.caption) != source.path + source.caption:
        raise Refused(f"{table}, row {number}: found half a surrogate pair, wanted text that UTF-8 can hold")
    return source


def _beside(table: str, path: str) -> str:
    if "://" in path or path.startswith("/"):
        return str(Location.of(path))
    location = Location.of(table)
    return str(location.at(location.pure.parent / path))
