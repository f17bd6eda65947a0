"""Sources are found in folders and tables, and a manifest row states what its file is; bad files give a reason."""

import json
import struct
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.mp4 import write_mp4
from pipeline.errors import BadVideo, Refused
from pipeline.records import Source, Video
from pipeline.scan import CONTENT_SAMPLE_BYTES, content_id, drop_duplicates, list_sources, presentation_times, probe

SHARED = Path(__file__).resolve().parents[2] / "../shared/videos"


def grey(frames: int = 5, height: int = 48, width: int = 64, level: int = 90) -> np.ndarray:
    return np.full((frames, height, width, 3), level, np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(folder / "plain.mp4", grey(frames=13), 12)
    write_mp4(folder / "other.mp4", grey(frames=13, level=200), 12)
    return folder


def facts(path: Path) -> Video:
    return probe(Source(str(path), "a caption"))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_folder_gives_its_videos_and_names_what_it_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a/c.mkv", "a.webm", "notes.pdf", "a/poster.jpg", "a.txt")
    sources, passed_over = list_sources(tmp_path)
    assert [one.path for one in sources] == [str(tmp_path / name) for name in ("a.webm", "a/c.mkv", "b.MP4")]
    assert passed_over == ["a/poster.jpg", "notes.pdf"]


def test_the_text_beside_a_video_is_its_caption(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "a.txt").write_text(" Ein Vögelchen \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("")
    captions = [one.caption for one in list_sources(tmp_path)[0]]
    assert captions == ["Ein Vögelchen", "", ""]


def test_a_name_is_a_caption_only_when_asked_for_and_where_no_text_is(tmp_path: Path) -> None:
    touch(tmp_path, "a_red-square.mp4", "b_blue.mp4")
    (tmp_path / "b_blue.txt").write_text("a blue circle")
    assert [one.caption for one in list_sources(tmp_path, caption_from_name=True)[0]] == [
        "a red square",
        "a blue circle",
    ]
    assert list_sources(tmp_path)[0][0].caption == ""


def write_table(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names)] + [",".join(f'"{row[name]}"' for name in names) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("column", ["caption", "text"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_gives_paths_from_its_own_folder(tmp_path: Path, ending: str, column: str) -> None:
    rows = [{"path": "deep/b.mp4", column: "zwei, über"}, {"path": "/far/a.mp4", column: ""}]
    write_table(tmp_path / f"table.{ending}", rows)
    assert list_sources(tmp_path / f"table.{ending}") == (
        [Source("/far/a.mp4", ""), Source(str(tmp_path / "deep/b.mp4"), "zwei, über")],
        [],
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_without_captions_is_refused_by_row(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"table.{ending}", [{"path": "a.mp4", "title": "x"}])
    with pytest.raises(Refused, match=rf"table\.{ending}, row 1: found .*'title'.*, wanted a path and a caption"):
        list_sources(tmp_path / f"table.{ending}")


@pytest.mark.parametrize(("line", "problem"), [("{'path': 1}", "not JSON"), ('["a.mp4", ""]', "found list")])
def test_a_bad_line_is_refused_by_number(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "table.jsonl").write_text('{"path": "a.mp4", "caption": ""}\n' + line + "\n")
    with pytest.raises(Refused, match=rf"table\.jsonl, line 2: {problem}"):
        list_sources(tmp_path / "table.jsonl")


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_newlines_end_a_line_of_json(tmp_path: Path, separator: str) -> None:
    write_table(tmp_path / "table.jsonl", [{"path": "a.mp4", "caption": f"up{separator}down"}])
    assert list_sources(tmp_path / "table.jsonl")[0][0].caption == f"up{separator}down"


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nowhere not found"):
        list_sources(tmp_path / "nowhere")
    touch(tmp_path, "table.xlsx", "empty/readme.md")
    with pytest.raises(Refused, match=r"table\.xlsx is neither a folder nor"):
        list_sources(tmp_path / "table.xlsx")
    with pytest.raises(Refused, match=r"no videos in .*empty; found 1 other files, wanted files ending in"):
        list_sources(tmp_path / "empty")
    (tmp_path / "none.csv").write_text("path,caption\n")
    with pytest.raises(Refused, match=r"no videos in .*none\.csv"):
        list_sources(tmp_path / "none.csv")


def test_a_video_is_known_by_its_facts(videos: Path) -> None:
    found, status = facts(videos / "plain.mp4"), (videos / "plain.mp4").stat()
    assert (found.path, found.caption) == (str(videos / "plain.mp4"), "a caption")
    assert (found.size_bytes, found.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert (found.codec, found.stream, found.height, found.width) == ("h264", 0, 48, 64)
    assert (found.num_frames, found.start_s, found.end_s, found.fps) == (13, 0.0, 1.0, 12.0)


def test_times_are_ascending_however_frames_are_stored(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    frames[1:] = frames[:1] // 2 + np.arange(11, dtype=np.uint8)[:, None, None, None]
    write_mp4(tmp_path / "b.mp4", frames, 12)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored)  # it has B-frames
    assert presentation_times(tmp_path / "b.mp4", 0) == pytest.approx(np.arange(12) / 12)


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_mp4(tmp_path / "one.mp4", grey(frames=1), 12)
    found = facts(tmp_path / "one.mp4")
    assert (found.num_frames, found.start_s, found.end_s, found.fps) == (1, 0.0, 0.0, 1.0)


def turn(source: Path, path: Path, matrix: tuple[int, int, int, int]) -> None:
    """A copy of an mp4 with another display matrix."""
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 44  # behind name, version, times, duration, layer and volume
    a, b, c, d = (65536 * one for one in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "size"), [((0, 1, -1, 0), (64, 48)), ((-1, 0, 0, -1), (48, 64)), ((0, -1, 1, 0), (64, 48))]
)
def test_a_quarter_turn_swaps_height_and_width(videos: Path, tmp_path: Path, matrix, size: tuple[int, int]) -> None:
    turn(videos / "plain.mp4", tmp_path / "turned.mp4", matrix)
    found = facts(tmp_path / "turned.mp4")
    assert (found.height, found.width) == size


@pytest.mark.skipif(not SHARED.exists(), reason="no folder of real videos")
def test_a_phone_video_is_upright() -> None:
    found = facts(SHARED / "rotated_90.mov")
    assert (found.height, found.width) == (568, 320)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"these are words, not a video " * 50, "damaged or not a video"), (b"", "damaged or not a video")],
)
def test_a_name_does_not_make_a_video(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "fake.mp4").write_bytes(content)
    with pytest.raises(BadVideo, match=reason):
        facts(tmp_path / "fake.mp4")


def test_a_file_cut_short_is_bad(videos: Path, tmp_path: Path) -> None:
    content = (videos / "plain.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadVideo, match="damaged or not a video|no video stream"):
        facts(tmp_path / "cut.mp4")


def test_a_missing_file_is_bad(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="^file not found$"):
        facts(tmp_path / "gone.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    (source,) = list_sources(tmp_path)[0]
    with pytest.raises(BadVideo, match="^file not found$"):
        probe(source)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8192, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(BadVideo, match="^no video stream$"):
        facts(tmp_path / "sound.mp4")


def test_a_title_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "titled.mp4"), "w") as container:
        container.metadata["title"] = "CAFECAFE"
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in grey():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "titled.mp4").read_bytes()
    assert content.count(b"CAFECAFE") == 1
    (tmp_path / "titled.mp4").write_bytes(content.replace(b"CAFECAFE", "café olé".encode("latin-1")))
    assert facts(tmp_path / "titled.mp4").num_frames == 5


def test_content_names_a_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.mp4").write_bytes((videos / "plain.mp4").read_bytes())
    plain, copy, other = (facts(path) for path in (videos / "plain.mp4", tmp_path / "copy.mp4", videos / "other.mp4"))
    assert plain.id == copy.id != other.id
    assert len(plain.id) == 16 and set(plain.id) <= set("0123456789abcdef")


@pytest.mark.parametrize("place", [0, CONTENT_SAMPLE_BYTES - 1, -CONTENT_SAMPLE_BYTES, -1, None])
def test_head_tail_and_size_decide_the_name_of_a_large_file(tmp_path: Path, place: int | None) -> None:
    content = bytearray(3 * CONTENT_SAMPLE_BYTES)
    (tmp_path / "a").write_bytes(content)
    if place is None:
        content.append(0)
    else:
        content[place] = 1
    (tmp_path / "b").write_bytes(content)
    assert content_id(tmp_path / "a", 3 * CONTENT_SAMPLE_BYTES) != content_id(tmp_path / "b", len(content))


def test_of_equal_files_the_first_path_is_kept(videos: Path, tmp_path: Path) -> None:
    for name in ("c.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((videos / "plain.mp4").read_bytes())
    write_mp4(tmp_path / "a.mp4", grey(level=30), 12)
    found = [facts(tmp_path / name) for name in ("c.mp4", "a.mp4", "b.mp4")]
    kept, dropped = drop_duplicates(found)
    assert {one.path for one in kept} == {str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")}
    assert [one.id for one in kept] == sorted(one.id for one in kept)
    assert [(one.path, one.stage, one.reason) for one in dropped] == [
        (str(tmp_path / "c.mp4"), "scan", f"same content as {tmp_path / 'b.mp4'}")
    ]
    assert drop_duplicates(found[::-1]) == (kept, dropped)
