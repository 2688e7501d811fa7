"""Functions that `test_sandbox.py` runs inside the sandbox."""

from __future__ import annotations

import os
import signal
import time


def double(number: int) -> int:
    return 2 * number


def maybe_hang(seconds: float) -> str:
    time.sleep(seconds)
    return "woke up"


def allocate(gib: float) -> int:
    return len(bytearray(int(gib * 2**30)))


def recurse(depth: int) -> int:
    return 0 if depth == 0 else 1 + recurse(depth - 1)


def crash(dies: bool) -> str:
    if dies:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "alive"


def crash_once(pipe: str) -> str:
    """Dies the first time: the named pipe holds a single byte."""
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(descriptor, 1)
    except BlockingIOError:
        return "second try"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def process_ids() -> list[int]:
    return [os.getppid(), os.getpid()]


def write(path: str) -> str:
    """Try to write to a file; the kernel ends a process that writes beyond its file size limit."""
    with open(path, "w") as file:
        file.write("x")
    return "wrote"
