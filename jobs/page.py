"""HTML pages of one file that load nothing, and the one that `preview` shows; its Play button alone is JavaScript."""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

CAPTION_CHARS = 2000  # of a caption that are shown
LABEL, BAR, ROW = 90, 250, 24  # pixels of a bar chart: width of its labels and of its longest bar, height of a row

CSS = """
:root { color-scheme: light dark; --paper: #fafaf8; --card: #fff; --ink: #1c1c1e; --faint: #62626a; --line: #dededa;
  --bar: #1f4e8c; }
@media (prefers-color-scheme: dark) { :root { --paper: #141416; --card: #1d1d20; --ink: #ececee; --faint: #a0a0a8;
  --line: #36363b; --bar: #7ba7e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 80rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; }
a { color: inherit; }
code, .number { font-variant-numeric: tabular-nums; }
code { font: .85em ui-monospace, monospace; }
.faint, dt, figcaption, caption { color: var(--faint); font-size: .85rem; }
.bar { display: flex; align-items: baseline; gap: 1rem; }
button { font: inherit; font-size: .9rem; padding: .15rem .8rem; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; cursor: pointer; }
.clips { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden;
  display: flex; flex-direction: column; }
figure { margin: 0; display: grid; grid-template-columns: 1fr 1fr; }
figcaption { grid-column: 1 / -1; display: grid; grid-template-columns: 1fr 1fr; padding: .35rem 0; }
figcaption span, .gone { padding: 0 1rem; }
.gone { align-self: center; color: var(--faint); font-size: .85rem; }
video, img { display: block; width: 100%; }
.both { grid-column: 1 / -1; position: relative; }
.both::after { content: ""; position: absolute; inset: 0 auto 0 calc(50% - 1px); width: 2px; background: var(--line);
  pointer-events: none; }
@media (hover: hover) { video:not(:hover, :focus)::-webkit-media-controls { opacity: 0; } }
.told { padding: .75rem 1rem 1rem; }
.told > p { margin: 0 0 .5rem; max-height: 10em; overflow: auto; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: 0; }
dd { margin: 0; font-size: .9rem; }
.charts { display: grid; gap: 1.25rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
svg { display: block; width: 100%; max-width: 30rem; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg rect { fill: var(--bar); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: start; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  font-size: .9rem; }
th { color: var(--faint); font-weight: normal; }
:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
"""

SCRIPT = """
const button = document.querySelector("button"), videos = [...document.querySelectorAll("video")];
button.hidden = false;
button.onclick = () => {
  const start = videos.every(video => video.paused);
  videos.forEach(video => start ? video.play().catch(() => {}) : video.pause()); // the catch: paused before it began
  button.textContent = start ? "Pause all" : "Play all";
};
"""

Rows = Sequence[tuple[str, str]]  # (name, value)


@dataclass(frozen=True)
class Card:
    """One clip: an mp4 of the source and, to the right of it, what the cache holds; or of the latter alone."""

    caption: str
    facts: Rows
    mp4: bytes | None  # None where it would make the page too large
    link: str  # the mp4 beside the page
    no_source: str = ""  # why the mp4 shows no source


@dataclass(frozen=True)
class Reason:
    """Inputs that are in the quarantine for the same reason."""

    stage: str
    reason: str
    count: int
    example: str  # the path of one of them


@dataclass(frozen=True)
class Page:
    """All that is on the page."""

    cache: str
    summary: Sequence[str]  # sentences
    cards: Sequence[Card]
    buckets: Mapping[str, int]  # clips by bucket
    durations: Mapping[str, int]  # clips by how long they are
    quarantine: Sequence[Reason]
    encoding: Rows
    recipe: Rows


class Html(str):
    """Markup. Every other string is text, and is escaped when it becomes a part of markup."""


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """Children within a tag; underscores in the names of attributes become hyphens, one at the end is dropped."""
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items()
    )
    content = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{given}>" + ("" if name in ("meta", "link") else f"{content}</{name}>"))


def render(page: Page) -> str:
    """The page as a whole document."""
    sections = [_clips(page.cards), _charts(page), _quarantine(page.quarantine)]
    sections += [
        section("Last encoding", pairs(page.encoding) if page.encoding else element("p", "Nothing is on record.")),
        section("Recipe", pairs(page.recipe)),
    ]
    header = heading("What is in the cache", page.cache, page.summary)
    script = SCRIPT if any(card.mp4 for card in page.cards) else ""
    return document(f"Preview of {page.cache}", header, sections, script)


def document(title: str, header: Html, sections: Sequence[Html], script: str = "") -> str:
    """A whole document. Its policy lets it load nothing, and run no script but this one."""
    policy = f"default-src 'none'; img-src data:; media-src data:; style-src {_only(CSS)}; script-src {_only(script)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),  # else a browser asks the server for one
        element("title", title),
        element("style", Html(CSS)),
    )
    scripts = [element("script", Html(script))] if script else []
    body = element("body", header, element("main", *sections), *scripts)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def heading(title: str, place: str, sentences: Sequence[str]) -> Html:
    """What a page is of, and the most important in sentences."""
    told = (element("p", sentence) for sentence in sentences)
    return element("header", element("h1", title), element("p", element("code", place)), *told)


def data_uri(kind: str, content: bytes) -> str:
    """Bytes of a kind, such as image/png, as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _only(content: str) -> str:
    """The source expression of a policy that allows this inline style or script alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def section(title: str, *children: str, beside: str = "") -> Html:
    name = title.lower().replace(" ", "-")
    bar = element("div", element("h2", title, id=name), beside, class_="bar")
    return element("section", bar, *children, aria_labelledby=name)


def _clips(cards: Sequence[Card]) -> Html:
    button = element("button", "Play all", type="button", hidden="") if any(card.mp4 for card in cards) else ""
    return section("Clips", element("div", *map(_card, cards), class_="clips"), beside=button)


def _card(card: Card) -> Html:
    caption = card.caption[:CAPTION_CHARS] + " ..." * (len(card.caption) > CAPTION_CHARS)
    text = element("p", caption, dir="auto") if caption.strip() else element("p", "no caption", class_="faint")
    labels = element("figcaption", element("span", "source"), element("span", "from the cache"))
    gone = [element("div", card.no_source, class_="gone")] if card.no_source else []
    place = "one" if card.no_source else "both"
    figure = element("figure", labels, *gone, element("div", _video(card), class_=place))
    return element("article", figure, element("div", text, pairs(card.facts), class_="told"))


def _video(card: Card) -> Html:
    if card.mp4 is None:
        link = element("a", card.link, href=card.link)
        return element("p", "Too large for this page: ", link, class_="gone")
    return video(
        card.mp4, "the clip from the cache" if card.no_source else "source and, right of it, the clip from the cache"
    )


def video(mp4: bytes, label: str) -> Html:
    """A player of a video, which `label` tells of to those who cannot see it."""
    how = {"controls": "", "loop": "", "muted": "", "playsinline": "", "preload": "auto"}
    return element("video", **how, aria_label=label, src=data_uri("video/mp4", mp4))


def pairs(rows: Rows) -> Html:
    return element("dl", *(cell for name, value in rows for cell in (element("dt", name), element("dd", value))))


def _charts(page: Page) -> Html:
    charts = (_bars("Clips by bucket", page.buckets), _bars("Clips by duration", page.durations))
    return section("All clips", element("div", *charts, class_="charts"))


def _bars(title: str, counts: Mapping[str, int]) -> Html:
    """A chart with a bar for each count, and the same in words for those who cannot see it."""
    most = max(counts.values(), default=1)
    parts = []
    for number, (label, count) in enumerate(counts.items()):
        middle, width = (number + 0.5) * ROW, BAR * count / most
        line = {"y": f"{middle:g}", "dominant_baseline": "central"}
        parts += [
            element("text", label, x=str(LABEL), text_anchor="end", **line),
            element("rect", x=str(LABEL + 8), y=f"{middle - 8:g}", width=f"{max(1, width):.1f}", height="16", rx="2"),
            element("text", f"{count:,}", x=f"{LABEL + 14 + width:.1f}", **line),
        ]
    words = "; ".join(f"{label}: {count:,}" for label, count in counts.items())
    box = f"0 0 {LABEL + BAR + 70} {max(1, len(counts)) * ROW}"
    chart = element("svg", *parts, viewBox=box, role="img", aria_label=f"{title}: {words or 'none'}")
    return element("div", element("h3", title), chart)


def _quarantine(reasons: Sequence[Reason]) -> Html:
    if not reasons:
        return section("Quarantine", element("p", "Empty."))
    rows = [(f"{one.count:,}", one.stage, one.reason, one.example) for one in reasons]
    return section("Quarantine", table(("inputs", "stage", "reason", "such as"), rows))


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Rows of cells under the names of their columns."""
    head = element("tr", *(element("th", name, scope="col") for name in names))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *body))


def count_durations(seconds: Sequence[float], most: int = 12) -> dict[str, int]:
    """Clips by how many seconds they last: one bar for each duration or, where these are too many, for each range."""
    exact = Counter(round(one, 1) for one in seconds)
    if len(exact) <= most:
        return {f"{one:g} s": exact[one] for one in sorted(exact)}
    width = _round_up(max(seconds) / most)
    ranges = Counter(int(one / width) for one in seconds)
    return {f"{place * width:g} to {(place + 1) * width:g} s": ranges[place] for place in range(max(ranges) + 1)}


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
