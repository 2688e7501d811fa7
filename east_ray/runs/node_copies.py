"""Copies on this node of directories in object stores: fetched once, kept while a process reads them."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from east_ray.records import Unavailable

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "EAST_RAY_CACHE"

_in_use: Any = None  # the lock of the copy that this process asked for last


def copy_on_this_node(
    source: str, files: Sequence[tuple[str, int, int | None]], download: Callable[[str], None]
) -> str:
    """The path of a copy of `source` under $EAST_RAY_CACHE (~/.cache/east-ray), which `download` copies into a directory.

    `files`: name, bytes and modification time of each. FileNotFoundError when there are none.

    The copy is keyed by the names, sizes and times of what the store holds, so a directory written again is fetched
    again, and one that is there is fetched once per node, however many processes ask at the same time. Until this process
    asks for another one or ends, no process deletes it; copies that nobody uses make room, oldest first, when the disk
    lacks space.
    """
    global _in_use
    if not files:
        raise FileNotFoundError(f"{source} holds no files")
    key = hashlib.sha256(repr((source, files)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get(CACHE_VARIABLE, "~/.cache/east-ray")).expanduser() / "copies"
    copy = cache / key
    lock = _lock_of(copy)
    fcntl.flock(lock, fcntl.LOCK_SH)
    if _in_use is not None:
        _in_use.close()
    _in_use = lock
    try:
        while not copy.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a process that fetches it now
            if not copy.is_dir():
                _fetch(source, copy, sum(size for _, size, _ in files), download)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        lock.close()
        raise
    os.utime(copy)
    return str(copy)


def _fetch(source: str, copy: Path, num_bytes: int, download: Callable[[str], None]) -> None:
    started = time.monotonic()
    attempt = copy.with_name(f".{copy.name}")
    shutil.rmtree(attempt, ignore_errors=True)  # of a process that was killed
    attempt.mkdir(parents=True)
    try:
        _make_room(copy.parent, num_bytes, source)
        download(str(attempt))
        attempt.rename(copy)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    logger.info("fetched %s (%.2f GiB) in %.1f s", source, num_bytes / 2**30, time.monotonic() - started)


def _lock_of(copy: Path) -> Any:
    """Held, shared, by the processes that read a copy, and alone by one that fetches or deletes it."""
    locks = copy.parent.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return (locks / copy.name.lstrip(".")).open("a+")


def _make_room(cache: Path, needed_bytes: int, source: str) -> None:
    for path in sorted(cache.iterdir(), key=_last_use):
        if shutil.disk_usage(cache).free > 1.1 * needed_bytes:
            return
        with suppress(BlockingIOError), _lock_of(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    if (free := shutil.disk_usage(cache).free) < needed_bytes:
        raise Unavailable(
            f"{cache} has {free / 2**30:.1f} GiB free, and a copy of {source} needs "
            f"{needed_bytes / 2**30:.1f} GiB: set {CACHE_VARIABLE} to a larger disk, or free space"
        )


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):  # deleted, or fetched to its end, in this moment
        return path.stat().st_mtime
    return 0.0
