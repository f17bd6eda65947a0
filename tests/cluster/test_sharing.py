"""Who does what, whatever happens in whichever order: all is done, nothing is lost, and nobody does another's work."""

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.sharing import IN_FLIGHT, NODES, OVERDUE, OVERDUE_S, Call, Sharing, WorkerLost

CHOICE = st.integers(0, 99)


class Cluster(RuleBasedStateMachine):
    """Workers that come, do, leave and die at any time; each is a number."""

    @initialize(num_items=st.integers(0, 25), most=st.integers(0, 6))
    def begin(self, num_items: int, most: int) -> None:
        self.sharing = Sharing(range(num_items), max_attempts=10**6)
        self.now_s, self.come = 0.0, 0
        self.held: dict[int, list[int]] = {}  # items by worker, in the order they were given
        self.promised: dict[int, int | None] = {}
        self.turns: dict[int, int] = defaultdict(int)
        self.done: set[int] = set()
        self.most = most
        self.wanted = self.sharing.wanted(most, self.now_s)

    def take(self, calls: list[Call[int]]) -> None:
        for call in calls:
            worker = call.worker
            at_it = [other for other, held in self.held.items() if call.item in held]
            late = [other for other in at_it if self.now_s - self.sharing.lanes[other].since_s > OVERDUE_S]
            assert not at_it or (at_it == late and len(late) == 1 and not self.sharing.waiting)
            assert call.item not in self.done
            assert not self.sharing.lanes[worker].is_leaving
            assert self.promised.pop(worker, None) in (None, call.item)
            assert call.turn == self.turns[worker]
            if self.held[worker]:
                assert not {call.item, self.held[worker][0]} & self.sharing.attempts.keys(), "a suspect is not alone"
            self.turns[worker] += 1
            self.held[worker].append(call.item)
            assert len(self.held[worker]) <= IN_FLIGHT
            if call.upcoming is not None:
                self.promised[worker] = call.upcoming

    def forget(self, worker: int) -> list[int]:
        self.promised.pop(worker, None)
        return self.held.pop(worker)

    def pick(self, choice: int) -> int:
        return sorted(self.held)[choice % len(self.held)]

    @rule(most=st.integers(0, 6))
    def look(self, most: int) -> None:
        self.most, self.wanted = most, self.sharing.wanted(most, self.now_s)
        assert self.wanted <= most
        for worker in self.held:
            if self.sharing.lanes[worker].is_late:
                self.promised.pop(worker, None)

    @precondition(lambda self: self.sharing.num_working < self.wanted)
    @rule()
    def comes(self) -> None:
        worker, self.come = self.come, self.come + 1
        self.held[worker] = []
        self.take(self.sharing.came(worker, self.now_s))
        self.let_go(worker)

    @precondition(lambda self: self.held)
    @rule(choice=CHOICE, second=st.booleans())
    def does(self, choice: int, second: bool) -> None:
        worker = self.pick(choice)
        item = self.held[worker].pop(second and len(self.held[worker]) > 1)
        self.done.add(item)
        self.take(self.sharing.did(worker, item, self.now_s))
        self.let_go(worker)

    def let_go(self, worker: int) -> None:
        """Who has nothing to do is not kept."""
        assert (worker in self.sharing.lanes) == bool(self.held[worker])
        if not self.held[worker]:
            self.forget(worker)

    @precondition(lambda self: self.held)
    @rule(choice=CHOICE, with_node=st.booleans())
    def dies(self, choice: int, with_node: bool) -> None:
        worker = self.pick(choice)
        with_node = with_node and max(self.sharing.nodes[item] for item in self.held[worker]) < NODES - 1
        before = sum(self.sharing.attempts.values())
        self.sharing.died(worker, "test", with_node)
        assert sum(self.sharing.attempts.values()) - before <= (not with_node)
        self.forget(worker)

    @precondition(lambda self: self.held)
    @rule(choice=CHOICE)
    def leaves(self, choice: int) -> None:
        worker = self.pick(choice)
        self.promised.pop(worker, None)
        self.sharing.leaves(worker)

    @precondition(lambda self: self.held)
    @rule(choice=CHOICE)
    def ends(self, choice: int) -> None:
        worker = self.pick(choice)
        before = self.sharing.attempts.copy(), self.sharing.nodes.copy()
        self.sharing.ends(worker)
        assert (self.sharing.attempts, self.sharing.nodes) == before
        self.forget(worker)

    @rule(later_s=st.sampled_from([1.0, OVERDUE_S, OVERDUE * OVERDUE_S]))
    def time_passes(self, later_s: float) -> None:
        self.now_s += later_s

    @invariant()
    def nothing_is_lost(self) -> None:
        sharing = self.sharing
        to_give = [*sharing.waiting, *sharing.suspects]
        promised = [lane.promised for lane in sharing.lanes.values() if lane.promised is not None]
        held = {item for items in self.held.values() for item in items}
        assert len({*to_give, *promised}) == len(to_give) + len(promised)
        assert not held & {*to_give, *promised}
        assert {*to_give, *promised, *held} - self.done == sharing.left
        assert sharing.num_working == sum(not lane.is_leaving for lane in sharing.lanes.values())
        starts = [lane.since_s for lane in sharing.lanes.values()]
        assert starts == sorted(starts)

    def teardown(self) -> None:
        """All workers end what they have, and others come: then all is done."""
        if not hasattr(self, "sharing"):
            return
        for _ in range(len(self.sharing.left)):
            while self.held:
                self.does(0, False)
            self.look(max(1, self.most))
            if self.sharing.left:
                self.comes()
        while self.held:
            self.does(0, False)
        assert not self.sharing.left


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def sharing_of(num_items: int, most: int) -> Sharing[int]:
    sharing = Sharing(range(num_items))
    sharing.wanted(most, 0.0)
    return sharing


def items(calls: list[Call[int]]) -> list[int]:
    return [call.item for call in calls]


def test_no_worker_gets_a_second_item_while_another_has_none() -> None:
    sharing = sharing_of(3, most=3)
    assert [items(sharing.came(worker, 0.0)) for worker in "abc"] == [[0], [1], [2]]


def test_one_that_comes_alone_does_what_others_were_expected_for() -> None:
    sharing = sharing_of(5, most=3)
    given = items(sharing.came("a", 0.0))
    while sharing.left:
        given += items(sharing.did("a", sharing.lanes["a"].items[0], 1.0))
    assert sorted(given) == list(range(5))


def test_what_the_dead_had_is_done_by_who_is_there_the_one_to_blame_alone() -> None:
    sharing = sharing_of(8, most=2)
    assert items(sharing.came("a", 0.0)) == [0, 1]
    assert items(sharing.came("b", 0.0)) == [3, 4]
    sharing.died("a", "killed")
    given = []
    while sharing.left:
        calls = sharing.did("b", sharing.lanes["b"].items[0], 1.0)
        given += items(calls)
        assert 0 not in items(calls) or sharing.lanes["b"].items == [0]
    assert sorted(given) == [0, 1, 2, 5, 6, 7]


def test_an_item_that_takes_three_workers_with_it_ends_the_work() -> None:
    sharing = sharing_of(1, most=1)
    for worker in "ab":
        assert items(sharing.came(worker, 0.0)) == [0]
        sharing.died(worker, "killed")
    sharing.came("c", 0.0)
    with pytest.raises(WorkerLost, match="3 workers died of 0; the last: killed"):
        sharing.died("c", "killed")


def test_lost_nodes_are_not_blamed_on_an_item_before_there_are_many() -> None:
    sharing = sharing_of(2, most=1)
    for worker in range(NODES - 1):
        assert items(sharing.came(worker, 0.0)) == [0, 1]
        sharing.died(worker, "preempted", with_node=True)
        sharing.wanted(1, 0.0)
    sharing.came("last", 0.0)
    with pytest.raises(WorkerLost, match=f"{NODES} nodes died of 0"):
        sharing.died("last", "preempted", with_node=True)


def test_what_takes_far_too_long_is_done_by_a_second_one_and_its_promise_by_others() -> None:
    sharing = Sharing(range(4))
    sharing.wanted(1, 0.0)
    assert [(call.item, call.upcoming) for call in sharing.came("hangs", 0.0)] == [(0, 1), (1, 2)]
    sharing.wanted(2, 0.0)
    assert items(sharing.came("quick", 0.0)) == [3]
    assert sharing.did("quick", 3, 10.0) == []
    late_s = OVERDUE_S + 1
    assert sharing.wanted(2, late_s - 10) == 1
    assert sharing.wanted(1, late_s) == 1  # it keeps its place: who comes needs one more
    assert sharing.wanted(2, late_s) == 2
    given = items(sharing.came("second", late_s))
    for _ in range(2):
        given += items(sharing.did("second", given[-1], late_s))
    assert given == [2, 0, 1]
    sharing.did("second", given[-1], late_s)
    assert not sharing.left


def test_nobody_is_a_third_one_to_do_what_takes_too_long_not_even_when_the_first_dies() -> None:
    sharing = sharing_of(2, most=2)
    assert items(sharing.came("hangs", 0.0)) == [0]
    assert items(sharing.came("quick", 0.0)) == [1]
    late_s = OVERDUE_S + 1
    assert sharing.did("quick", 1, 10.0) == []
    assert items(sharing.came("second", late_s)) == [0]
    assert sharing.came("third", late_s) == []
    sharing.died("hangs", "killed at last")
    assert sharing.came("third", late_s) == []
    assert sharing.did("second", 0, late_s) == []
    assert not sharing.left


def test_who_leaves_ends_what_it_has_and_others_do_the_rest() -> None:
    sharing = sharing_of(4, most=1)
    assert items(sharing.came("leaves", 0.0)) == [0, 1]
    sharing.leaves("leaves")
    assert sharing.wanted(1, 0.0) == 1  # its place is gone
    assert items(sharing.came("stays", 0.0)) == [2, 3]
    assert sharing.did("leaves", 0, 1.0) == sharing.did("leaves", 1, 1.0) == []
    assert list(sharing.lanes) == ["stays"]
