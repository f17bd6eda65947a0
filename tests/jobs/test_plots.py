"""Plots: each value is where its step is, whatever the values are, and the same ones make the same file."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from jobs.plots import Curve, Panel, plot, smooth, thin

NAN = float("nan")


def panel(values: list[float], label: str = "loss") -> Panel:
    return Panel(label, [Curve(label, range(len(values)), values, is_noisy=True)])


def pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).copy()


@pytest.mark.parametrize("values", [[1.0], [1.0, NAN, float("inf"), 0.5], [NAN] * 3, list(range(100_000))])
def test_a_plot_is_drawn_whatever_the_values(values: list[float]) -> None:
    assert pixels(plot([panel(values)])).shape == (495, 880, 3)


def test_panels_stand_two_in_a_row() -> None:
    one, three = (pixels(plot([panel([1.0, 2.0])] * count)) for count in (1, 3))
    assert three.shape[1] == pytest.approx(1320, abs=2) and three.shape[0] == pytest.approx(704, abs=2)
    assert (one != 255).any(axis=-1).sum() > 1000


def test_the_same_values_give_the_same_bytes_and_others_do_not() -> None:
    assert plot([panel([1.0, 2.0, 3.0])]) == plot([panel([1.0, 2.0, 3.0])]) != plot([panel([1.0, 2.0, 2.5])])


def test_what_cannot_be_plotted_is_refused() -> None:
    with pytest.raises(ValueError, match="no panels"):
        plot([])
    with pytest.raises(ValueError, match="0 steps"):
        plot([panel([])])
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        plot([Panel("loss", [Curve("loss", [0, 1], [0.5])])])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 50))
def test_thinning_keeps_the_sum_of_what_it_joins(values: list[float], most: int) -> None:
    thinned, each = thin(np.array(values), most), -(-len(values) // most)
    assert len(thinned) <= most
    wanted = [np.mean(values[first : first + each]) for first in range(0, len(values), each)]
    assert thinned == pytest.approx(wanted, abs=1e-6)


def test_thinning_and_smoothing_skip_what_is_not_a_number() -> None:
    assert thin(np.array([1.0, NAN, NAN, NAN, 4.0]), 3) == pytest.approx([1.0, NAN, 4.0], nan_ok=True)
    flat = np.full(20, 3.0)
    flat[7] = NAN
    assert smooth(flat, 5) == pytest.approx(np.full(20, 3.0))
    assert smooth(np.array([1.0, 2.0, 6.0]), 3) == pytest.approx([1.5, 3.0, 4.0])
    assert np.isnan(smooth(np.full(4, NAN), 3)).all()
