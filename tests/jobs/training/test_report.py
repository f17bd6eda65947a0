"""The report of a run: all that it left is on one page, as text and pictures, however far it came."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from safetensors.torch import save_file

from jobs.config import RunConfig
from jobs.events import Events
from jobs.mp4 import write_mp4
from jobs.training.metrics import Metrics
from jobs.training.report import changed_knobs, curve_panels, write_report

HOSTILE = "<script>window.hacked = 1</script> & 'so' on"


def run_at(out: Path, **updates: object) -> RunConfig:
    return RunConfig(train=RunConfig().train.model_copy(update={"out": out, "steps": 100, **updates}))


def leave(out: Path, steps: int, held_out_every: int = 0, **more: float) -> None:
    """What a run of so many steps leaves, with one restart."""
    events = Events(out / "events.jsonl", "train")
    Events(out / "events.jsonl", "encode").write("shard", clips=3)
    events.write("start", steps=100, committed=[], data=["on 12 clips of " + HOSTILE])
    events.write("begin", step=0, ranks=2, lost=0)
    events.write("failed", why="rank 1 died of " + HOSTILE, number=1, committed=5)
    events.write("begin", step=5, ranks=2, lost=3)
    for key in ("a-0", "b-0", "a-0"):
        events.write("damaged", step=6, key=key, message="its checksum is another")
    metrics = Metrics(out, start=0)
    for step in range(1, steps + 1):
        told: dict[str, Any] = {
            **{"loss": 2.0 / step, "lr": 1e-4, "grad_norm": 1.0, "damaged": 0, "step_s": 0.5, "data_wait_s": 0.05},
            **{"data_wait_share": 0.1, "samples_per_s": 32.0, "tokens_per_s": 51200.0, "host_bytes": 3e9, **more},
        }
        if held_out_every and step % held_out_every == 0:
            for place, name in enumerate(("loss", "ema_loss"), 1):
                told |= {f"held_out/{name}": float(place), **{f"held_out/{name}_t{q}": place + q / 10 for q in (1, 2)}}
        metrics.write(step, **told)


def sampled(out: Path) -> None:
    """Two videos of each of two steps."""
    for step in (10, 20):
        for number in range(2):
            frames = np.full((9, 64, 64, 3), 40 * number + step, np.uint8)
            write_mp4(out / "samples" / f"step-{step:08d}" / f"{number:03d}.mp4", frames, 8)
    asked = json.dumps({"prompts": ["a red circle", HOSTILE]})
    save_file({}, out / "samples" / "asked.safetensors", metadata={"asked": asked})


def shown(page: str) -> str:
    """The text of a page, as one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("<body>")[2]).split())


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    Events(tmp_path / "events.jsonl", "train").write("start")
    write_report(run_at(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_the_page_tells_what_the_run_left(tmp_path: Path) -> None:
    leave(tmp_path, 40, held_out_every=10, mfu=0.41, gpu_bytes=7e10)
    write_report(run_at(tmp_path, batch=8))
    page = (tmp_path / "report.html").read_text()
    for told in (
        *("40 of 100 steps are done.", "On 12 clips of", "0.5 s", "32 samples/s, 51,200 tokens/s", "41.0%", "10.00%"),
        *(
            "3.00 GB at the most",
            "70.00 GB at the most",
            "2, met 3 times: a-0, b-0.",
            "train.batch",
            "ranks: 2, lost: 3",
        ),
        *("weights after step 40 mean t1 t2", "last 1.0000 1.1000 1.2000", "averaged 2.0000 2.1000 2.2000"),
    ):
        assert told in shown(page), told
    assert "shard" not in shown(page) and page.count("<img") == 1
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (880, 495)


def test_a_run_that_has_just_begun_has_a_page_too(tmp_path: Path) -> None:
    leave(tmp_path, 1)
    write_report(run_at(tmp_path))
    text = shown((tmp_path / "report.html").read_text())
    assert "1 of 100 steps" in text and "The loss was measured on none." in text
    assert "not known of this device" in text


def test_curves_are_drawn_of_what_was_told_at_the_steps_that_tell_it(tmp_path: Path) -> None:
    leave(tmp_path, 20, held_out_every=10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    panels = {panel.title: panel for panel in curve_panels(lines)}
    loss = {curve.label: curve for curve in panels["loss"].curves}
    assert loss["training"].steps == list(range(1, 21)) and loss["training"].values[:2] == [2.0, 1.0]
    assert (loss["held out"].steps, loss["held out, averaged weights"].values) == ([10, 20], [2.0, 2.0])
    (by_time,) = [panel for title, panel in panels.items() if title.startswith("held out by timestep")]
    assert [(curve.label, curve.values) for curve in by_time.curves] == [("t1", [2.1, 2.1]), ("t2", [2.2, 2.2])]
    assert "goodput" in panels and "model FLOPs utilization" not in panels


def test_only_knobs_that_were_changed_are_told(tmp_path: Path) -> None:
    assert dict(changed_knobs(run_at(tmp_path, lr=0.5))) == {
        "train.out": str(tmp_path),
        "train.steps": "100",
        "train.lr": "0.5",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [pytest.param(360, marks=pytest.mark.slow), 1280])
def test_a_browser_shows_curves_and_samples_and_asks_for_nothing(browser: Browser, tmp_path: Path, width: int) -> None:
    leave(tmp_path, 20, held_out_every=5)
    sampled(tmp_path)
    write_report(run_at(tmp_path))
    asked: list[str] = []
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto((tmp_path / "report.html").as_uri())
    tab.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert complaints == [] and tab.evaluate("window.hacked") is None
    assert tab.locator("img").evaluate("image => image.naturalWidth") > 1000
    assert tab.locator("article").all_inner_texts() == ["a red circle", HOSTILE]
    assert tab.get_by_text("2 of 2 of step-00000020").count() == 1
    assert tab.locator("video").first.get_attribute("aria-label") == "sample 000 of step-00000020"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("Curves", "Held-out videos", "Speed", "Samples", "Starts and stops", "Damaged samples"):
        assert tab.get_by_role("region", name=name, exact=True).count() == 1
    tab.close()
