"""What came of a run, in numbers."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from tests.simulate.machines import HOUR_S
from tests.simulate.run import Run, play
from tests.simulate.scene import Scene

Line = tuple[str, str]


def goodput(run: Run) -> float:
    """Share of the seconds of all workers that went into what is kept."""
    return run.account.useful_s / run.account.lived_s


def ideal_s(run: Run) -> float:
    """How long the work takes, spread evenly over all workers, when none is slow and nothing goes wrong."""
    chunks = sum(clip.num_chunks for clips in run.driver.planned.values() for clip in clips)
    return run.scene.start_s + chunks * run.scene.chunk_s / run.scene.workers


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tail_s(run: Run, share: float) -> float:
    """From when this share of the shards was committed until all were."""
    done = sorted(run.account.done_s.values())
    return done[-1] - quantile(done, share)


def lines(run: Run) -> Iterator[Line]:
    """Name and value, in the order they are read."""
    account, driver, store = run.account, run.driver, run.store
    took = sorted(done - account.begun_s[shard] for shard, done in account.done_s.items())
    yield "work", f"{len(driver.videos)} videos, {sum(map(len, driver.planned.values()))} clips, {len(took)} shards"
    yield "makespan", f"{run.makespan_s / HOUR_S:.2f} h; ideal {ideal_s(run) / HOUR_S:.2f} h"
    yield "workers", f"{account.workers} started, {account.lived_s / HOUR_S:.0f} hours of them in all"
    yield "goodput", f"{100 * goodput(run):.2f} % of their time"
    others = {"starting": account.starting_s, "idle": account.idle_s, **account.wasted_s}
    for cause, seconds in sorted(others.items(), key=lambda item: -item[1]):
        times = f" ({account.wasted[cause]} times)" if cause in account.wasted else ""
        yield f"  {cause}", f"{100 * seconds / account.lived_s:.2f} %{times}"
    yield "a shard takes", ", ".join(f"p{100 * share:g} {quantile(took, share):.0f} s" for share in (0.5, 0.99, 0.9999))
    yield "  at most", f"{took[-1]:.0f} s"
    yield "tail", ", ".join(f"{tail_s(run, share):.0f} s after {100 * share:g} %" for share in (0.95, 0.99, 0.999))
    yield "driver stops", ", ".join(f"{cause} {count}" for cause, count in account.stops.items()) or "none"
    yield (
        "scheduling",
        (
            f"{1e6 * driver.scheduling_cpu_s / driver.num_events:.0f} µs of CPU per event, {driver.num_events} events, "
            f"{driver.num_events / run.makespan_s:.1f} a second of the run"
        ),
    )
    yield "the driver's memory", f"{account.driver_bytes / 1e9:.2f} GB for plan, manifest and works"
    for part, seconds in driver.cpu_s.items():
        yield f"  {part}", f"{seconds:.1f} s of CPU"
    busiest_s = max(store.by_second, key=store.by_second.__getitem__)
    yield (
        "requests",
        f"{sum(store.requests.values())}; encoders make {store.by_second[busiest_s]} in their busiest second",
    )
    for kind, count in sorted((+store.requests).items(), key=lambda item: -item[1]):
        sent = store.sent_bytes[kind]
        yield f"  {kind}", f"{count}, {sent / 1e9:.2f} GB" if sent else f"{count}"
    away = sum(count for key, count in store.taken_away.items() if key.endswith(".parquet"))
    yield "commits undone by a second writer of the same shard", f"{away}; encode run again {run.again} times"
    yield "objects rewritten with other content", str(len(store.rewritten))


def play_and_tell(scene: Scene, planned: Mapping[str, bytes]) -> dict[str, str]:
    run = play(scene, planned)
    for name, value in lines(run):
        print(f"{name:>36}  {value}")
    return checksums(run)


def play_calmly(scene: Scene, planned: Mapping[str, bytes]) -> dict[str, str]:
    return checksums(play(scene.calm(), planned))


def checksums(run: Run) -> dict[str, str]:
    """What a run leaves behind, as the MD5 of each object by its key."""
    return {key: hashlib.md5(content).hexdigest() for key, content in run.kept.items()}
