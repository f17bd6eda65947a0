"""The demo on a folder of one's own: every verb, every picture, and nothing silently skipped."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.demo import demo
from jobs.events import read_events
from jobs.mp4 import write_mp4
from jobs.run import STEPS
from pipeline.quarantine import read_quarantine
from tests.conftest import TRAIN_OVERRIDES
from tests.test_end_to_end import moving_bar

QUICK = [*TRAIN_OVERRIDES, "train.workers=1", "train.steps=2", "sample.steps=2", "sample.num_prompts=2"]


@pytest.mark.slow
def test_a_folder_of_ones_own_goes_all_the_way(local_ray: None, tmp_path: Path, capsys) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_mp4(videos / "a_red_bar.mp4", moving_bar(40, 1), 24)
    write_mp4(videos / "wide.mp4", moving_bar(60, 2).repeat(2, axis=2), 24)
    (videos / "broken.mp4").write_text("not a video")
    config, quarantined = demo(out, videos, QUICK)
    assert quarantined == 1
    assert Path(read_quarantine(config.cache)[0].path).name == "broken.mp4"
    for name in ("contact_sheet.png", "loss.png", "samples.png"):
        assert Image.open(out / name).size[0] > 100
    assert "A training run" in (out / "report.html").read_text()
    assert {path.name for path in (out / "samples").iterdir()} == {"000.mp4", "001.mp4"}
    told = capsys.readouterr().out
    ended = [event for event in read_events(config.cache.events) if event["event"] == "ended"]
    assert [(event["verb"], event["exit_code"]) for event in ended] == [
        (verb, 3 if verb in ("scan", "encode") else 0) for verb in STEPS
    ]
    assert "PSNR of 3 cached clips" in told and "clips, chunks, shards" in told
