"""What reads videos can read, and no more: it writes no file, reaches no network, starts and looks into no process."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.confine import ALLOW, CALLS, FIRST_OF_X32, KILL, REFUSE, call_filter
from pipeline.sandbox import Limits, Sandbox

ROOT = Path(__file__).resolve().parents[2]

# What a video that has taken its decoder over might try. Each returns what it got.


def write(path: str) -> int:
    return Path(path).write_bytes(b"taken over")


def append(path: str) -> int:
    with open(path, "ab") as file:
        return file.write(b"taken over")


def cut(path: str) -> None:
    os.truncate(path, 0)


def remove(path: str) -> None:
    os.unlink(path)


def rename(path: str) -> None:
    os.rename(path, f"{path}.taken")


def link(path: str) -> None:
    os.symlink("/etc/passwd", f"{path}.link")


def make_folder(path: str) -> None:
    os.mkdir(f"{path}.folder")


def read_secrets_of_the_parent(_: str) -> bytes:
    return Path(f"/proc/{os.getppid()}/environ").read_bytes()


def signal_the_parent(_: str) -> None:
    os.kill(os.getppid(), signal.SIGCONT)


def run_a_program(_: str) -> bytes:
    return subprocess.check_output(["/bin/echo", "taken over"])


def connect(_: str) -> Any:
    return socket.create_connection(("127.0.0.1", 9))


def connect_on_this_machine(_: str) -> Any:
    return socket.socket(socket.AF_UNIX)


def ask_io_uring(_: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(425), 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


FILES = (write, append, cut, remove, rename, link, make_folder, read_secrets_of_the_parent)
CALLED = (run_a_program, connect, connect_on_this_machine, ask_io_uring)


def read(path: str) -> str:
    return Path(path).read_text()


def environment() -> list[str]:
    return sorted(os.environ)


def privileges() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)


def where() -> list[str]:
    return [os.getcwd(), *sys.path]


@pytest.fixture(scope="module")
def lacking() -> str:
    """What this system does not let a process give up."""
    code = "from pipeline.confine import confine; print(*confine(), sep='; ')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("MY_TOKEN_PATH", "secret")
        patch.setenv("OMP_NUM_THREADS", "1")
        with Sandbox(Limits(60, 2**30, 100)) as sandbox:
            assert sandbox.call(privileges) >= 0  # it starts now
            yield sandbox


def is_refused(sandbox: Sandbox, attempt: Callable[[str], Any], path: Path) -> None:
    """Nothing comes of it, and nothing has changed."""
    path.write_text("as it was")
    before = sorted(os.listdir(path.parent))
    with pytest.raises(OSError, match="Permission denied|not implemented|not permitted|Invalid cross-device"):
        sandbox.call(attempt, str(path))
    assert path.read_text() == "as it was" and sorted(os.listdir(path.parent)) == before


@pytest.mark.parametrize("attempt", FILES, ids=lambda one: one.__name__)
def test_files_and_other_processes_are_out_of_reach(
    sandbox: Sandbox, lacking: str, tmp_path: Path, attempt: Callable[[str], Any]
) -> None:
    if "files" in lacking:
        pytest.skip("no Landlock here")
    is_refused(sandbox, attempt, tmp_path / "video.mp4")


def test_other_processes_get_no_signals(sandbox: Sandbox, lacking: str, tmp_path: Path) -> None:
    if "files" in lacking or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("no scopes of Landlock here")
    is_refused(sandbox, signal_the_parent, tmp_path / "video.mp4")


@pytest.mark.parametrize("attempt", CALLED, ids=lambda one: one.__name__)
def test_network_and_programs_are_out_of_reach(
    sandbox: Sandbox, lacking: str, tmp_path: Path, attempt: Callable[[str], Any]
) -> None:
    if "network" in lacking:
        pytest.skip("no filter of system calls here")
    is_refused(sandbox, attempt, tmp_path / "video.mp4")


def test_reading_is_left(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("frames")
    assert sandbox.call(read, str(tmp_path / "video.mp4")) == "frames"


def test_the_environment_holds_no_secrets(sandbox: Sandbox) -> None:
    found = sandbox.call(environment)
    assert {"PATH", "OMP_NUM_THREADS"} <= set(found)
    assert not {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MY_TOKEN_PATH", "HOME"} & set(found)


@pytest.mark.skipif(sys.platform != "linux", reason="privileges of Linux")
def test_root_has_no_more_rights_than_to_read(sandbox: Sandbox) -> None:
    assert sandbox.call(privileges) & ~(1 << 2) == 0


def test_no_module_is_looked_for_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tempfile.py").write_text("raise SystemExit('taken over')")
    with Sandbox(Limits(60, 2**30, 100)) as sandbox:
        folder, *paths = sandbox.call(where)
    assert folder == "/" and str(tmp_path) not in paths


def answer(program: list[tuple[int, int, int, int]], architecture: int, number: int) -> int:
    """What a filter says to a call, as Linux runs it."""
    at = loaded = 0
    while True:
        code, if_so, if_not, value = program[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = {0: number, 4: architecture}[value]
        else:
            at += if_so if {0x15: loaded == value, 0x35: loaded >= value}[code] else if_not


@pytest.mark.parametrize("machine", CALLS)
def test_the_filter_refuses_just_these_calls(machine: str) -> None:
    architecture, refused = CALLS[machine]
    program = call_filter(architecture, refused)
    said = {number: answer(program, architecture, number) for number in range(600)}
    assert {number for number, found in said.items() if found == REFUSE} == set(refused)
    assert {number for number, found in said.items() if found == ALLOW} == set(range(600)) - set(refused)
    assert answer(program, architecture, FIRST_OF_X32) == REFUSE
    assert answer(program, architecture + 1, 0) == KILL
