"""Killable worker processes for symbolic code: no answer can hang, exhaust or crash its caller.

    owner (any thread, any Ray actor)  --pipe-->  supervisor  --pipe-->  worker
                                                  enforces limits         runs math-verify and sympy

The supervisor imports the symbolic libraries once and forks the worker from itself, so replacing a worker that hit
a limit costs milliseconds. Each process exits when the pipe to its parent closes, however the parent died. The
owner needs no alarm, no thread and no signal handler. Messages are JSON lines: nothing a worker says is unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # of a supervisor within one call, before giving up


class Sandbox:
    """Runs `function(*item)` for items in a worker process; an item that hits a limit comes back as None.

    `function` is "module:name"; items and results are JSON values, and results are never None. `deadline_seconds` is
    the wall time of one item, `memory_gib` the worker's address space. Starts on first use; safe from any thread.
    """

    def __init__(self, function: str, *, deadline_seconds: float, memory_gib: float) -> None:
        self._arguments = [function, str(deadline_seconds), str(int(memory_gib * 2**30))]
        self._lock = threading.Lock()
        self._supervisor: subprocess.Popen[bytes] | None = None

    def run(self, items: Sequence[Sequence[Any]]) -> list[Any]:
        """One result per item, in order; None where the item hit the time or memory limit, or crashed its worker."""
        if not items:
            return []
        request = json.dumps(list(items)).encode() + b"\n"
        with self._lock:
            for _ in range(MAX_RESTARTS):
                try:
                    reply = self._exchange(request)
                except BaseException:  # Ctrl-C: the pending reply would be read as the next request's
                    self._stop()
                    raise
                if reply:
                    return json.loads(reply)
                logger.warning("the sandbox's supervisor died; starting another and sending its items again")
                self._stop()
        raise RuntimeError(
            f"the sandbox's supervisor died {MAX_RESTARTS} times in a row; is this machine out of memory? Lower "
            f"grading.workers or grading.memory_gib"
        )

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _exchange(self, request: bytes) -> bytes:
        """The reply line, or nothing when the supervisor died."""
        if self._supervisor is None:
            self._supervisor = self._start()
        stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(request)
            stdin.flush()
            reply = stdout.readline()
        except OSError:
            return b""
        return reply if reply.endswith(b"\n") else b""

    def _start(self) -> subprocess.Popen[bytes]:
        # Pass sys.path on: a Ray worker may have the package from a runtime environment, not from site-packages.
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from east_ray.answers.sandbox import supervise; supervise(*sys.argv[2:])"
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        return subprocess.Popen(
            [sys.executable, "-c", code, path, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C reaches the owner alone; it closes the pipe
        )

    def _stop(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            try:
                supervisor.communicate(timeout=5)  # closes its pipe
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.communicate()


def supervise(function: str, deadline_seconds: str, memory_bytes: str) -> None:
    """Main loop of the supervisor process: one request line in, one reply line out, until the owner closes the pipe."""
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        module, name = function.split(":")
        worker = _Worker(getattr(importlib.import_module(module), name), float(deadline_seconds), int(memory_bytes))
        gc.freeze()  # keeps imported objects out of the workers' collections, and so their memory pages shared
        for request in sys.stdin.buffer:
            reply = worker.run(json.loads(request))
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
        worker.close()


class _Worker:
    """The supervisor's side of one forked worker, which is replaced whenever it breaks a limit."""

    def __init__(self, function: Callable[..., Any], deadline_seconds: float, memory_bytes: int) -> None:
        self._function, self._deadline_seconds, self._memory_bytes = function, deadline_seconds, memory_bytes
        self._pid: int | None = None
        self._request_fd = self._reply_fd = -1
        self._received = b""

    def run(self, items: list[Any]) -> list[Any]:
        """One result per item, None where the worker had to be replaced. A worker gets all that is left at once."""
        if self._pid is not None:
            self._send(items)
        results: list[Any] = []
        while len(results) < len(items):
            results.append(self._next_result(items[len(results) :]))
        return results

    def close(self) -> None:
        if self._pid is not None:
            self._kill()

    def _next_result(self, remaining: list[Any]) -> Any:
        """The result of the first remaining item, or None at the deadline, the memory limit, or its second crash."""
        deadline = time.monotonic() + self._deadline_seconds
        for _ in range(2):  # the first crash may be a kill from outside: one more try, in the time that is left
            if self._pid is None:
                self._fork()
                self._send(remaining)
            line = self._next_line(deadline)
            if line and (result := json.loads(line)) is not None:
                return result
            self._kill()
            if line or time.monotonic() >= deadline:
                break
        return None

    def _next_line(self, deadline: float) -> bytes:
        """One line of the worker's; empty at its death or the deadline. Ends this process when its owner is gone."""
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._reply_fd, 0], [], [], max(0.0, left))
            if 0 in ready:  # the owner waits for our reply, so this can only be the end of its pipe
                self._kill()
                os._exit(0)
            data = os.read(self._reply_fd, 1 << 16) if ready else b""
            if not data:
                return b""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _send(self, items: list[Any]) -> None:
        data = json.dumps(items).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # it died; that shows when its reply is read
            while data:
                data = data[os.write(self._request_fd, data) :]

    def _fork(self) -> None:
        request_read, self._request_fd = os.pipe()
        self._reply_fd, reply_write = os.pipe()
        self._received = b""
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._request_fd)
                os.close(self._reply_fd)
                _work(self._function, request_read, reply_write, self._memory_bytes)
            finally:
                os._exit(1)
        os.close(request_read)
        os.close(reply_write)

    def _kill(self) -> None:
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)  # not yet waited for, so the pid is still its own
        os.waitpid(self._pid, 0)
        os.close(self._request_fd)
        os.close(self._reply_fd)
        self._pid = None


def _work(function: Callable[..., Any], request_fd: int, reply_fd: int, memory_bytes: int) -> None:
    """Main loop of a worker: batches of items in, one result line per item out; null, then the end, out of memory."""
    _confine(memory_bytes)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    with os.fdopen(request_fd, "rb") as requests, os.fdopen(reply_fd, "wb", buffering=0) as replies:
        for request in requests:
            for item in json.loads(request):
                try:
                    result = function(*item)
                except (MemoryError, RecursionError):
                    result = None
                replies.write(json.dumps(result).encode() + b"\n")
                if result is None:
                    return


PR_SET_PDEATHSIG = 1


def _confine(memory_bytes: int) -> None:
    """Die with the supervisor; bounded memory, no file written, no process started, no core dump."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    limits = {"RLIMIT_AS": memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower limit already set stays
            resource.setrlimit(getattr(resource, limit), (value, value))
