"""Sampling and grading through Ray Data: nothing lost, nothing twice, nothing started that is not needed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from east_ray.config.sections import GradingConfig
from east_ray.records import CORRECT, GRADES, SAMPLES, UserError
from east_ray.rollouts import shards
from east_ray.rollouts.engine import question_seed
from east_ray.rollouts.run import RolloutJob, grade_samples
from east_ray.runs.directory import RunDirectory
from tests.support.fake_engine import completion
from tests.support.rollout_runs import JOB, content, make_run, roll_out

pytestmark = pytest.mark.usefixtures("ray_session")


def sampled(directory: Path) -> list[str]:
    """Question ids in the order in which the engine was asked for them."""
    return (directory / "sampled").read_text().split() if (directory / "sampled").exists() else []


def engines_started(directory: Path) -> int:
    return len(list(directory.glob("engine-*")))


def test_every_question_gets_exactly_its_samples_and_its_grades_and_the_pools_are_gone(tmp_path: Path) -> None:
    import ray

    run = make_run(tmp_path, 9)

    (summary,) = roll_out(run, behaviour={"directory": str(tmp_path)})

    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    assert engines_started(tmp_path) == 1
    pids = [int(path.name.removeprefix("engine-")) for path in tmp_path.glob("engine-*")]
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert psutil.wait_procs(alive, timeout=30)[1] == []
    assert shards.read_shard_and_footer(run, "samples", 0)[0].schema.remove_metadata().equals(SAMPLES)
    assert shards.read_shard_and_footer(run, "grades", 0)[0].schema.remove_metadata().equals(GRADES)
    rows = [row for index in range(5) for row in shards.read_shard_and_footer(run, "samples", index)[0].to_pylist()]
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(9)]
    for row in rows:
        seed = question_seed(0, 0, row["question_id"])
        expected = [completion("model-a", seed + i) for i in range(4)]
        assert row["completions"] == [c.text for c in expected]
        assert row["finish_reasons"] == [c.finish_reason for c in expected]
        assert row["completion_tokens"] == [c.num_tokens for c in expected]
        assert row["completion_ids"] == [list(c.token_ids or ()) for c in expected]
        assert row["shortfall"] is None
    grades = [row for index in range(5) for row in shards.read_shard_and_footer(run, "grades", index)[0].to_pylist()]
    by_hand = sum(
        rf"\boxed{{{int(row['question_id'][1:]) % 4}}}" in text for row in rows for text in row["completions"]
    )
    assert sum(row["verdicts"].count(CORRECT) for row in grades) == by_hand == summary.correct
    assert (summary.questions, summary.samples, summary.failed_questions) == (9, 36, 0)
    assert summary.tokens == sum(sum(row["completion_tokens"]) for row in rows)
    assert summary.truncated == sum(row["finish_reasons"].count("length") for row in rows)
    assert summary.correct + summary.incorrect + summary.errors == 36


@pytest.mark.slow
def test_samples_do_not_depend_on_shard_size_or_engine_count(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a", 12), make_run(tmp_path / "b", 12)
    roll_out(one, questions_per_shard=12)
    roll_out(two, questions_per_shard=1, min_engines=2, max_engines=2)
    for directory, key in (("samples", "completions"), ("grades", "clusters")):
        rows = [{r["question_id"]: r[key] for f in content(run, directory).values() for r in f} for run in (one, two)]
        assert rows[0] == rows[1]


def test_a_set_keeps_the_shards_it_was_begun_with_when_the_number_of_engines_changes(tmp_path: Path) -> None:
    run, undisturbed = make_run(tmp_path / "a", 12), make_run(tmp_path / "b", 12)
    roll_out(run, questions_per_shard=4)
    roll_out(undisturbed, questions_per_shard=4)
    Path(run.path("samples", "shard-00000.parquet")).unlink()
    Path(run.path("samples", "shard-00001.parquet")).unlink()
    roll_out(run, questions_per_shard=4, max_engines=9, cpus_per_engine=0.2)
    assert content(run) == content(undisturbed)


def test_shards_that_share_a_task_give_what_they_give_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, undisturbed = make_run(tmp_path / "a", 12), make_run(tmp_path / "b", 12)
    roll_out(undisturbed)
    monkeypatch.setattr("east_ray.rollouts.pools.FEWEST_BLOCKS", 2)
    monkeypatch.setattr("east_ray.rollouts.pools.BLOCKS_PER_CALL", 1)
    (summary,) = roll_out(run)
    assert content(run) == content(undisturbed)
    assert (summary.questions, summary.samples) == (12, 48)


@pytest.mark.slow
def test_another_seed_gives_other_samples(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a", 2), make_run(tmp_path / "b", 2)
    roll_out(one)
    roll_out(two, seed=1)
    assert content(one, "samples") != content(two, "samples")


def test_finished_shards_are_kept_and_only_the_missing_ones_sampled(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (first,) = roll_out(run)
    undisturbed = content(run)
    before = {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*.parquet")}

    (again,) = roll_out(run, behaviour={"directory": str(tmp_path)})

    assert engines_started(tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*.parquet")} == before
    assert again == replace(first, reused_shards=5)

    Path(run.path("samples", "shard-00001.parquet")).unlink()
    Path(run.path("grades", "shard-00003.parquet")).unlink()
    (resumed,) = roll_out(run, behaviour={"directory": str(tmp_path)})

    assert sorted(sampled(tmp_path)) == ["q2", "q3"]
    assert content(run) == undisturbed
    assert resumed.reused_shards == 3


@pytest.mark.slow
def test_lost_grades_alone_start_no_engine(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    roll_out(run)
    undisturbed = content(run)
    run.delete("grades")
    roll_out(run, behaviour={"directory": str(tmp_path)})
    assert engines_started(tmp_path) == 0
    assert content(run) == undisturbed


@pytest.mark.slow
def test_grades_of_other_completions_are_redone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    roll_out(run)
    undisturbed = content(run)
    shard = shards.read_shard_and_footer(run, "samples", 0)[0]
    completions = pa.array([[r"\boxed{0}"] * 4] * 2, SAMPLES.field("completions").type)
    changed = shard.set_column(shard.schema.get_field_index("completions"), SAMPLES.field("completions"), completions)
    shards.write_samples(run, changed, "samples", 0, 4)

    summary = grade_samples(run, "samples", "grades", grading=GradingConfig())

    assert shards.read_shard_and_footer(run, "grades", 0)[0]["num_correct"].to_pylist() == [4, 0]
    assert content(run, "grades")["grades/shard-00001.parquet"] == undisturbed["grades/shard-00001.parquet"]
    assert summary.reused_shards == 4


@pytest.mark.slow
def test_topping_up_samples_only_what_is_missing_and_ends_like_one_run(tmp_path: Path) -> None:
    grown, at_once = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (few,) = roll_out(grown, num_samples=3)
    (more,) = roll_out(grown, num_samples=8)
    roll_out(at_once, num_samples=8)
    assert content(grown) == content(at_once)
    assert (few.samples, more.samples) == (30, 80)


def test_several_models_share_one_engine(tmp_path: Path) -> None:
    run, alone = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    jobs = [RolloutJob(f"model-{m}", JOB.questions, f"{m}/samples", f"{m}/grades") for m in "abc"]

    roll_out(run, *jobs, behaviour={"directory": str(tmp_path)})
    roll_out(alone, jobs[2])

    assert engines_started(tmp_path) == 1
    assert content(run, "c/samples", "c/grades") == content(alone, "c/samples", "c/grades")
    assert content(run, "a/samples") != content(run, "b/samples")


def test_each_model_gets_a_fresh_engine_where_weights_cannot_be_exchanged(tmp_path: Path) -> None:
    exchanged, separate = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    jobs = [RolloutJob(f"model-{m}", JOB.questions, f"{m}/samples", f"{m}/grades") for m in "ab"]
    directories = [f"{m}/{kind}" for m in "ab" for kind in ("samples", "grades")]
    one = {
        "min_engines": 1,
        "max_engines": 1,
    }  # of several engines each could happen to get the shards of one model alone

    roll_out(exchanged, *jobs, **one)
    summaries = roll_out(separate, *jobs, behaviour={"directory": str(tmp_path), "no_exchange": True}, **one)

    def weights(run: RunDirectory) -> set[str]:
        return {shards.read_footer(run, f"{m}/samples", i)["weights"] for m in "ab" for i in range(5)}  # type: ignore[index]

    assert "exchanged" in weights(exchanged)  # all of them, when the second model's shards happened to come first
    assert weights(separate) == {"loaded"}
    assert engines_started(tmp_path) >= 2
    assert content(separate, *directories) == content(exchanged, *directories)
    assert [summary.samples for summary in summaries] == [40, 40]


@pytest.mark.slow
def test_refused_prompt_is_kept_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (summary,) = roll_out(run, behaviour={"refuse": ["q3"]})
    row = shards.read_shard_and_footer(run, "samples", 1)[0].to_pylist()[1]
    assert (row["question_id"], row["completions"], row["shortfall"]) == ("q3", [], "the prompt is too long")
    assert (summary.failed_questions, summary.samples) == (1, 36)


def test_too_many_failed_questions_stop_the_run_and_are_tried_again_by_the_next(tmp_path: Path) -> None:
    run, undisturbed = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    refuse = [f"q{i}" for i in range(4)]
    with pytest.raises(UserError, match=r"max_failed_share=0.3 allows.*run the same command again"):
        roll_out(run, behaviour={"refuse": refuse})
    (summary,) = roll_out(run)
    roll_out(undisturbed)
    assert summary.failed_questions == 0
    assert content(run) == content(undisturbed)


@pytest.mark.slow
def test_prompt_that_kills_the_engine_is_found_and_given_up(tmp_path: Path) -> None:
    run, undisturbed = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (summary,) = roll_out(run, behaviour={"die_on": ["q5"]})
    roll_out(undisturbed)
    assert summary.failed_questions == 1
    row = shards.read_shard_and_footer(run, "samples", 2)[0].to_pylist()[1]
    assert row["question_id"] == "q5"
    assert "died 2 times while sampling this question alone" in row["shortfall"]
    others = [{r["question_id"]: r for f in content(x, "samples").values() for r in f} for x in (run, undisturbed)]
    assert {k: v for k, v in others[0].items() if k != "q5"} == {k: v for k, v in others[1].items() if k != "q5"}


@pytest.mark.slow
def test_engine_that_stops_while_its_process_lives_is_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    (summary,) = roll_out(run, behaviour={"stop_on": ["q0"]})
    assert (summary.failed_questions, summary.samples) == (1, 12)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("To serve at least one request (2.0 GiB KV cache is needed)", "sampling.kv_cache_gib=4 does not suit"),
        ("kv cache has no blocks", "sampling.kv_cache_gib=4 does not suit"),
    ],
)
def test_engine_whose_settings_are_wrong_is_one_clear_error_at_once(tmp_path: Path, message: str, advice: str) -> None:
    with pytest.raises(UserError) as error:
        roll_out(make_run(tmp_path), behaviour={"fail_start": message})
    assert advice in str(error.value)
    assert "Traceback" not in str(error.value)


def test_engine_that_does_not_start_twice_costs_two_starts(tmp_path: Path, log_lines: list[tuple[str, str]]) -> None:
    run, undisturbed = make_run(tmp_path / "a", 4), make_run(tmp_path / "b", 4)
    roll_out(run, behaviour={"directory": str(tmp_path), "fail_starts": 2})
    roll_out(undisturbed)
    assert len((tmp_path / "failed").read_text().split()) == 2
    told = [message for _, message in log_lines if "CUDA out of memory" in message]
    assert [message.rpartition("; ")[2] for message in told] == ["it tries again in 1 s", "it tries again in 10 s"]
    assert content(run) == content(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engine_that_never_starts_is_one_clear_error_after_the_last_try(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kv_cache_gib=4 does not suit this machine.*CUDA out of memory"):
        roll_out(make_run(tmp_path), behaviour={"directory": str(tmp_path), "fail_starts": 100})
    assert len((tmp_path / "failed").read_text().split()) == 5


def test_file_that_cannot_be_written_is_one_clear_error_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run, undisturbed = make_run(tmp_path / "a", 4), make_run(tmp_path / "b", 4)
    with pytest.raises(UserError, match=r"cannot write .*shard-0000.*; free space .* run the same command again"):
        roll_out(run, behaviour={"largest_file_bytes": 2000})
    roll_out(run)
    roll_out(undisturbed)
    assert content(run) == content(undisturbed)


def test_more_gpus_than_the_machine_has_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sampling.gpus_per_engine=1, but this machine has 0 GPUs"):
        roll_out(make_run(tmp_path), gpus_per_engine=1)


def test_grading_nothing_says_how_to_get_completions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no completions; sample first, or import some"):
        grade_samples(make_run(tmp_path), "samples", "grades", grading=GradingConfig())


def test_finished_set_does_not_even_import_ray(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    roll_out(run)
    code = (
        "import sys; from tests.support.rollout_runs import roll_out; from east_ray.runs.directory import RunDirectory\n"
        f"print(roll_out(RunDirectory({run.uri!r}))[0].samples, sorted({{'ray', 'torch', 'vllm'}} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "16 []"
