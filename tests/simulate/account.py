"""How workers spent their time, and when shards were done."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from jobs.decode import ShardWork


@dataclass(eq=False)
class Attempt:
    """A worker at a shard."""

    work: ShardWork
    begun_s: float
    encoded_s: float | None = None  # from then on it is committed, and the worker is at the next one

    def busy_s(self, now_s: float) -> float:
        return (now_s if self.encoded_s is None else self.encoded_s) - self.begun_s


@dataclass
class Account:
    """Seconds of workers, all together: lived = starting + useful + wasted + idle, exactly."""

    lived_s: float = 0.0
    starting_s: float = 0.0
    useful_s: float = 0.0
    wasted_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by cause
    wasted: Counter[str] = field(default_factory=Counter)  # attempts
    workers: int = 0
    begun_s: dict[str, float] = field(default_factory=dict)  # by shard, when somebody began it
    done_s: dict[str, float] = field(default_factory=dict)  # by shard, when it was first committed
    driver_bytes: int = 0  # plan, manifest and works, as the driver has them in its memory
    stops: Counter[str] = field(default_factory=Counter)  # of the driver, by cause

    @property
    def idle_s(self) -> float:
        return self.lived_s - self.starting_s - self.useful_s - sum(self.wasted_s.values())

    def began(self, attempt: Attempt) -> None:
        self.begun_s.setdefault(attempt.work.shard, attempt.begun_s)

    def committed(self, attempt: Attempt, now_s: float) -> None:
        if attempt.work.shard in self.done_s:
            self.lost(attempt, "done twice", now_s)
        else:
            self.done_s[attempt.work.shard] = now_s
            self.useful_s += attempt.busy_s(now_s)

    def lost(self, attempt: Attempt, cause: str, now_s: float) -> None:
        self.wasted_s[cause] += attempt.busy_s(now_s)
        self.wasted[cause] += 1

    def ended(self, begun_s: float, ready_s: float | None, now_s: float) -> None:
        self.workers += 1
        self.lived_s += now_s - begun_s
        self.starting_s += (now_s if ready_s is None else ready_s) - begun_s
