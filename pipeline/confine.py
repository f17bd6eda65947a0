"""What a process gives up for good before it reads files that strangers have made. No privilege is needed for it.

Landlock (Linux 5.13) takes away writing, making and removing files, looking into other processes and, from Linux 6.12
on, sending them signals. A seccomp filter refuses the network and other programs. Rights to read are left as they are.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Collection
from pathlib import Path

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2  # <sys/prctl.h>, <linux/seccomp.h>
# <linux/landlock.h>
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, LANDLOCK_VERSION = 444, 446, 1
WRITE_FILE, REMOVE_DIR, MAKE_SYM, TRUNCATE = 1, 4, 12, 14  # bits; those from REMOVE_DIR to MAKE_SYM change folders
TRUNCATE_SINCE, SCOPES_SINCE = 3, 6  # versions
SCOPE_SIGNAL = 2
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 2  # <linux/capability.h>
# <linux/audit.h>, <asm/unistd.h>: socket, execve, execveat, ptrace, process_vm_readv, process_vm_writev, pidfd_getfd,
# and io_uring_setup, by which the others could be had.
CALLS = {
    "x86_64": (0xC000003E, (41, 59, 322, 101, 310, 311, 438, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 117, 270, 271, 438, 425)),
}
FIRST_OF_X32 = 0x40000000  # x86_64 knows each call by a second number, from here on
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # <linux/filter.h>
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 38, 0x80000000  # refused as a call that this kernel does not know
NUMBER, ARCHITECTURE = 0, 4  # where the filter finds them


def confine() -> tuple[str, ...]:
    """Give up what reading does not need, in the first thread of a process; returns what could not be taken away."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a decoder that crashes would leave all it had in memory
    if not sys.platform.startswith("linux"):
        return ("writing files", "the network and other programs")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    taken = {
        "writing files": _lock_files(libc),
        "the network and other programs": _filter_calls(libc, platform.machine()),
        "privileges": _drop_privileges(libc),
    }
    return tuple(right for right, is_taken in taken.items() if not is_taken)


def _lock_files(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    writes = 1 << WRITE_FILE | sum(1 << bit for bit in range(REMOVE_DIR, MAKE_SYM + 1))
    writes |= (version >= TRUNCATE_SINCE) << TRUNCATE
    scopes = SCOPE_SIGNAL if version >= SCOPES_SINCE else 0
    asked = struct.pack("3Q", writes, 0, scopes)  # of files, network and scopes; zeros are for any version
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0) if version > 0 else -1
    if rules < 0:
        return False
    locked = libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return locked


def _filter_calls(libc: ctypes.CDLL, machine: str) -> bool:
    if machine not in CALLS:
        return False
    program = call_filter(*CALLS[machine])
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    packed = struct.pack("@HP", len(program), ctypes.addressof(code))
    return libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), packed) == 0


def call_filter(architecture: int, refused: Collection[int]) -> list[tuple[int, int, int, int]]:
    """Numbers of system calls -> a filter that refuses them: (code, lines to skip if so, and if not, value)."""
    checks = [(AT_LEAST, FIRST_OF_X32), *((EQUAL, number) for number in refused)]
    return [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        *((code, len(checks) - at, 0, value) for at, (code, value) in enumerate(checks)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]


def _drop_privileges(libc: ctypes.CDLL) -> bool:
    """Root, as in many containers, reads on what it could read, and has no more rights than others."""
    permitted = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm"))
    kept = int(permitted.split()[1], 16) & 1 << CAP_DAC_READ_SEARCH
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    return libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0
