"""Calls that arrive together go one after the other, by their number."""

from threading import Thread

from jobs.turns import Turns


def test_turns_are_taken_in_their_order_whoever_comes_first() -> None:
    turns, taken = Turns(), list[str]()

    def call(turn: int) -> None:
        turns.begin(turn)
        taken.append(f"{turn} begins")
        taken.append(f"{turn} ends")
        turns.end()

    threads = [Thread(target=call, args=(turn,)) for turn in (3, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert taken == [f"{turn} {what}" for turn in range(4) for what in ("begins", "ends")]
