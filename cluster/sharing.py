"""Who does what: items given to workers that come, die and leave. Knows neither Ray nor a clock of its own."""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

IN_FLIGHT = 2  # items a worker has at once, so that it can begin with one while it ends the one before
OVERDUE = 3.0  # times the median of what the last items took
OVERDUE_S = 60.0  # and no sooner
LAST = 101  # items that the median is of
NODES = 10  # that may be lost with one item; a machine is taken away more easily than a process dies


class WorkerLost(RuntimeError):
    """An item's worker died each time it was tried."""


@dataclass(frozen=True)
class Call(Generic[Item]):
    """A worker is to do an item."""

    worker: Any
    item: Item
    upcoming: Item | None  # what it will be given next
    turn: int  # its how-manieth item this is, from 0


@dataclass(eq=False)
class _Lane(Generic[Item]):
    """What a worker has to do."""

    worker: Any
    since_s: float  # when it turned to the first of its items
    items: list[Item] = field(default_factory=list)
    promised: Item | None = None
    turns: int = 0
    is_leaving: bool = False  # its place will be gone
    is_late: bool = False  # it keeps its place


class Sharing(Generic[Item]):
    """Items that are left, and the workers at them; every event returns the calls that follow from it.

    A worker is given no second item while there are not as many as workers: nobody hoards. When one dies its items are
    done by others. The first of them is then done alone, and raises WorkerLost where it has taken `max_attempts`
    workers with it. When nothing else is left, what a worker takes far too long for is given to a second one, and the
    first result counts. Events take the time in seconds, by any clock that never goes back, and cost about the same
    however many items and workers there are.
    """

    def __init__(self, items: Iterable[Item], max_attempts: int = 3) -> None:
        self.max_attempts = max_attempts
        self.waiting = deque(items)
        self.suspects: deque[Item] = deque()  # a worker died of each
        self.left = set(self.waiting)
        self.lanes: OrderedDict[Any, _Lane[Item]] = OrderedDict()  # workers with items, in the order of since_s
        self.num_leaving = 0
        self.num_expected = 1  # workers, those on their way too
        self.attempts: Counter[Item] = Counter()  # workers that died of it
        self.nodes: Counter[Item] = Counter()  # that were lost with it
        self.copies: Counter[Item] = Counter()  # of items that workers are at
        self.took_s: deque[float] = deque(maxlen=LAST)

    @property
    def num_working(self) -> int:
        """Workers whose places stay theirs."""
        return len(self.lanes) - self.num_leaving

    def wanted(self, most: int, now_s: float) -> int:
        """How many workers should be working or on their way, `most` at the most; so many are then expected."""
        self._relieve(now_s)
        to_give = len(self.waiting) + len(self.suspects) + len(self.overdue(now_s))
        wanted = min(most, self.num_working + to_give)
        self.num_expected = max(1, wanted)
        return wanted

    def overdue(self, now_s: float) -> list[Item]:
        """What one worker alone is at, and takes far too long for, the longest first."""
        late = (item for lane in self._late(now_s) for item in lane.items)
        return [item for item in late if item in self.left and self.copies[item] == 1]

    def came(self, worker: Any, now_s: float) -> list[Call[Item]]:
        """A worker is ready; where it is not in `lanes` afterwards, it is not needed."""
        self.lanes[worker] = _Lane(worker, now_s)
        return self._fill(worker, now_s)

    def did(self, worker: Any, item: Item, now_s: float) -> list[Call[Item]]:
        """A worker has done an item; where it is not in `lanes` afterwards, it is no longer needed."""
        lane = self.lanes[worker]
        if item == lane.items[0]:
            self.took_s.append(now_s - lane.since_s)
            lane.since_s = now_s
            self.lanes.move_to_end(worker)
        lane.items.remove(item)
        self.copies[item] -= 1
        self.left.discard(item)
        return self._fill(worker, now_s)

    def died(self, worker: Any, why: object, with_node: bool = False) -> None:
        """A worker is dead, by itself or with its node, and all that it had to do is for others."""
        first, again = self.lanes[worker].items[0], self._give_up(worker)
        if first in again:
            self._blame(first, why, with_node)
        self._redo(again)

    def leaves(self, worker: Any) -> None:
        """A worker will soon be gone: it ends what it has and is given no more."""
        lane = self.lanes[worker]
        self.num_leaving += not lane.is_leaving
        lane.is_leaving = True
        self._take_back(lane)

    def ends(self, worker: Any) -> None:
        """A worker is ended for want of room; all that it had to do is for others, and nothing is to blame."""
        self._redo(self._give_up(worker))

    def _give_up(self, worker: Any) -> list[Item]:
        """What a worker alone had to do."""
        lane = self._remove(worker)
        self._take_back(lane)
        self.copies.subtract(lane.items)
        return [item for item in lane.items if item in self.left and not self.copies[item]]

    def _redo(self, items: list[Item]) -> None:
        for item in reversed(items):
            (self.suspects if item in self.attempts else self.waiting).appendleft(item)

    def _blame(self, item: Item, why: object, with_node: bool) -> None:
        tally, most, what = (self.nodes, NODES, "nodes") if with_node else (self.attempts, self.max_attempts, "workers")
        tally[item] += 1
        if tally[item] >= most:
            raise WorkerLost(f"{most} {what} died of {item}; the last: {why}")

    def _remove(self, worker: Any) -> _Lane[Item]:
        lane = self.lanes.pop(worker)
        self.num_leaving -= lane.is_leaving
        return lane

    def _take_back(self, lane: _Lane[Item]) -> None:
        if lane.promised is not None:
            self.waiting.appendleft(lane.promised)
            lane.promised = None

    def _late(self, now_s: float) -> Iterator[_Lane[Item]]:
        """Workers that take far too long for their first item, the slowest first."""
        limit_s = max(OVERDUE_S, OVERDUE * median(self.took_s)) if self.took_s else float("inf")
        for lane in self.lanes.values():
            if now_s - lane.since_s <= limit_s:
                return
            yield lane

    def _relieve(self, now_s: float) -> None:
        """When nothing else waits, late workers are given no more: what they were promised is for others."""
        if not self.waiting:
            for lane in self._late(now_s):
                lane.is_late = True
                self._take_back(lane)

    def _fill(self, worker: Any, now_s: float) -> list[Call[Item]]:
        """Give a worker what it can take."""
        lane, calls = self.lanes[worker], []
        while len(lane.items) < IN_FLIGHT and (item := self._next(lane, now_s)) is not None:
            lane.promised = self._spare() if item not in self.attempts else None
            calls.append(Call(worker, item, lane.promised, lane.turns))
            lane.items.append(item)
            lane.turns += 1
            self.copies[item] += 1
        if not lane.items:
            self._remove(worker)
        return calls

    def _next(self, lane: _Lane[Item], now_s: float) -> Item | None:
        """What a worker is to do next."""
        if lane.is_leaving or lane.is_late or (lane.items and lane.items[0] in self.attempts):
            return None
        if lane.promised is not None:
            return lane.promised
        if lane.items:
            return self._spare()
        if self.suspects:
            return self.suspects.popleft()
        self._relieve(now_s)
        return self.waiting.popleft() if self.waiting else next(iter(self.overdue(now_s)), None)

    def _spare(self) -> Item | None:
        """An item that is not needed to give each worker one."""
        return self.waiting.popleft() if len(self.waiting) >= self.num_expected else None
