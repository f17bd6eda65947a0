"""A file is known by its content."""

from pathlib import Path

import pytest

from pipeline.identity import CONTENT_SAMPLE_BYTES, Identity, content_id, is_still


@pytest.mark.parametrize("place", [0, CONTENT_SAMPLE_BYTES - 1, -CONTENT_SAMPLE_BYTES, -1, None])
def test_head_tail_and_size_decide_the_name_of_a_large_file(tmp_path: Path, place: int | None) -> None:
    content = bytearray(3 * CONTENT_SAMPLE_BYTES)
    (tmp_path / "a").write_bytes(content)
    if place is None:
        content.append(0)
    else:
        content[place] = 1
    (tmp_path / "b").write_bytes(content)
    assert content_id(tmp_path / "a", "fast") != content_id(tmp_path / "b", "fast")


def test_every_byte_decides_the_full_name(tmp_path: Path) -> None:
    content = bytearray(3 * CONTENT_SAMPLE_BYTES + 1)
    (tmp_path / "a").write_bytes(content)
    content[len(content) // 2] = 1
    (tmp_path / "b").write_bytes(content)
    assert content_id(tmp_path / "a", "fast") == content_id(tmp_path / "b", "fast")
    assert content_id(tmp_path / "a", "full") != content_id(tmp_path / "b", "full")


def test_names_never_change(tmp_path: Path) -> None:
    """Plans and shards hold them."""
    (tmp_path / "a").write_bytes(b"video")
    assert (content_id(tmp_path / "a", "fast"), content_id(tmp_path / "a", "full")) == (
        "16e8793c1f2f7438",
        "0cab1c9617404faf",
    )


@pytest.mark.parametrize("identity", ["fast", "full"])
def test_a_file_is_still_itself_by_either_name_until_it_changes(tmp_path: Path, identity: Identity) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"video")
    known = content_id(path, identity)
    assert is_still(path, known)
    path.write_bytes(b"vidEo")
    assert not is_still(path, known)
