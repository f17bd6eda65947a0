"""Whatever happens in the child, the parent is told why, and goes on."""

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.errors import BadVideo, Refused
from pipeline.sandbox import ChildTraceback, Limits, Sandbox, sandbox_here
from pipeline.sandbox_process import STDERR_BYTES, TAIL_BYTES

ROOT = Path(__file__).resolve().parents[2]
PLENTY = Limits(deadline_s=60, memory_bytes=2**30, videos=100)
SHORT_S = 1.0

# What children are asked to do.


def add(one: int, other: int) -> int:
    return one + other


def child_id() -> int:
    return os.getpid()


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


def chunks(count: int, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Arrays with a number in every byte; the second is too small for shared memory."""
    for number in range(count):
        yield f"chunk {number}", np.full(shape, number, np.uint8), np.full(3, number)


def pair() -> tuple[np.ndarray, np.ndarray]:
    return np.full((300, 300), 1, np.float32), np.full((400, 400), 2, np.float64)


def sizes(side: list[int]) -> Iterator[np.ndarray]:
    for number, length in enumerate(side):
        yield np.full((length, length, 3), number, np.uint8)


def crash_after(items: int, number: int) -> Iterator[int]:
    """Yield some items, then die of a signal."""
    yield from range(items)
    os.write(2, b"first line\nlast line: bad block\n")
    os.kill(os.getpid(), number)


def read_address_zero() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def abort_as_cpp_does() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def fail_as_ffmpeg_does() -> None:
    os.write(2, b"[h264 @ 0x55] get_buffer() failed\n")
    raise BadVideo("damaged: 3 of 90 frames can be decoded")


def drip(seconds: float) -> Iterator[int]:
    """Yield again and again, and never end."""
    while True:
        time.sleep(seconds)
        yield 0


def spin_with_the_lock_held() -> None:
    """What no thread of Python's own could interrupt: C code that never lets go of the interpreter."""
    ctypes.PyDLL(None).sleep(3600)


def allocate(megabytes: int) -> int:
    return int(np.ones(megabytes << 20, np.uint8).sum())


def fail(error: Exception) -> None:
    raise error


class Odd(Exception):
    """Cannot be pickled back: its arguments are not those of its constructor."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def fail_oddly() -> None:
    raise Odd("neither ", "here nor there")


def complain(words: str, times: int, side: int = 1) -> Iterator[np.ndarray]:
    for _ in range(times):
        os.write(2, words.encode())
        yield np.zeros((side, side), np.uint8)


def burn(cpu_s: float) -> None:
    until_s = time.process_time() + cpu_s
    while time.process_time() < until_s:
        pass


def put_to_sleep() -> int:
    """A sandbox's child that hangs, started by a process that then waits to be killed: its id is printed."""
    sandbox = Sandbox(PLENTY)
    print(sandbox.call(child_id), flush=True)
    sandbox.call(spin_with_the_lock_held)
    return 0


def wire_and_slots() -> list[int]:
    """What the child has in common with its parent, by the numbers of its files."""
    return [int(word) for word in sys.argv[4:]]


def lie(line: bytes, rest_s: float = 0.0) -> None:
    """Answer as a decoder might that a video has taken over."""
    wire, *_ = wire_and_slots()
    for start in range(0, len(line), 1 << 16):
        os.write(wire, line[start : start + (1 << 16)])
    time.sleep(rest_s)


def hang_up() -> None:
    wire, *_ = wire_and_slots()
    os.close(wire)
    time.sleep(3600)


def take_memory_back(side: int) -> Iterator[np.ndarray]:
    """Announce a second array that is no longer there; the first may not have been read yet."""
    *_, second = wire_and_slots()
    yield np.ones((side, side))
    os.ftruncate(second, 0)
    lie(json.dumps([0.0, "item", ["array", "<f8", [side, side]]]).encode() + b"\n", rest_s=3600)


class Touch:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(PLENTY) as sandbox:
        yield sandbox


def gone(pid: int) -> bool:
    """Whether a process ends, within a minute."""
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_results_come_from_another_process_and_the_same_one_again(sandbox: Sandbox) -> None:
    assert sandbox.call(add, 2, 3) == 5
    assert list(sandbox.stream(count_to, 3)) == [0, 1, 2]
    assert sandbox.call(child_id) == sandbox.call(child_id) != os.getpid()


def test_a_child_finds_this_project_wherever_it_is_started(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise ImportError('another pipeline')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert sandbox.call(add, 2, 3) == 5


@pytest.mark.parametrize("shape", [(17, 64, 64, 3), (17, 512, 512, 3)])
def test_arrays_arrive_whole_and_are_the_callers_own(sandbox: Sandbox, shape: tuple[int, ...]) -> None:
    items = list(sandbox.stream(chunks, 7, shape))  # more than there are slots, kept together
    for number, (name, large, small) in enumerate(items):
        assert name == f"chunk {number}" and large.shape == shape
        assert (large == number).all() and (small == number).all()
        large += 1  # and they can be written to
    assert [int(large.max()) for _, large, _ in items] == list(range(1, 8))


def test_slots_grow_with_need(sandbox: Sandbox) -> None:
    sides = [200, 500, 150, 1000, 300, 1001]
    found = list(sandbox.stream(sizes, sides))
    assert [one.shape for one in found] == [(side, side, 3) for side in sides]
    assert all((one == number).all() for number, one in enumerate(found))


def test_large_arrays_of_one_item_stay_apart(sandbox: Sandbox) -> None:
    one, other = sandbox.call(pair)
    assert (one == 1).all() and (other == 2).all() and one.dtype == np.float32


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_is_told_by_its_signal_and_its_last_words(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(BadVideo, match=f"^the decoder crashed: {name}") as told:
        list(sandbox.stream(crash_after, 0, signal.Signals[name]))
    assert "last line: bad block" in told.value.stderr
    assert sandbox.call(add, 2, 3) == 5


def test_what_came_before_a_crash_is_there(sandbox: Sandbox) -> None:
    stream = sandbox.stream(crash_after, 3, signal.SIGSEGV)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadVideo, match="SIGSEGV"):
        next(stream)


def test_a_segmentation_fault_says_where(sandbox: Sandbox) -> None:
    with pytest.raises(BadVideo, match="SIGSEGV") as told:
        sandbox.call(read_address_zero)
    assert "read_address_zero" in told.value.stderr


def test_a_child_that_leaves_is_told_by_its_code(sandbox: Sandbox) -> None:
    with pytest.raises(BadVideo, match="exit code 7"):
        sandbox.call(leave, 7)


@pytest.mark.parametrize("work", [sleep, spin_with_the_lock_held])
def test_a_work_that_hangs_is_given_up(work: Any) -> None:
    with Sandbox(Limits(SHORT_S, 2**30, 100)) as sandbox:
        first = sandbox.call(child_id)
        with pytest.raises(BadVideo, match=rf"^still not done after {SHORT_S:g} s: it hangs, or data.deadline_s"):
            sandbox.call(work, *([3600] if work is sleep else []))
        assert gone(first)
        assert sandbox.call(child_id) != first


def test_the_deadline_is_of_the_whole_work_not_of_each_item() -> None:
    with Sandbox(Limits(SHORT_S, 2**30, 100)) as sandbox, pytest.raises(BadVideo, match="still not done"):
        for number, _ in enumerate(sandbox.stream(drip, SHORT_S / 4)):
            assert number < 40


def test_long_videos_have_longer() -> None:
    with Sandbox(Limits(SHORT_S, 2**30, 100)) as sandbox:
        sandbox.call(sleep, 2 * SHORT_S, lasts_s=60)
        with pytest.raises(BadVideo, match=f"still not done after {2 * SHORT_S:g} s"):
            sandbox.call(sleep, 3600, lasts_s=SHORT_S / 10)


def test_the_callers_own_time_does_not_count() -> None:
    with Sandbox(Limits(SHORT_S, 2**30, 100)) as sandbox:
        stream = sandbox.stream(chunks, 4, (17, 64, 64, 3))
        next(stream)
        time.sleep(2 * SHORT_S)
        assert len(list(stream)) == 3


def test_more_memory_than_allowed_is_told_plainly() -> None:
    with Sandbox(Limits(60, 256 << 20, 100)) as sandbox:
        assert sandbox.call(allocate, 200) == 200 << 20
        first = sandbox.call(child_id)
        with pytest.raises(BadVideo, match=r"^needs more memory than 0.25 GiB \(data.reader_bytes\)"):
            sandbox.call(allocate, 300)
        assert gone(first)
        assert sandbox.call(allocate, 200) == 200 << 20


@pytest.mark.parametrize("work", [abort_as_cpp_does, fail_as_ffmpeg_does])
def test_libraries_that_run_out_of_memory_are_told_apart_from_damage(sandbox: Sandbox, work: Any) -> None:
    with pytest.raises(BadVideo, match="^needs more memory than 1 GiB"):
        sandbox.call(work)


def test_a_child_is_replaced_after_its_share_of_works() -> None:
    with Sandbox(Limits(60, 2**30, videos=2)) as sandbox:
        children = [sandbox.call(child_id) for _ in range(5)]
        assert len(set(children)) == 3
        assert children[0] == children[1] and children[2] == children[3]
        assert gone(children[0]) and gone(children[2])


@pytest.mark.parametrize("long_ago", [True, False])
def test_a_child_that_was_killed_between_two_works_is_replaced(sandbox: Sandbox, long_ago: bool) -> None:
    first = sandbox.call(child_id)
    os.kill(first, signal.SIGKILL)
    assert not long_ago or gone(first)
    assert sandbox.call(add, 2, 3) == 5


def test_a_child_dies_with_its_parent_even_while_it_hangs() -> None:
    code = "from tests.pipeline.test_sandbox import put_to_sleep; put_to_sleep()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert gone(child)


def test_an_idle_child_ends_with_its_sandbox() -> None:
    with Sandbox(PLENTY) as sandbox:
        child = sandbox.call(child_id)
    assert gone(child)


def test_a_stream_that_is_closed_early_leaves_the_sandbox_usable(sandbox: Sandbox) -> None:
    stream = sandbox.stream(chunks, 1000, (17, 64, 64, 3))
    next(stream)
    stream.close()  # pyright: ignore
    assert sandbox.call(add, 2, 3) == 5
    assert [name for name, _, _ in sandbox.stream(chunks, 2, (17, 64, 64, 3))] == ["chunk 0", "chunk 1"]


def test_two_streams_at_once_are_not_mixed_up(sandbox: Sandbox) -> None:
    stream = sandbox.stream(count_to, 3)
    next(stream)
    with pytest.raises(RuntimeError, match="one work at a time"):
        sandbox.call(add, 2, 3)
    assert list(stream) == [1, 2]


def test_a_sandbox_that_is_closed_ends_its_stream(sandbox: Sandbox) -> None:
    stream = sandbox.stream(count_to, 3)
    next(stream)
    sandbox.close()
    with pytest.raises(OSError, match="closed"):
        list(stream)
    assert sandbox.call(add, 2, 3) == 5


@pytest.mark.parametrize("error", [Refused("mend it"), ValueError("a bug"), FileNotFoundError(2, "gone")])
def test_exceptions_cross_with_the_childs_traceback(sandbox: Sandbox, error: Exception) -> None:
    with pytest.raises(type(error)) as told:
        sandbox.call(fail, error)
    assert told.value.args == error.args
    assert isinstance(told.value.__cause__, ChildTraceback) and "in fail" in str(told.value.__cause__)
    child = sandbox.call(child_id)
    with pytest.raises(type(error)):
        sandbox.call(fail, error)
    assert sandbox.call(child_id) == child  # which is none the worse for it


def test_a_bad_video_keeps_its_reason_and_what_its_decoder_wrote(sandbox: Sandbox) -> None:
    with pytest.raises(BadVideo, match="^no video stream$") as told:
        sandbox.call(fail, BadVideo("no video stream", "moov atom not found"))
    assert told.value.stderr == "moov atom not found"


def test_an_exception_that_cannot_be_pickled_says_what_it_said(sandbox: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="Odd: neither here nor there"):
        sandbox.call(fail_oddly)


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b"\x80\x05N.\n",
        b"{}\n",
        b'[1e999, "ended"]\n',
        b'[0, "ended", null, ""]\n',
        b'[0.0, "item", {"a": 1}]\n',
        b'[0.0, "item", ["Path", "/etc"]]\n',
        b'[0.0, "item", ["array", "|O", [1]]]\n',
        b'[0.0, "item", ["array", "<f8", [100000000000]]]\n',
        b'[0.0, "item", ["array", "<f8", [10]]]\n',
        b'[0.0, "ended", ["SystemExit", 1], ""]\n',
        b'[0.0, "item", ' + b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: line[:50].decode("latin-1"),
)
def test_answers_that_are_none_of_ours_are_a_crash(sandbox: Sandbox, line: bytes) -> None:
    with pytest.raises(BadVideo, match="^the decoder crashed: it does not answer as it should: "):
        sandbox.call(lie, line, 3600)
    assert sandbox.call(add, 2, 3) == 5


def test_an_answer_without_end_is_a_crash(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sandbox_process.LINE_BYTES", 1 << 20)
    with pytest.raises(BadVideo, match="it does not answer as it should: more than 1048576 bytes"):
        sandbox.call(lie, b"z" * (2 << 20), 3600)


def test_a_child_that_hangs_up_and_stays_is_a_crash(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sandbox_process.KILL_S", SHORT_S)
    with pytest.raises(BadVideo, match="^the decoder crashed: it does not answer any more$"):
        sandbox.call(hang_up)
    assert sandbox.call(add, 2, 3) == 5


def test_half_an_answer_is_late() -> None:
    with Sandbox(Limits(SHORT_S, 2**30, 100)) as sandbox:
        with pytest.raises(BadVideo, match="^still not done after"):
            sandbox.call(lie, b'[0.0, "ended', 3600)
        assert sandbox.call(add, 2, 3) == 5


def test_memory_that_is_taken_back_is_a_crash_of_the_child_alone(sandbox: Sandbox) -> None:
    stream = sandbox.stream(take_memory_back, 300)
    assert next(stream).all()
    with pytest.raises(BadVideo, match="it does not answer as it should: .* are not there"):
        next(stream)


def test_nothing_that_a_child_sends_is_unpickled(sandbox: Sandbox, tmp_path: Path) -> None:
    evil = pickle.dumps(Touch(tmp_path / "unpickled"))
    for line in (evil, evil + b"\n", len(evil).to_bytes(4, "big") + evil):
        with pytest.raises(BadVideo, match="the decoder crashed"):
            sandbox.call(lie, line + b"\n", 3600)
    assert not (tmp_path / "unpickled").exists()


def test_what_the_decoder_wrote_is_told_work_by_work(sandbox: Sandbox) -> None:
    list(sandbox.stream(complain, "error while decoding MB 3 7\n", 2))
    assert sandbox.stderr == "error while decoding MB 3 7\nerror while decoding MB 3 7"
    sandbox.call(add, 2, 3)
    assert sandbox.stderr == ""


def test_a_decoder_that_complains_without_end_fills_nothing(sandbox: Sandbox) -> None:
    line = "z" * 99 + "\n"
    for _ in sandbox.stream(complain, line * 5000, 20, 512):  # 10 MB, by a child that is a few items ahead
        assert sandbox.child and os.fstat(sandbox.child.log).st_size < 5 * STDERR_BYTES
    assert set(sandbox.stderr) == set(line) and len(sandbox.stderr) <= TAIL_BYTES


def test_the_cpu_time_of_the_work_is_known(sandbox: Sandbox) -> None:
    sandbox.call(burn, 0.3)
    assert sandbox.cpu_s >= 0.3
    sandbox.call(add, 2, 3)
    assert sandbox.cpu_s < 0.3


def test_a_work_that_is_nowhere_is_an_error_of_ours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "lost", lambda: None, raising=False)
    work = sys.modules[__name__].lost  # pyright: ignore
    work.__name__ = work.__qualname__ = "lost"
    with pytest.raises(AttributeError, match="lost"):
        sandbox.call(work)


def test_each_process_has_one_sandbox_per_limits() -> None:
    first = sandbox_here(PLENTY)
    child = first.call(child_id)
    assert sandbox_here(Limits(60, 2**30, 100)) is first
    other = sandbox_here(Limits(61, 2**30, 100))
    assert other is not first and gone(child)
    other.close()
