"""Which videos are held out depends on their ids alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.split import Split, hash_ids

ids = st.lists(st.text("0123456789abcdef", min_size=16, max_size=16), max_size=40, unique=True)


def padded(names: list[str]) -> np.ndarray:
    return np.array(names, "S48")


@given(ids, ids, st.floats(0, 1), st.floats(0, 1))
def test_a_video_stays_on_its_side_while_others_come_and_shares_grow(
    names: list[str], more: list[str], share: float, other: float
) -> None:
    alone, among = (Split(share, True).takes(padded(few)) for few in (names, more + names))
    assert among[len(more) :].tolist() == alone.tolist()
    assert (Split(share).takes(padded(names)) == ~alone).all()
    smaller, larger = (Split(one, True).takes(padded(names)) for one in sorted((share, other)))
    assert not (smaller & ~larger).any()


def test_no_share_holds_out_none_and_a_whole_one_all() -> None:
    some = padded([f"{number:016x}" for number in range(1000)])
    assert Split(0.0).takes(some).all() and not Split(1.0).takes(some).any()
    assert len(Split(0.5).takes(padded([]))) == 0


def test_ids_that_follow_each_other_are_spread_evenly() -> None:
    for style in ("{:016x}", "v{}", "{:x}000000000000"):
        hashed = hash_ids(padded([style.format(number) for number in range(100_000)]))
        counts, _ = np.histogram(hashed, 20, (0, 1))
        assert (abs(counts - 5000) < 5 * 5000**0.5).all()


def test_the_hash_is_the_same_in_every_version() -> None:
    """Another one would train on what an earlier run of the same cache held out."""
    assert hash_ids(padded(["0123456789abcdef", "v7"])).tolist() == [0.3017727692993223, 0.009642286261423938]
