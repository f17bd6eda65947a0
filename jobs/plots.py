"""PNGs of curves over the steps of a training run."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import reduce
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

MOST_POINTS = 2000  # of a curve that are drawn; more become the means of as many neighbours
FEW = 50  # points, up to which each is marked
COLUMNS = 2  # of panels
COLOURS = ("#1f4e8c", "#d1741d", "#3f8f4f", "#a03c5a", "#7a5ca8", "#6b6b6b", "#b09a2c", "#2c9a9a")


class Curve(NamedTuple):
    """Values by step; they may be NaN or infinite, which leaves a gap."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    is_noisy: bool = False  # drawn faint, under its moving average


class Panel(NamedTuple):
    """Curves that share their axes."""

    title: str
    curves: Sequence[Curve]


def plot(panels: Sequence[Panel]) -> bytes:
    """Panels side by side -> a PNG; the same panels give the same bytes.

    Raises ValueError where there is nothing to plot or a curve has not one value for every step.
    """
    for panel in panels:
        for curve in panel.curves:
            if not len(curve.steps) or len(curve.steps) != len(curve.values):
                raise ValueError(
                    f"{panel.title}: {curve.label} has {len(curve.steps)} steps and {len(curve.values)} values; wanted "
                    f"one value for every step, and at least one"
                )
    if not panels:
        raise ValueError("no panels; a plot needs at least one")
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(8 if columns == 1 else 6 * columns, 4.5 if rows == 1 else 3.2 * rows), dpi=110)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, columns, number, axisbelow=True), panel)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # matplotlib's version would change the bytes
    return content.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for curve, colour in zip(panel.curves, COLOURS * len(panel.curves)):
        steps, values = thin(np.asarray(curve.steps, float)), thin(_known(curve.values))
        window = max(1, len(steps) // 20) | 1 if curve.is_noisy else 1
        if curve.is_noisy:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.4)
        marker = "." if len(steps) <= FEW else ""
        axes.plot(steps, smooth(values, window), color=colour, linewidth=1.6, marker=marker, label=curve.label)
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def _known(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, float)
    return np.where(np.isfinite(found), found, np.nan)


def thin(values: NDArray[np.float64], most: int = MOST_POINTS) -> NDArray[np.float64]:
    """At most `most` values: means of so many neighbours; NaN counts for nothing."""
    each = -(-len(values) // most)
    padded = np.pad(values, (0, -len(values) % each), constant_values=np.nan)
    known = np.isfinite(padded)
    total, count = (
        reduce(one, "(points each) -> points", "sum", each=each)
        for one in (np.where(known, padded, 0), known.astype(float))
    )
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the `window` values around each, fewer at the ends; NaN counts for nothing."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0), kernel)[window // 2 :][: len(values)]
    count = np.convolve(known.astype(float), kernel)[window // 2 :][: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)
