"""Two commands on one run directory: the second is refused, on an object store as on disk, and a dead one's place is taken."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from east_ray.records import UserError
from east_ray.runs import lock, storage
from east_ray.runs.directory import RunDirectory
from east_ray.runs.lock import LEASE, locked
from tests.support.s3_server import S3Server, s3_server

ELSEWHERE = {"holder": "other", "host": "elsewhere", "process": 7}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


@pytest.fixture
def run(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    storage._open_bucket.cache_clear()
    monkeypatch.setattr(lock, "RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr(lock, "LAPSE_SECONDS", 2.0)
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 0.2)
    return RunDirectory(f"s3://east/{uuid.uuid4().hex[:8]}")


def test_a_second_command_is_refused_while_the_first_renews_its_lease(run: RunDirectory) -> None:
    with locked(run):
        with pytest.raises(
            UserError, match=r"another east-ray command is working on s3://east/\w+: process \d+ on \S+;"
        ):
            locked(run).__enter__()
        assert run.exists(LEASE)
    assert not run.exists(LEASE)
    with locked(run):
        assert run.exists(LEASE)


def test_a_lease_that_is_renewed_no_more_is_taken_over(run: RunDirectory) -> None:
    run.write_json({**ELSEWHERE, "time": time.time()}, LEASE)
    with locked(run):
        assert run.read_json(LEASE)["holder"] != "other"


@pytest.mark.parametrize("sign", ["long ago", "its process has ended"])
def test_the_lease_of_a_command_that_is_known_to_be_gone_is_taken_over_at_once(
    run: RunDirectory, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LAPSE_SECONDS", float("inf"))
    lease = {**ELSEWHERE, "time": time.time()}
    if sign == "long ago":
        lease["time"] -= 2 * lock.STALE_SECONDS
    else:
        lease |= {"host": lock.socket.gethostname(), "process": 2**22 + 1}  # beyond Linux's largest
    run.write_json(lease, LEASE)
    with locked(run):
        assert run.read_json(LEASE)["holder"] != "other"


def test_a_command_whose_lease_another_has_taken_stops(run: RunDirectory) -> None:
    """As after an outage in which it could not renew it."""

    def work() -> None:
        with locked(run):
            run.write_json({**ELSEWHERE, "time": time.time()}, LEASE)
            threading.Event().wait(60)
            pytest.fail("it went on")

    with pytest.raises(UserError, match=r"is working on .*: process 7 on elsewhere"):
        work()
    assert run.read_json(LEASE)["holder"] == "other"


def test_of_two_that_take_a_free_lease_at_once_one_goes_on(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 2.0)
    both, outcomes, read = threading.Barrier(2), [], lock._read
    looked = threading.local()

    def look(run: RunDirectory) -> dict[str, Any] | None:
        """Both find the lease free before either writes."""
        lease = read(run)
        if not hasattr(looked, "once"):
            looked.once = both.wait()
        return lease

    monkeypatch.setattr(lock, "_read", look)

    def command() -> None:
        mine = {"holder": uuid.uuid4().hex, "host": "here", "process": 1}
        try:
            lock._take(run, mine)
            outcomes.append("went on")
        except UserError:
            outcomes.append("refused")

    commands = [threading.Thread(target=command) for _ in range(2)]
    for started in commands:
        started.start()
    for started in commands:
        started.join()
    assert sorted(outcomes) == ["refused", "went on"]
