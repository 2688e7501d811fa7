"""What the record of a pool's engines makes of deaths, lost machines and failed starts."""

from __future__ import annotations

import pytest

from east_ray.config.sections import SamplingConfig
from east_ray.records import Unavailable, UserError
from east_ray.rollouts.actors import one_at_a_time
from east_ray.rollouts.attempts import START_WAITS, Attempts
from east_ray.rollouts.engine import Refusal, Request, is_setting_at_fault


def test_a_shard_whose_engines_died_is_suspected_and_one_whose_machines_were_taken_away_is_not() -> None:
    alive = {"a", "b", "c"}
    attempts = Attempts(lambda: alive)
    assert attempts.begin(0, 7, "engine", "a") == (0, {})
    alive.remove("a")
    assert attempts.begin(0, 7, "engine", "b") == (0, {})
    assert attempts.begin(0, 7, "engine", "c") == (1, {})
    attempts.alone(0, 7, "q14")
    alive.remove("c")
    assert attempts.begin(0, 7, "engine", "b") == (1, {})
    attempts.alone(0, 7, "q14")
    assert attempts.begin(0, 7, "engine", "b") == (2, {"q14": 1})
    assert attempts.begin(0, 8, "engine", "b") == (0, {})


def test_an_engine_that_leaves_by_itself_and_a_finished_shard_leave_no_suspicion() -> None:
    attempts = Attempts(lambda: {"a"})
    for shard in (0, 1):
        attempts.begin(0, shard, "engine", "a")
    attempts.begin(0, 2, "another", "a")
    attempts.finish(0, 1)
    attempts.leave("engine")
    assert [attempts.begin(0, shard, "engine", "a")[0] for shard in (0, 1, 2)] == [0, 0, 1]


def test_an_engine_is_given_up_only_when_nothing_went_on_between_its_failed_starts() -> None:
    attempts = Attempts(lambda: {"a"})
    attempts.begin(0, 0, "well", "a")

    def fail(engine: str) -> float | None:
        return attempts.start_failed(engine, "a", "out of memory")

    assert [fail("sick"), fail("sick"), fail("other")] == [START_WAITS[0], START_WAITS[1], START_WAITS[0]]
    attempts.started("other")
    assert fail("sick") == START_WAITS[0]
    attempts.finish(0, 0)
    assert [fail("sick") for _ in range(len(START_WAITS) + 1)] == [*START_WAITS, None]
    begun, news = attempts.news()
    assert begun
    assert news[0] == "an engine did not start on node a: out of memory; it tries again in 1 s"
    assert news[-1] == "an engine did not start on node a: out of memory; it is given up"
    assert attempts.news() == (True, [])


def test_a_new_engine_opens_the_model_that_is_being_sampled_from() -> None:
    attempts = Attempts(lambda: set())
    assert attempts.current_job() is None
    attempts.begin(2, 0, "engine", "a")
    assert attempts.current_job() == 2


def test_questions_are_reported_one_at_a_time_and_the_deadly_ones_left_out() -> None:
    asked: list[str] = []
    requests = [Request(name, [1], 1, 0) for name in ("q0", "q1", "q2")]
    generate = one_at_a_time(lambda few: [Refusal(request.question_id) for request in few], {"q1": 2}, asked.append)
    assert [result.reason for result in generate(requests) if isinstance(result, Refusal)] == [
        "q0",
        "the engine died 2 times while sampling this question alone",
        "q2",
    ]
    assert asked == ["q0", "q2"]


@pytest.mark.parametrize(
    ("error", "gpus", "is_final"),
    [
        (UserError("no such model"), 1, True),
        (Unavailable("the hub answers 429"), 1, False),
        (TypeError("EngineArgs got an unexpected argument"), 1, True),
        (ValueError("Free memory on device is less than desired GPU memory utilization"), 1, False),
        (ValueError("No available memory for the KV cache blocks"), 1, False),
        (ValueError("No available memory for the KV cache blocks"), 0, True),
        (RuntimeError("Engine core initialization failed"), 1, False),
        (OSError("No space left on device"), 1, False),
    ],
)
def test_only_what_fails_everywhere_is_the_settings_fault(error: Exception, gpus: float, is_final: bool) -> None:
    assert is_setting_at_fault(error, SamplingConfig(gpus_per_engine=gpus)) is is_final
