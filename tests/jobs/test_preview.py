"""`preview` shows what is in the cache and where it came from, also where the videos are gone."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.__main__ import main
from jobs.config import ConfigError, RunConfig
from jobs.configured import load_configured_vae
from jobs.mp4 import read_mp4
from jobs.plan import read_manifest, read_plan
from jobs.preview import MOST_CLIPS, beginning, decode_again, make_card, open_clips, preview, restore, spread_clips
from pipeline.decode import decode_clips
from pipeline.encode import decode_to_frames, encode_chunks, psnr
from pipeline.errors import Refused
from pipeline.quarantine import set_aside
from pipeline.records import Clip, Quarantined, Sample, Tombstone, Video
from pipeline.sample import array_bytes
from pipeline.shard import Packed, writing_shard
from pipeline.tables import read_records, write_records
from pipeline.tar_reader import TarReader


@pytest.fixture
def copied(cached: RunConfig, tmp_path: Path) -> RunConfig:
    """The filled cache, to be changed."""
    shutil.copytree(cached.data.cache, tmp_path / "cache")
    return moved(cached, tmp_path / "cache")


def moved(config: RunConfig, cache: Path) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": str(cache)})})


def rows_of(config: RunConfig) -> list[Sample]:
    return read_records([config.cache.index], Sample)


def replace_videos(config: RunConfig, **changes: object) -> None:
    videos = [replace(video, **changes) for video in read_manifest(config.cache)]  # pyright: ignore[reportArgumentType]
    write_records(config.cache.manifest, Video, videos)


def source_of(config: RunConfig, clip: Clip) -> np.ndarray:
    video = next(video for video in read_manifest(config.cache) if video.id == clip.video)
    return np.concatenate([frames for *_, frames in decode_clips(video, [clip])])


def test_a_clip_is_shown_beside_the_frames_it_was_made_of(cached: RunConfig, tmp_path: Path) -> None:
    row = next(row for row in rows_of(cached) if row.num_chunks == 2)
    [one] = restore(cached, [row])
    assert one.source is not None and one.psnr_db is not None
    assert (one.source == source_of(cached, one.clip)).all()
    assert one.decoded.shape == (34, 64, 64, 3) and one.psnr_db == psnr(one.source, one.decoded) > 15
    vae = load_configured_vae(cached)
    chunks = [one.source[:17], one.source[17:]]
    again = np.concatenate(list(encode_chunks(vae, np.stack(chunks), [0, 0])), axis=1)  # (C, t, h, w)
    decoded = decode_to_frames(vae, torch.from_numpy(again)[None].float(), 34)[0]
    assert np.abs(decoded.astype(int) - one.decoded).max() <= 1

    card = make_card(one, tmp_path, room=10**6)
    shown = read_mp4(tmp_path / card.link)
    assert shown.shape == (34, 64, 128, 3)
    assert psnr(shown[:, :, :64], one.source) > 30 and psnr(shown[:, :, 64:], one.decoded) > 30
    facts = dict(card.facts)
    assert facts["key"] == row.key and facts["video"] == one.path and facts["PSNR"] == f"{one.psnr_db:.1f} dB"
    assert facts["time"] == f"{row.start_s:.2f} to {row.start_s + 34 / 8:.2f} s"
    assert facts["frames"] == "34 of 64×64 at 8 fps"
    content = (tmp_path / card.link).read_bytes()
    assert card.mp4 == make_card(one, tmp_path, room=len(content)).mp4 == content
    assert make_card(one, tmp_path, room=len(content) - 1).mp4 is None


def test_clips_are_spread_over_those_that_are_trained_on(copied: RunConfig) -> None:
    rows = rows_of(copied)
    spread = spread_clips(copied.cache, open_clips(copied), 3)
    assert spread[0] == rows[0] and spread[2] == rows[-1] and len(spread) == 3
    assert spread_clips(copied.cache, open_clips(copied), 100) == rows
    write_records(copied.cache.tombstones, Tombstone, [Tombstone(rows[0].video, "gone.mp4")])
    left = [row for row in rows if row.video != rows[0].video]
    assert spread_clips(copied.cache, open_clips(copied), 100) == left
    write_records(copied.cache.tombstones, Tombstone, [Tombstone(row.video, "gone.mp4") for row in rows])
    assert spread_clips(copied.cache, open_clips(copied), 100) == []


def test_the_page_has_the_clips_that_were_named_in_their_order(
    cached: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = [rows_of(cached)[number].key for number in (3, 0, 3)]
    preview(cached, tmp_path, keys, count=12)
    assert "preview: 2 of 12 clips; PSNR " in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert page.index(keys[0]) < page.index(keys[1])
    assert page.count("<article>") == 2 and page.count("data:video/mp4") == 2
    assert {path.stem for path in (tmp_path / "clips").iterdir()} == set(keys)
    clips = {clip.key: clip.video for clip in read_plan(cached.cache)}
    captions = {video.id: video.caption for video in read_manifest(cached.cache)}
    for key in keys:
        assert f'<p dir="auto">{captions[clips[key]]}</p>' in page
    for told in ("12 clips of ", "64x64: 12", "chunks/s", "nearest presentation timestamp"):
        assert told in page


def test_captions_are_those_of_the_text_column_and_before_that_of_the_manifest(copied: RunConfig) -> None:
    row = rows_of(copied)[0]
    [before] = restore(copied, [row])
    replace_videos(copied, caption="edited since")
    assert next(restore(copied, [row])).caption == before.caption != ""
    copied.cache.text_index("bytes").unlink()
    assert next(restore(copied, [row])).caption == "edited since"


def test_a_video_that_is_gone_or_damaged_leaves_the_cached_half(copied: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "damaged.mp4").write_text("not a video")
    first, second, *_ = rows_of(copied)
    paths = {first.video: str(tmp_path / "gone.mp4"), second.video: str(tmp_path / "damaged.mp4")}
    videos = [replace(video, path=paths.get(video.id, video.path)) for video in read_manifest(copied.cache)]
    write_records(copied.cache.manifest, Video, videos)
    gone, damaged = restore(copied, [first, second])
    assert gone.source is None and "now gone" in gone.no_source
    assert damaged.source is None and damaged.no_source
    card = make_card(gone, tmp_path, room=10**6)
    assert read_mp4(tmp_path / card.link).shape == (len(gone.decoded), 64, 64, 3)
    assert card.no_source == gone.no_source
    assert dict(card.facts)["PSNR"] == f"{first.psnr:.1f} dB when it was encoded"
    unchecked = replace(gone, sample=replace(first, psnr=float("nan")))
    assert dict(make_card(unchecked, tmp_path, room=0).facts)["PSNR"] == "unknown"
    preview(copied, tmp_path, [first.key, second.key], count=1)
    assert "2 without their source" in (tmp_path / "index.html").read_text()


def test_of_a_long_clip_the_first_chunks_are_shown(
    cached: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in rows_of(cached) if row.num_chunks == 2)
    [whole] = restore(cached, [row])
    monkeypatch.setattr("jobs.preview.MOST_PIXELS", 2 * 17 * 64 * 64 - 1)
    [begun] = restore(cached, [row])
    assert begun.source is not None and whole.source is not None
    assert (begun.source == whole.source[:17]).all() and (begun.decoded == whole.decoded[:17]).all()
    assert dict(make_card(begun, tmp_path, 0).facts)["frames"].endswith("; the first 17 are shown")
    monkeypatch.setattr("jobs.preview.MOST_PIXELS", 1)
    assert beginning(whole.clip).num_frames == 17  # one chunk in any case


def test_padding_is_told(cached: RunConfig, tmp_path: Path) -> None:
    [one] = restore(cached, [rows_of(cached)[0]])
    padded = replace(one, sample=replace(one.sample, valid_frames=one.sample.num_frames - 3))
    assert dict(make_card(padded, tmp_path, 0).facts)["frames"].endswith("at 8 fps, 3 of them padding")


def test_the_page_does_not_grow_without_bound(
    cached: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview(cached, tmp_path, [], count=3)
    sizes = [path.stat().st_size for path in (tmp_path / "clips").iterdir()]
    monkeypatch.setattr("jobs.preview.PAGE_BYTES", sum(sizes) - 1)
    preview(cached, tmp_path, [], count=3)
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:video/mp4") == 2 and page.count("Too large for this page: ") == 1
    for count in (0, MOST_CLIPS + 1):
        with pytest.raises(ConfigError, match=f"found {count} clips to show, wanted 1 to {MOST_CLIPS}"):
            preview(cached, tmp_path, [], count)


def test_another_normalization_of_the_cache_shows_the_same_pictures(cached: RunConfig) -> None:
    changed = cached.recipe.model_copy(update={"shift": (0.5,) * 16, "scale": (2.0,) * 16})
    rows = rows_of(cached)[:1]
    [as_cached], [converted] = restore(cached, rows), restore(cached.model_copy(update={"recipe": changed}), rows)
    assert np.abs(as_cached.decoded.astype(int) - converted.decoded).max() <= 1
    other = cached.model_copy(update={"recipe": cached.recipe.model_copy(update={"fps": 4.0})})
    with pytest.raises(Refused, match="recipe.fps: found 8.0, wanted 4.0"):
        open_clips(other)


def test_of_moments_the_mean_is_shown(cached: RunConfig, tmp_path: Path) -> None:
    row = rows_of(cached)[0]
    clip = next(clip for clip in read_plan(cached.cache) if clip.key == row.key)
    vae = load_configured_vae(cached)
    mean = np.random.default_rng(0).normal(size=(16, 5 * row.num_chunks, 8, 8)).astype(np.float16)
    decoded = []
    for stored, cache in ((vae.spec, mean), (replace(vae.spec, posterior="moments"), np.concatenate([mean, mean + 9]))):
        vae.spec = stored
        with writing_shard(tmp_path, "a") as tar:
            where = tar.add(Packed("k", {"latent.npy": array_bytes(cache)}))["latent.npy"]
        place = {"latent_offset": where.offset, "latent_bytes": where.num_bytes, "latent_crc32c": where.crc32c}
        decoded.append(decode_again(vae, stored, TarReader(tmp_path), replace(row, shard="a", **place), clip))
    assert (decoded[0] == decoded[1]).all()


def test_a_key_that_is_not_in_the_cache_is_explained(copied: RunConfig, tmp_path: Path) -> None:
    cache, rows = copied.cache, rows_of(copied)
    bad, removed, later, *_ = {row.video: row for row in rows}.values()
    shown = [row for row in rows if row.key not in (bad.key, removed.key, later.key)]
    metadata = {"recipe": open_clips(copied).schema.metadata[b"recipe"].decode()}
    write_records(cache.index, Sample, shown, metadata)
    reason = Quarantined("/a.mp4", "decode", "the decoder crashed: SIGSEGV", 2, bad.video, bad.shard)
    set_aside(cache, bad.shard, [reason, replace(reason, video=later.video, shard="64x64/other")])
    write_records(cache.tombstones, Tombstone, [Tombstone(removed.video, "gone.mp4")])
    for key, told in {
        bad.key: "in the quarantine: /a.mp4: decode: the decoder crashed: SIGSEGV; mend it",
        removed.key: "its video has left the source; bring it back",
        later.key: f"planned for shard {later.shard}, which is not encoded yet; run `encode`",
        "0123-00000000-64x64": "no such clip among the 12 planned ones",
        f"{bad.video}-99999999-64x64": "in the quarantine: /a.mp4",
    }.items():
        with pytest.raises(Refused, match=f"^{key}: {told}"):
            preview(copied, tmp_path / "out", [shown[0].key, key], count=1)
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_keys_among_its_words(
    cached: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(f'[data]\ncache = "{cached.data.cache}"\n[recipe]\nfps = 8\nmax_chunks = 2\n')
    key = rows_of(cached)[5].key
    for words, where in (
        (["my.toml", key, "recipe.buckets=[[64, 64]]", "--out", "there"], "there"),
        (["my.toml", "recipe.buckets=[[64, 64]]", key], "preview"),
    ):
        monkeypatch.setattr(sys, "argv", ["latentmill", "preview", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        assert [path.stem for path in (tmp_path / where / "clips").iterdir()] == [key]
