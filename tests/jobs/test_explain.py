"""`explain KEY` tells all there is to know of a clip, in whatever state it is, and its lines can be pasted."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.config import RunConfig
from jobs.decode import reader_limits
from jobs.explain import Explained, explain, look_up, rows
from jobs.plan import read_manifest, read_plan
from jobs.quarantine import redo_shard
from pipeline.cache import sidecar_path
from pipeline.errors import Refused
from pipeline.plan import shards_of
from pipeline.quarantine import set_aside
from pipeline.recipe import read_recipe
from pipeline.records import Clip, Quarantined, Sample, Tombstone, Video
from pipeline.tables import read_metadata, read_records, write_records
from tests.conftest import cache_config
from tests.jobs.test_shell_lines import encoded, paste, shown_in
from tests.object_store import serve_bucket


@pytest.fixture
def config(cached: RunConfig, tmp_path: Path) -> RunConfig:
    """A filled cache that may be changed."""
    shutil.copytree(str(cached.cache.root), tmp_path / "cache")
    return cached.model_copy(update={"data": cached.data.model_copy(update={"cache": str(tmp_path / "cache")})})


def longest(config: RunConfig) -> Clip:
    return max(read_plan(config.cache), key=lambda clip: (clip.num_chunks, clip.first_frame))


def told(config: RunConfig, key: str) -> dict[str, str]:
    """What the rows say, those without a name with the one above them."""
    texts: dict[str, str] = {}
    for name, text in rows(found(config, key)):
        name = name or list(texts)[-1]
        texts[name] = f"{texts[name]}\n{text}" if name in texts else text
    return texts


def found(config: RunConfig, key: str) -> Explained:
    return look_up(config.cache, key, "bytes", reader_limits(config.data))


def test_every_row_is_the_clips_own(config: RunConfig) -> None:
    clip, recipe = longest(config), read_recipe(config.cache)
    video = next(one for one in read_manifest(config.cache) if one.id == clip.video)
    rows = told(config, clip.key)
    assert list(rows) == ["video", "clip", "frames", "caption", "recipe", "state"]
    assert rows["video"].splitlines()[0] == video.path and f"{video.num_frames} frames" in rows["video"]
    start_s = video.start_s + clip.first_frame / clip.fps
    assert rows["clip"].startswith(f"{start_s:.3f} to {start_s + (clip.num_frames - 1) / clip.fps:.3f} s: ")
    assert "scene 1 of 1, " in rows["clip"] and f"{clip.num_chunks} chunks at 64x64" in rows["clip"]
    assert rows["caption"] == video.caption
    assert rows["recipe"].startswith(recipe.fingerprint()) and "dct in float32, posterior mean" in rows["recipe"]
    (sample,) = [one for one in read_records([config.cache.index], Sample) if one.key == clip.key]
    quality = f", comes back with {sample.psnr:.1f} dB" if sample.psnr == sample.psnr else ""
    assert rows["state"] == f"encoded in shard {clip.shard}{quality}, its text too"
    frames = found(config, clip.key).frames
    assert frames is not None
    lines = rows["frames"].splitlines()
    assert len(lines) == 2 * clip.num_chunks
    assert [int(word) for line in lines[::2] for word in line.split()] == frames.indices.tolist()
    assert [word for line in lines[1::2] for word in line.split()[:-1]] == [f"{s:.3f}" for s in frames.times_s]


def test_the_verbs_lines_show_the_frames_and_read_the_latents(
    config: RunConfig, ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = longest(config)
    video = next(one for one in read_manifest(config.cache) if one.id == clip.video)
    (tmp_path / "run.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["explain", clip.key, f"data.cache={config.data.cache}"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == clip.key
    (sample,) = [one for one in read_records([config.cache.index], Sample) if one.key == clip.key]
    place = f"latents/{clip.shard}.tar, {sample.latent_bytes} bytes from byte {sample.latent_offset} on"
    assert any(line.endswith(place) for line in lines)
    (dd,) = [line for line in lines if line.startswith("dd ")]
    paste(dd, tmp_path)
    assert np.load(tmp_path / f"{clip.key}.latent.npy").shape == (16, 5 * clip.num_chunks, 8, 8)
    (show,) = [line for line in lines if line.startswith("ffmpeg ")]
    paste(show, tmp_path, f"{ffmpeg}:{os.environ['PATH']}")
    assert np.array_equal(shown_in(tmp_path, video, clip), encoded(video, clip))


def test_a_shard_that_is_not_there_is_told(config: RunConfig) -> None:
    clip = longest(config)
    redo_shard(config.cache, clip.shard)
    assert told(config, clip.key)["state"] == f"planned, its shard {clip.shard} is not encoded; run `encode`"
    assert found(config, clip.key).sample is None


def test_a_clip_that_its_shard_went_on_without_has_its_reason(config: RunConfig) -> None:
    clip = longest(config)
    sidecar = sidecar_path(config.cache.latents, clip.shard)
    kept = [one for one in read_records([sidecar], Sample) if one.video != clip.video]
    write_records(sidecar, Sample, kept, read_metadata(sidecar))
    bad = Quarantined("/a.mp4", "decode", "the decoder crashed: SIGSEGV", 2, clip.video, clip.shard, "first\nlast")
    other = replace(bad, shard="64x64/0009-000000", reason="another shard's")
    set_aside(config.cache, clip.shard, [bad])
    set_aside(config.cache, other.shard, [other])
    rows = told(config, clip.key)
    assert rows["state"].startswith(f"left out of its shard {clip.shard}; `latentmill quarantine retry`")
    assert rows["quarantine"] == f"decode, 2 attempts, {clip.shard}: the decoder crashed: SIGSEGV\nlast"


def test_a_clip_of_a_removed_video_is_not_trained_on(config: RunConfig) -> None:
    clip = longest(config)
    write_records(config.cache.tombstones, Tombstone, [Tombstone(clip.video, "/gone.mp4")])
    assert told(config, clip.key)["state"].endswith("its video left the source, so it is not trained on")


@pytest.mark.parametrize("content", [None, b"something else"])
def test_without_its_file_all_but_the_frames_is_told(
    config: RunConfig, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture
) -> None:
    clip = longest(config)
    path = tmp_path / "other.mp4"
    videos = [replace(one, path=str(path)) if one.id == clip.video else one for one in read_manifest(config.cache)]
    write_records(config.cache.manifest, Video, videos)
    if content is not None:
        path.write_bytes(content)
    rows = told(config, clip.key)
    wanted = "other.mp4: found by `scan`, now gone" if content is None else "damaged or not a video"
    assert wanted in rows["frames"] and rows["state"].startswith("encoded in shard")
    explain(config, clip.key)
    printed = capsys.readouterr().out
    assert "ffmpeg " not in printed and "\ndd if=" in printed


def test_a_caption_that_was_edited_stands_beside_the_one_that_is_encoded(config: RunConfig) -> None:
    clip = longest(config)
    videos = read_manifest(config.cache)
    (old,) = [one.caption for one in videos if one.id == clip.video]
    edited = [replace(one, caption="[bold]new[/]\nwords") if one.id == clip.video else one for one in videos]
    write_records(config.cache.manifest, Video, edited)
    assert (
        told(config, clip.key)["caption"] == f"[bold]new[/] words\nthe text column has another one: {old}; run `text`"
    )
    shutil.rmtree(str(config.cache.text("bytes")))
    assert told(config, clip.key)["state"].endswith("its text is not; run `text`")


def test_padding_and_scenes_are_told(config: RunConfig) -> None:
    clip = longest(config)
    padded = replace(clip, valid_frames=clip.num_frames - 5)
    clips = [padded if one.key == clip.key else one for one in read_plan(config.cache)]
    write_records(config.cache.plan(0), Clip, clips)
    assert "the last one 5 times more to fill the chunk" in told(config, clip.key)["clip"]
    (config.cache.scenes).unlink()
    assert "the whole video" in told(config, clip.key)["clip"]


def test_an_unknown_key_is_refused_with_those_of_its_video(config: RunConfig) -> None:
    clip = longest(config)
    with pytest.raises(Refused, match=rf"no clip of this name is planned, found {re.escape(clip.key)[:16]}"):
        explain(config, f"{clip.video}-00009999-64x64")
    with pytest.raises(Refused, match=r"^nothing: no clip of this name is planned, found none of its video; .*index"):
        explain(config, "nothing")


def test_without_a_cache_there_is_nothing_to_explain(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="run `plan` first"):
        explain(cache_config(tmp_path, tmp_path), "nothing")


def test_every_clip_of_a_cache_can_be_explained(cached: RunConfig) -> None:
    first = [clips[0] for clips in shards_of(read_plan(cached.cache)).values()]
    for clip in first:
        (sample,) = [one for one in read_records([cached.cache.index], Sample) if one.key == clip.key]
        assert found(cached, clip.key).sample == sample


def test_a_cache_in_an_object_store_is_explained_alike(cached: RunConfig, capsys: pytest.CaptureFixture) -> None:
    clip, root = longest(cached), Path(cached.data.cache)
    with serve_bucket() as bucket:
        for path in (path for path in root.rglob("*") if path.is_file()):
            bucket.put(f"cache/{path.relative_to(root)}", path)
        data = cached.data.model_copy(update={"cache": bucket.uri("cache")})
        remote = cached.model_copy(update={"data": data})
        assert told(remote, clip.key) == told(cached, clip.key)
        explain(remote, clip.key)
        (python,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
        assert paste(python, Path.cwd()) == f"(16, {5 * clip.num_chunks}, 8, 8)\n"
