"""One command at a time on a run directory: a lock on a local disk, a lease on an object store.

A store has no locks, and a file there cannot be created only if it is not there. So the lease is a file that names its
holder, who renews it and stops when it finds another's name in it. A command that finds a lease watches it: whoever
renews it is alive, and one that is not renewed any more, because its holder was killed, is taken over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

LEASE = "lease.json"
RENEWAL_SECONDS = 15.0
LAPSE_SECONDS = 60.0  # a lease that was not renewed for so long, as seen by one who watches it, is nobody's
STALE_SECONDS = 600.0  # the same by the clocks of two machines, which may differ
INTERRUPT = signal.SIGUSR1  # ends a wait, as `_thread.interrupt_main` does not; SIGINT is ignored below a shell's `&`
SETTLING_SECONDS = 1.0  # two that take a free lease at the same time both see who wrote last after this


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Hold a run directory, which is created if it is local. UserError when it cannot be written or another command has it."""
    with _locked(Path(run.root)) if run.is_local else _leased(run):
        yield


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"run.dir={str(root)!r} is not writable: {error.strerror}; choose another with --set run.dir=..."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another east-ray command is working on {root}; wait for it, or use another run.dir"
            ) from None
        yield


@contextmanager
def _leased(run: RunDirectory) -> Iterator[None]:
    """Hold the lease while the block runs, and interrupt the block when another command has taken it."""
    mine = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    _take(run, mine)
    ended, taken_by = threading.Event(), dict[str, Any]()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(INTERRUPT, signal.default_int_handler) if in_main_thread else None

    def renew() -> None:
        while not ended.wait(RENEWAL_SECONDS):
            try:
                if (other := _read(run)) and other["holder"] != mine["holder"]:
                    taken_by.update(other)
                    if in_main_thread:
                        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
                    return
                _write(run, mine)
            except UserError as error:  # the steps find out for themselves whether the store is away for good
                logger.debug("the lease is not renewed: %s", error)

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        yield
    except KeyboardInterrupt:
        if taken_by:
            raise _in_use(run, taken_by) from None
        raise
    finally:
        ended.set()
        renewer.join()
        if in_main_thread:
            signal.signal(INTERRUPT, before)
        if not taken_by:
            run.delete_file(LEASE)


def _take(run: RunDirectory, mine: dict[str, Any]) -> None:
    """Write our name into the lease when nobody else holds it."""
    lease = _read(run)
    if lease and not _is_abandoned(lease):
        logger.info("%s was in use by %s a moment ago; waiting to see whether it still is", run, _who(lease))
        lapse = time.monotonic() + LAPSE_SECONDS
        while (now := _read(run)) and time.monotonic() < lapse:
            if now != lease:
                raise _in_use(run, now)
            time.sleep(RENEWAL_SECONDS / 10)
    _write(run, mine)
    time.sleep(SETTLING_SECONDS)
    if (last := _read(run)) and last["holder"] != mine["holder"]:
        raise _in_use(run, last)


def _is_abandoned(lease: dict[str, Any]) -> bool:
    """Is it known at once that its holder is gone?"""
    ended = lease["host"] == socket.gethostname() and not psutil.pid_exists(lease["process"])
    return ended or time.time() - lease["time"] > STALE_SECONDS


def _read(run: RunDirectory) -> dict[str, Any] | None:
    try:
        return run.read_json(LEASE)
    except FileNotFoundError:
        return None


def _write(run: RunDirectory, mine: dict[str, Any]) -> None:
    run.write_json({**mine, "time": time.time()}, LEASE)


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease['process']} on {lease['host']}"


def _in_use(run: RunDirectory, lease: dict[str, Any]) -> UserError:
    return UserError(
        f"another east-ray command is working on {run}: {_who(lease)}; wait for it, or use another run.dir"
    )
