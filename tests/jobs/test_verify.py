"""A cache is read again whole: what is broken is told, and `--repair` brings the same bytes back."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.encode import encode
from jobs.events import read_events
from jobs.plan import read_plan
from jobs.text import text
from jobs.verify import verify
from pipeline.cache import sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.plan import shards_of
from pipeline.records import Clip, Video
from pipeline.tables import read_metadata, read_records, write_records
from tests.conftest import digests
from tests.object_store import serve_bucket
from tests.shards import local


def move_to(config: RunConfig, cache: Path | str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": str(cache)})})


@pytest.fixture
def copied(cached: RunConfig, tmp_path: Path) -> RunConfig:
    """A cache of its own, to be damaged."""
    shutil.copytree(cached.data.cache, tmp_path / "cache")
    return move_to(cached, tmp_path / "cache")


def shards(config: RunConfig) -> list[str]:
    return list(shards_of(read_plan(config.cache)))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_whole_cache_is_told_so_and_left_alone(cached: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(cached.cache.root)
    assert verify(cached, repair=True) == 0
    assert digests(cached.cache.root) == before
    wanted = f"verify: {len(shards(cached))} shards read: all as it should be"
    assert capsys.readouterr().out.splitlines()[-1] == wanted


def damage_all(config: RunConfig) -> dict[str, str]:
    """Break a shard in each of many ways; returns what is to be told of which shard."""
    latents, words = config.cache.latents, config.cache.text("bytes")
    one, two, three, four, five, *_ = shards(config)
    flip(local(tar_path(latents, one)), 5000)
    local(tar_path(latents, two)).unlink()
    sidecar = local(sidecar_path(latents, three))
    sidecar.write_bytes(sidecar.read_bytes()[:-9])
    shutil.copy(local(tar_path(words, one)), local(tar_path(words, four)))
    flip(local(sidecar_path(words, five)), 10)
    flip(local(config.cache.null_text("bytes")), 100)
    return {
        f"latents {one}": "CRC-32C of",
        f"latents {two}": "bytes of the tar: found None",
        f"latents {three}": "the sidecar: found",
        f"text/bytes {four}": "bytes of the tar|members of the tar",
        f"text/bytes {five}": "the sidecar: found",
        "text/bytes null.npy": "SHA-256 of null.npy",
    }


def test_what_is_broken_is_told_and_repaired_to_the_same_bytes(
    cached: RunConfig, copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = damage_all(copied)
    damaged = digests(copied.cache.root)
    with pytest.raises(Refused, match=r"6 problems; run `verify --repair`, then `encode` and `text`"):
        verify(copied)
    assert digests(copied.cache.root) == damaged
    told = [line.removeprefix("verify: ") for line in capsys.readouterr().out.splitlines() if ": found" in line]
    assert len(told) == 6
    for place, what in wanted.items():
        [line] = [line for line in told if line.startswith(f"{place}: ")]
        assert any(one in line for one in what.split("|")), line
    assert len([one for one in read_events(copied.cache.events) if one["event"] == "problem"]) == 6

    assert verify(copied, repair=True) == 0
    assert not copied.cache.index.exists() and not copied.cache.text_index("bytes").exists()
    encode(copied)
    text(copied)
    done = [one for one in read_events(copied.cache.events) if one["event"] == "done"]
    assert [one.get("encoded", one.get("shards")) for one in done[-2:]] == [3, 2]  # those, and no others
    assert digests(copied.cache.root) == digests(cached.cache.root)
    assert verify(copied) == 0


def test_a_columns_own_files_are_repaired_too(
    cached: RunConfig, copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(local(copied.cache.index), 10)
    local(copied.cache.text_origin("bytes")).write_text("{}")
    with pytest.raises(Refused, match="not of this version"):
        text(copied)
    assert verify(copied, repair=True) == 0
    told = capsys.readouterr().out
    assert "latents index.parquet: the index: found" in told and "text/bytes encoder.json: the record: found" in told
    encode(copied)
    text(copied)
    assert digests(copied.cache.root) == digests(cached.cache.root)


def test_an_edited_caption_is_told_as_long_as_text_has_not_run(
    copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = copied.cache.manifest
    first, *others = read_records([manifest], Video)
    write_records(manifest, Video, [replace(first, caption="new"), *others], read_metadata(manifest))
    with pytest.raises(Refused, match="problem"):
        verify(copied)
    assert re.search("text/bytes .*: caption of .*, wanted new", capsys.readouterr().out)


def test_what_is_not_done_yet_and_what_is_left_over_is_told_and_does_no_harm(
    cached: RunConfig, copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, (first, *_, last) = copied.cache, shards(copied)
    for column in (cache.latents, cache.text("bytes")):
        local(sidecar_path(column, last)).unlink()
    aside = local(tar_path(cache.latents, first)).parent / f".x.tar.{'0' * 32}.tmp"
    encode(copied, limit=0)
    text(copied)
    assert f"; 1 of {len(shards(copied))} shards are not encoded yet" in capsys.readouterr().out
    aside.touch()
    assert verify(copied) == 0
    out = capsys.readouterr().out
    assert f"1 of {len(shards(copied))} planned shards are not encoded yet" in out
    assert f"{tar_path(cache.latents, last)}: a tar that no sidecar vouches for" in out
    assert f"{aside}: left by a writer that was killed" in out
    aside.unlink()
    encode(copied)
    assert verify(copied) == 0
    assert "text/bytes: 1 of" in capsys.readouterr().out
    text(copied)
    assert digests(cache.root) == digests(cached.cache.root)


def test_before_anything_is_committed_there_is_nothing_to_read(copied: RunConfig, tmp_path: Path) -> None:
    for shard in shards(copied):
        local(sidecar_path(copied.cache.latents, shard)).unlink()
    with pytest.raises(Refused, match=r"none of \d+ planned shards is committed; run `encode` first"):
        verify(copied)
    with pytest.raises(Refused, match="is not a cache yet"):
        verify(move_to(copied, tmp_path / "nothing"))


def test_a_plan_of_another_recipe_is_refused(copied: RunConfig) -> None:
    plan = copied.cache.plan(0)
    write_records(plan, Clip, read_records([plan], Clip), {"recipe": "f" * 64})
    with pytest.raises(Refused, match=r"gen-0000\.parquet: planned by recipe f{16}, .*recipe\.json is "):
        verify(copied)


@pytest.mark.slow
def test_a_cache_in_a_store_is_read_and_repaired_as_well(cached: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    root = local(cached.cache.root)
    with serve_bucket() as bucket:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            bucket.put(f"cache/{file.relative_to(root).as_posix()}", file)
        config = move_to(cached, bucket.uri("cache"))
        assert verify(config) == 0
        assert "vouches" not in capsys.readouterr().out
        shard = shards(cached)[1]
        tar = bytearray(bucket.get(f"cache/latents/{shard}.tar"))
        tar[6000] ^= 1
        bucket.put(f"cache/latents/{shard}.tar", bytes(tar))
        assert verify(config, repair=True) == 0
        assert f"latents {shard}: CRC-32C" in capsys.readouterr().out
        assert not sidecar_path(config.cache.latents, shard).exists() and not config.cache.index.exists()
        assert config.cache.text_index("bytes").exists()
