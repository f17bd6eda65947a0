"""The page in a real browser: it shows what it is given, as text and as videos that play, and loads nothing."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from jobs.mp4 import write_mp4
from jobs.page import CAPTION_CHARS, Card, Html, Page, Reason, count_durations, element, render
from tests.test_end_to_end import moving_bar

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "\"><img src=http://127.0.0.1:9/x onerror='window.hacked = 1'>",
    "</p></article></main><h1>mine</h1><!--",
    "&lt;b&gt; &amp; 'quotes' \"and\" `more` ${hacked}",
    "a cat 🐈\u200d⬛ on a 🏄\nsecond line\u2028third",
    "قطة تركب الأمواج",
]


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of a source beside a copy of it, 64x128."""
    path = tmp_path_factory.mktemp("mp4") / "clip.mp4"
    bars = moving_bar(16, 1)
    write_mp4(path, np.concatenate([bars, bars], axis=2), 8)
    return path.read_bytes()


@pytest.fixture(scope="module")
def page(mp4: bytes) -> Page:
    """One card for each caption, and hostile text wherever else text goes."""
    bad = HOSTILE[0]
    return Page(
        cache=f"/data/{bad}",
        summary=[f"6 clips of {bad}."],
        cards=[Card(text, [("PSNR", "26.5 dB"), ("video", bad)], mp4, "clips/a.mp4") for text in HOSTILE],
        buckets={"256x256": 6, "144x256": 2, bad: 1},
        durations={"0.7 s": 5, "2.8 s": 3},
        quarantine=[Reason("decode", f"damaged {bad}", 1234, f"/videos/{bad}.mp4")],
        encoding=[("throughput", "12.5 chunks/s")],
        recipe=[("filter", bad)],
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page opened from a file, and all that it asked for and complained of."""

    def __init__(self, browser: Browser, page: Page, folder: Path, **options: Any) -> None:
        path = folder / "index.html"
        path.write_bytes(render(page).encode())
        self.url, self.requests, self.complaints = path.as_uri(), [], []
        self.tab: Tab = browser.new_page(**options)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(self.url)

    def until_all(self, condition: str) -> None:
        """Wait until it holds of every video. The page's policy forbids the browser's own way to wait for such."""
        for _ in range(500):
            if self.of_videos(f"every(video => {condition})"):
                return
            self.tab.wait_for_timeout(20)
        raise TimeoutError(f"{condition}: not after ten seconds")

    def of_videos(self, call: str) -> Any:
        return self.tab.evaluate(f"[...document.querySelectorAll('video')].{call}")


@pytest.fixture(scope="module")
def visit(browser: Browser, page: Page, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return Visit(browser, page, tmp_path_factory.mktemp("page"))


def test_videos_are_there_in_their_size_and_play(visit: Visit) -> None:
    visit.until_all("video.readyState >= 2")
    assert visit.of_videos("map(video => [video.videoWidth, video.videoHeight])") == [[128, 64]] * 6
    assert visit.of_videos("every(video => video.paused && video.duration === 2)")
    visit.tab.get_by_role("button", name="Play all").click()
    visit.until_all("video.currentTime > 0.1")
    visit.tab.get_by_role("button", name="Pause all").click()
    assert visit.of_videos("every(video => video.paused)")


def test_captions_are_text_whatever_is_in_them(visit: Visit) -> None:
    assert visit.tab.locator("article p").all_text_contents() == HOSTILE
    assert visit.tab.evaluate("window.hacked") is None
    assert visit.tab.locator("h1").all_text_contents() == ["What is in the cache"]
    assert visit.tab.locator("img").count() == 0
    assert visit.tab.title() == f"Preview of /data/{HOSTILE[0]}"


def test_everything_else_is_text_too(visit: Visit) -> None:
    shown = visit.tab.inner_text("body")
    for text in (f"6 clips of {HOSTILE[0]}.", f"damaged {HOSTILE[0]}", f"/videos/{HOSTILE[0]}.mp4", "1,234", "26.5 dB"):
        assert text in shown
    assert visit.tab.locator("dd", has_text=HOSTILE[0]).count() == 7  # a video in each card, and a filter


def test_charts_have_a_bar_and_words_for_every_count(visit: Visit) -> None:
    buckets, durations = visit.tab.locator("svg").all()
    widths = [float(bar.get_attribute("width") or 0) for bar in buckets.locator("rect").all()]
    assert widths == pytest.approx([250, 250 / 3, 250 / 6], abs=0.1)
    assert buckets.get_attribute("aria-label") == f"Clips by bucket: 256x256: 6; 144x256: 2; {HOSTILE[0]}: 1"
    assert durations.locator("text").all_text_contents() == ["0.7 s", "5", "2.8 s", "3"]


def test_nothing_leaves_the_page_and_nothing_is_complained_of(visit: Visit) -> None:
    visit.tab.wait_for_load_state("networkidle")
    assert visit.requests == [visit.url]
    assert visit.complaints == []


def test_a_script_that_got_in_would_not_run_and_nothing_could_be_loaded(
    browser: Browser, page: Page, tmp_path: Path
) -> None:
    visit = Visit(browser, page, tmp_path)
    add = (
        "parts => { const one = Object.assign(document.createElement(parts[0]), parts[1]); document.body.append(one) }"
    )
    visit.tab.evaluate(add, ["script", {"textContent": "window.hacked = 1"}])
    visit.tab.evaluate(add, ["img", {"src": "http://127.0.0.1:9/x.png"}])
    assert visit.tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'answered', () => 'refused')") == "refused"
    visit.tab.wait_for_timeout(100)
    assert visit.tab.evaluate("window.hacked") is None
    forbidden = [text for text in visit.complaints if "Content Security Policy" in text]
    assert forbidden == visit.complaints and len(forbidden) >= 3


def test_without_javascript_only_the_button_is_missing(browser: Browser, page: Page, tmp_path: Path) -> None:
    visit = Visit(browser, page, tmp_path, java_script_enabled=False)
    assert not visit.tab.locator("button").is_visible()
    videos = visit.tab.locator("video")
    assert videos.count() == 6 and videos.first.is_visible()
    assert videos.first.get_attribute("controls") is not None


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_every_screen_and_follows_its_colours(browser: Browser, page: Page, tmp_path: Path, width: int) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        visit = Visit(browser, page, tmp_path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert visit.tab.evaluate("document.documentElement.scrollWidth") <= width
        papers.add(visit.tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == {"rgb(250, 250, 248)", "rgb(20, 20, 22)"}


def test_what_can_be_focused_or_is_a_region_has_a_name(visit: Visit) -> None:
    for name in ("Clips", "All clips", "Quarantine", "Last encoding", "Recipe"):
        assert visit.tab.get_by_role("region", name=name, exact=True).count() == 1
    assert visit.tab.get_by_role("img", name="Clips by duration: 0.7 s: 5; 2.8 s: 3", exact=True).count() == 1
    assert visit.tab.get_by_role("columnheader", name="reason").count() == 1
    assert visit.tab.locator("video:not([aria-label])").count() == 0


def test_a_clip_without_source_or_too_large_for_the_page_says_so(browser: Browser, page: Page, tmp_path: Path) -> None:
    cards = [
        replace(page.cards[0], no_source="/videos/a.mp4: found by `scan`, now gone", caption=" "),
        replace(page.cards[0], mp4=None, link="clips/large.mp4", caption="x" * (CAPTION_CHARS + 1)),
    ]
    visit = Visit(browser, replace(page, cards=cards, quarantine=[], encoding=[]), tmp_path)
    first, second = visit.tab.locator("article").all()
    assert "now gone" in first.inner_text() and "no caption" in first.inner_text()
    boxes = [first.locator(part).bounding_box() or {} for part in ("video", ".gone")]
    assert boxes[0]["x"] >= boxes[1]["x"] + boxes[1]["width"] - 1  # the video under its own heading
    assert second.locator("video").count() == 0
    assert second.get_by_role("link", name="clips/large.mp4").get_attribute("href") == "clips/large.mp4"
    assert f"{'x' * CAPTION_CHARS} ..." in second.inner_text()
    assert "Empty." in visit.tab.inner_text("body") and "Nothing is on record." in visit.tab.inner_text("body")


def test_a_page_without_clips_has_nothing_to_play(browser: Browser, page: Page, tmp_path: Path) -> None:
    visit = Visit(browser, replace(page, cards=[], buckets={}, durations={}), tmp_path)
    assert visit.tab.locator("button").count() == 0 and visit.complaints == []
    assert visit.tab.locator("svg").first.get_attribute("aria-label") == "Clips by bucket: none"


def test_text_within_markup_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "<&>", title='"<')
    assert inner == '<b title="&quot;&lt;">&lt;&amp;&gt;</b>'
    assert element("p", inner, "<br>", Html("<br>")) == f"<p>{inner}&lt;br&gt;<br></p>"
    assert element("meta", http_equiv="a", class_="b") == '<meta http-equiv="a" class="b">'


@given(st.lists(st.floats(0.05, 5000), max_size=50), st.integers(2, 12))
def test_every_clip_is_in_one_bar_of_a_few(seconds: list[float], most: int) -> None:
    bars = count_durations(seconds, most)
    assert sum(bars.values()) == len(seconds)
    assert len(bars) <= most + 1


def test_few_durations_have_a_bar_each_and_many_a_bar_for_a_range() -> None:
    assert count_durations([2.8333, 0.7083, 0.7083], 3) == {"0.7 s": 2, "2.8 s": 1}
    assert count_durations([0.5, 1.5, 3.5, 3.9], 2) == {"0 to 2 s": 2, "2 to 4 s": 2}
    assert count_durations([0.5, 3.5, 4.0], 2) == {"0 to 2 s": 1, "2 to 4 s": 1, "4 to 6 s": 1}
