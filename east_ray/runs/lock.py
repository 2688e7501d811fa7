"""One command at a time on a run directory; a lock on a local disk, nothing on an object store."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Create a local run directory and hold its lock. UserError when it cannot be written or another command holds it."""
    if not run.is_local:
        yield
        return
    root = Path(run.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"run.dir={run.uri!r} is not writable: {error.strerror}; choose another with --set run.dir=..."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another east-ray command is working on {root}; wait for it, or use another run.dir"
            ) from None
        yield
