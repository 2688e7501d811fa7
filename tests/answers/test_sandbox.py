"""The sandbox keeps its promises: order, limits, respawn, no orphan, from any thread, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from east_ray.answers.sandbox import Sandbox

DEADLINE_SECONDS = 0.5


@pytest.fixture
def sandbox() -> Iterator[Callable[[str], Sandbox]]:
    """Makes sandboxes of the functions in `sandboxed.py`, and closes them."""
    made: list[Sandbox] = []

    def make(function: str, deadline_seconds: float = DEADLINE_SECONDS) -> Sandbox:
        made.append(Sandbox(f"tests.support.sandboxed:{function}", deadline_seconds=deadline_seconds, memory_gib=0.5))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_results_come_back_in_order(sandbox: Callable[..., Sandbox]) -> None:
    doubled = sandbox("double", deadline_seconds=30)
    assert doubled.run([[n] for n in range(2_000)]) == [2 * n for n in range(2_000)]
    assert doubled.run([[7]]) == [14]
    assert doubled.run([]) == []


def test_an_item_past_its_deadline_is_none_and_the_others_are_unaffected(sandbox: Callable[..., Sandbox]) -> None:
    seconds = [[0], [3_600], [0], [3_600], [0]]
    assert sandbox("maybe_hang").run(seconds) == ["woke up", None, "woke up", None, "woke up"]


def test_an_item_past_its_memory_is_none_and_the_others_are_unaffected(sandbox: Callable[..., Sandbox]) -> None:
    megabyte = 1 / 1024
    assert sandbox("allocate", 30).run([[megabyte], [0.6], [megabyte]]) == [2**20, None, 2**20]


def test_endless_recursion_is_none(sandbox: Callable[..., Sandbox]) -> None:
    assert sandbox("recurse", 30).run([[10], [10**6], [20]]) == [10, None, 20]


def test_an_item_that_crashes_its_worker_twice_is_none(sandbox: Callable[..., Sandbox]) -> None:
    assert sandbox("crash", 30).run([[False], [True], [False]]) == ["alive", None, "alive"]


def test_an_item_whose_worker_was_killed_once_gets_another_try(sandbox: Callable[..., Sandbox], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    keep_open = os.open(pipe, os.O_RDWR)
    os.write(keep_open, b"x")
    assert sandbox("crash_once", 30).run([[str(pipe)]]) == ["second try"]
    os.close(keep_open)


@pytest.mark.parametrize("victim", [0, 1], ids=["supervisor", "worker"])
def test_work_goes_on_after_a_kill(sandbox: Callable[..., Sandbox], victim: int) -> None:
    pids = sandbox("process_ids", 30)
    (before,) = pids.run([[]])
    os.kill(before[victim], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before[victim])] if psutil.pid_exists(before[victim]) else [], timeout=5)
    (after,) = pids.run([[]])
    assert after[1] != before[1]
    assert (after[0] != before[0]) == (victim == 0)


def test_closing_leaves_no_process(sandbox: Callable[..., Sandbox]) -> None:
    pids = sandbox("process_ids", 30)
    processes = [psutil.Process(pid) for pid in pids.run([[]])[0]]
    pids.close()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.mark.parametrize("busy", [False, True])
def test_nothing_outlives_a_killed_owner(busy: bool) -> None:
    code = (
        "import json, sys; from east_ray.answers.sandbox import Sandbox\n"
        "pids = Sandbox('tests.support.sandboxed:process_ids', deadline_seconds=600, memory_gib=0.5)\n"
        "hang = Sandbox('tests.support.sandboxed:maybe_hang', deadline_seconds=600, memory_gib=0.5)\n"
        "print(json.dumps(pids.run([[]])[0]), flush=True)\n"
        f"{'hang.run([[3600]])' if busy else 'sys.stdin.read()'}"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    processes = [psutil.Process(pid) for pid in json.loads(owner.stdout.readline())]
    processes += psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_many_threads_may_share_one_sandbox(sandbox: Callable[..., Sandbox]) -> None:
    doubled = sandbox("double", deadline_seconds=30)
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda start: doubled.run([[start + n] for n in range(50)]), range(0, 800, 50)))
    assert [number for batch in batches for number in batch] == [2 * n for n in range(800)]


def test_the_callers_signals_are_its_own(sandbox: Callable[..., Sandbox]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)]
    signal.setitimer(signal.ITIMER_REAL, 3_600)
    outcome: list[object] = []
    thread = threading.Thread(target=lambda: outcome.extend(sandbox("maybe_hang").run([[3_600]])))
    thread.start()
    thread.join()
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    assert outcome == [None]
    assert left > 3_000
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)] == before


def test_a_worker_writes_no_file(sandbox: Callable[..., Sandbox], tmp_path: Path) -> None:
    target = tmp_path / "file"
    assert sandbox("write", 30).run([[str(target)]]) == [None]
    assert target.read_bytes() == b""
