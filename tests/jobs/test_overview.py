"""Numbers of a cache as they are told: nothing is counted twice or left out."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.overview import (
    MOST_BARS,
    MOST_REASONS,
    count_buckets,
    count_lengths,
    count_reasons,
    describe_clips,
    describe_encoding,
    describe_recipe,
)
from jobs.page import Reason
from models.vae import describe_vae
from models.vae.description import Asked
from pipeline.recipe import Recipe
from pipeline.records import Quarantined, Sample
from pipeline.tables import table_of

CLIP = Sample("a", "64x64/0000-000000", "v", 0.0, 24.0, 64, 64, 2, 34, 34, 0, 1000, 0, 0, 10)
IMAGE = replace(CLIP, num_chunks=1, num_frames=1, valid_frames=1, fps=120.0)
BAD = Quarantined("/b.mp4", "decode", "damaged: frame 12 of 30 is partly zeros", 2)


def test_clips_are_summed_up_in_words() -> None:
    few = [replace(CLIP, psnr=30.0), replace(CLIP, shard="64x64/0000-000001", psnr=26.0), replace(CLIP, psnr=28.0)]
    assert describe_clips(table_of(Sample, [*few, IMAGE])) == [
        "4 clips of 7 chunks in 2 shards: 4 s of video, 0.0 MB of latents.",
        "3 clips were compared with their frames when they were encoded: 28.0 dB in the median, 26.0 dB at the least.",
    ]
    assert describe_clips(table_of(Sample, [])) == ["0 clips of 0 chunks in 0 shards: 0 s of video, 0.0 MB of latents."]


def test_rare_buckets_share_a_bar() -> None:
    many = [replace(CLIP, width=64 + 8 * number) for number in range(MOST_BARS + 3) for _ in range(20 - number)]
    bars = count_buckets(table_of(Sample, many))
    assert len(bars) == MOST_BARS and sum(bars.values()) == len(many)
    assert list(bars.items())[:2] == [("64x64", 20), ("64x72", 19)]
    assert bars["4 others"] == 9 + 8 + 7 + 6
    assert count_buckets(table_of(Sample, [CLIP, CLIP])) == {"64x64": 2}


def test_images_have_no_duration_and_padding_does_not_count() -> None:
    padded = replace(CLIP, valid_frames=24)
    assert count_lengths(table_of(Sample, [CLIP, padded, IMAGE])) == {"image": 1, "1 s": 1, "1.4 s": 1}


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    others = [replace(BAD, path="/c.mp4", reason="damaged: frame 3 of 9 is partly zeros"), replace(BAD, stage="scan")]
    assert count_reasons([BAD, *others]) == [
        Reason("decode", BAD.reason, 2, "/b.mp4"),
        Reason("scan", BAD.reason, 1, "/b.mp4"),
    ]


def test_rare_reasons_share_a_row() -> None:
    many = [replace(BAD, reason="x" * number) for number in range(1, MOST_REASONS + 3)]
    *_, last = found = count_reasons([BAD, BAD, *many])
    assert found[0] == Reason("decode", BAD.reason, 2, "/b.mp4") and len(found) == MOST_REASONS + 1
    assert last == Reason("", "3 other reasons", 3, "/b.mp4")


def event(second: int, name: str, verb: str = "encode", **facts: Any) -> dict[str, Any]:
    return {"time": f"2025-01-01T10:00:{second:02d}.000+00:00", "verb": verb, "event": name, **facts}


SHARD = {"clips": 3, "chunks": 40, "latent_bytes": 10**6, "total_s": 4.0, "encode_s": 3.0, "decode_cpu_s": 2.5}


def test_the_last_encoding_that_encoded_something_is_told() -> None:
    events = [
        *(event(0, "start"), event(1, "shard", **SHARD), event(2, "done")),
        *(event(10, "start"), event(13, "shard", **SHARD), event(14, "done", verb="text")),
        *(event(17, "shard", **SHARD), event(18, "done")),
        *(event(20, "start"), event(21, "done")),
    ]
    assert describe_encoding(events) == [
        ("begun", "2025-01-01 10:00:10 UTC"),
        ("encoded", "2 shards, 6 clips, 80 chunks"),
        ("took", "8.0 s"),
        ("throughput", "10.0 chunks/s, 0.25 MB/s"),
        ("VAE busy", "75% of the encoders' time"),
        ("decoding", "5.0 CPU seconds"),
    ]
    assert dict(describe_encoding(events[:5]))["took"] == "3.0 s, and then it was interrupted"
    in_the_log = [event(0, "began"), *events[:3], event(3, "ended"), event(4, "began")]
    assert dict(describe_encoding(in_the_log))["took"] == "2.0 s"


@pytest.mark.parametrize("events", [[], [event(0, "start"), event(1, "done")], [event(0, "shard", **SHARD)]])
def test_without_an_encoding_nothing_is_told(events: list[dict[str, Any]]) -> None:
    assert describe_encoding(events) == []


def test_every_field_of_the_recipe_is_told() -> None:
    recipe = Recipe(describe_vae("dct", None, Asked()).spec, 24.0, ((64, 64),), 2)
    told = dict(describe_recipe(recipe))
    assert told["fingerprint"] == recipe.fingerprint()
    assert told["latent.vae"] == "dct" and told["buckets"] == "[[64, 64]]" and told["filter"] == "none"
    assert len(told) == 1 + len(recipe.to_dict()) - 1 + len(recipe.latent.to_dict())
