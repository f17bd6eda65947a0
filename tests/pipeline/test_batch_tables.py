"""The published tables of lengths and batches are as published."""

import ast
from pathlib import Path

import pytest
import torch

from pipeline.batch_tables import TABLES
from pipeline.bucket import resolve_buckets
from pipeline.bucket_sets import BUCKET_SETS
from pipeline.lengths import Bucket, Entry, check_table, lengths_of

RECORDING = Path(__file__).resolve().parents[2] / "../shared/parity/open_sora_v1_2.pt"
STAGES = ("stage1", "stage2", "stage3")


def as_entry(probability: float | tuple[float, float], batch: int) -> Entry:
    share, keep = probability if isinstance(probability, tuple) else (probability, 1.0)
    return Entry(share, keep, batch)


@pytest.mark.skipif(not RECORDING.exists(), reason=f"{RECORDING} is missing")
@pytest.mark.parametrize("stage", STAGES)
def test_tables_are_those_of_the_original(stage: str) -> None:
    recorded = torch.load(RECORDING, weights_only=True, mmap=True)["data"]["configs"][stage]["bucket_config"]
    published = ast.literal_eval(recorded)
    assert set(published) - set(BUCKET_SETS) == {"2048"}
    assert TABLES[f"open-sora-v1.2-{stage}"] == {
        size: {frames: as_entry(*entry) for frames, entry in entries.items() if entry[0]}
        for size, entries in published.items()
        if size in BUCKET_SETS
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_size_of_a_set_can_be_trained_on(name: str) -> None:
    check_table(TABLES[name])
    for bucket_set, entries in TABLES[name].items():
        for height, width in resolve_buckets([bucket_set], (8, 8)):
            kinds = [Bucket(height, width, 1, 1), *(Bucket(height, width, 17 * n, n) for n in (1, 6, 24))]
            for kind in kinds:
                found = lengths_of(kind, TABLES[name], (8, 8), lambda *sample: 1)
                assert sum(way.probability for way in found.ways) == pytest.approx(1)
                assert {way.num_chunks * kind.chunk_frames for way in found.ways} <= {*entries, kind.num_frames}


def test_the_longest_clips_of_stage_one_are_mostly_shown_short() -> None:
    """A tenth of those that are long enough at 408 frames, a tenth of the others at 204, and so on."""
    found = lengths_of(Bucket(240, 424, 408, 24), TABLES["open-sora-v1.2-stage1"], (8, 8), lambda *sample: 1)
    shown = {way.num_chunks * 17: (way.probability, way.batch) for way in found.ways}
    assert found.share == pytest.approx(0.4)
    assert shown[408] == (pytest.approx(0.1), 2) and shown[204] == (pytest.approx(0.9 * 0.1), 5)
    assert shown[102] == (pytest.approx(0.81 * 0.33), 10) and shown[51] == (pytest.approx(0.81 * 0.67), 20)
