"""Which shards are unfinished, and that their content can be read from their footers. No engine, no Ray."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from east_ray.answers.grading import Grader, grade_table
from east_ray.config.sections import GradingConfig, SamplingConfig
from east_ray.records import SAMPLES, UserError
from east_ray.rollouts import shards
from east_ray.rollouts.engine import question_seed
from east_ray.rollouts.pools import _shards_in_flight
from east_ray.runs.artifacts import Artifact
from east_ray.runs.directory import RunDirectory
from tests.support.rollout_runs import make_run, roll_out


def samples(count: int, num_samples: int, text: str = r"\boxed{1}", failed: int = 0) -> pa.Table:
    """Completions of `count` questions, the last `failed` of which have none."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        drawn = 0 if i >= count - failed else num_samples
        rows.append(
            {
                "question_id": f"q{i}",
                "reference": "1",
                "prompt_hash": "",
                "prompt_tokens": 3,
                "completions": [text] * drawn,
                "finish_reasons": ["length", *["stop"] * (drawn - 1)] if drawn else [],
                "completion_tokens": list(range(1, drawn + 1)),
                "shortfall": None if drawn else "too long",
            }
        )
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def grade(run: RunDirectory, index: int) -> dict[str, Any]:
    footer = shards.read_footer(run, "samples", index)
    assert footer is not None
    with Grader(GradingConfig()) as grader:
        grades = grade_table(shards.read_shard_and_footer(run, "samples", index)[0], grader)
    return shards.write_grades(run, grades, "grades", index, footer)


def todo(run: RunDirectory, count: int, num_samples: int | None, **keywords: bool) -> list[tuple[int, bool]]:
    found = shards.unfinished(run, "samples", "grades", count, num_samples, **keywords)
    return [(shard.index, shard.samples) for shard in found]


def test_footers_hold_the_counts_of_what_was_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    written = shards.write_samples(run, samples(3, 4, failed=1), "samples", 0, 4, "loaded")
    assert written == shards.read_footer(run, "samples", 0)
    digest = written.pop("digest")
    counts = {"questions": 3, "samples": 8, "tokens": 20, "truncated": 2, "failed": 1}
    assert written == {"num_samples": 4, "weights": "loaded", "questions_per_shard": None, **counts}
    graded = grade(run, 0)
    assert graded == {"digest": digest, "questions": 3, "correct": 8, "incorrect": 0, "errors": 0, "unanswered": 0}
    assert shards.read_shard_and_footer(run, "samples", 0)[0].equals(samples(3, 4, failed=1))


def test_digest_follows_the_completions_and_nothing_else() -> None:
    table = samples(3, 4)
    assert shards.digest(table) == shards.digest(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert shards.digest(table) == shards.digest(table.replace_schema_metadata({"a": "b"}))
    assert len({shards.digest(t) for t in (table, samples(3, 5), samples(2, 4), samples(3, 4, text="x"))}) == 4


def test_todo_names_what_is_missing_short_or_graded_from_other_completions(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert todo(run, 5, 4) == [(i, True) for i in range(5)]
    for index, drawn in enumerate((4, 3, 4, 4)):
        shards.write_samples(run, samples(2, drawn), "samples", index, drawn)
    grade(run, 0)
    grade(run, 3)
    shards.write_samples(run, samples(2, 4, text="other"), "samples", 3, 4)
    assert todo(run, 5, 4) == [(1, True), (2, False), (3, False), (4, True)]


def test_failed_questions_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shards.write_samples(run, samples(2, 4, failed=1), "samples", 0, 4)
    grade(run, 0)
    assert todo(run, 1, 4) == []
    assert todo(run, 1, 4, retry_failed=True) == [(0, True)]


def test_imported_completions_are_taken_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shards.write_samples(run, samples(2, 7), "samples", 0, None)
    assert todo(run, 1, None) == [(0, False)]
    grade(run, 0)
    assert todo(run, 1, None) == []


def test_more_samples_than_asked_for_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shards.write_samples(run, samples(2, 8), "samples", 0, 8)
    with pytest.raises(
        UserError, match=r"shard-00000.parquet holds 8 samples per question.*set it to 8 or choose another"
    ):
        todo(run, 1, 4)


@pytest.mark.parametrize("damage", [b"", b"PAR1 half a file", b"PAR1" * 100])
def test_damaged_shard_is_named_with_its_remedy(tmp_path: Path, damage: bytes) -> None:
    run = make_run(tmp_path)
    Path(run.path("samples")).mkdir()
    Path(run.path("samples", "shard-00000.parquet")).write_bytes(damage)
    for read in (shards.read_footer, shards.read_shard_and_footer):
        with pytest.raises(UserError, match=r"shard-00000.parquet is damaged .*; delete it and run the same command"):
            read(run, "samples", 0)


def test_shard_reads_its_questions_across_row_groups(tmp_path: Path) -> None:
    run = make_run(tmp_path, 23)
    path = run.path("questions", "train.parquet")
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    questions = shards.QuestionsFile(run, "questions/train.parquet")
    read = [questions.shard(i, 5)["question_id"].to_pylist() for i in range(5)]
    assert [name for names in read for name in names] == [f"q{i}" for i in range(23)]
    assert [len(names) for names in read] == [5, 5, 5, 5, 3]


def test_number_of_samples_may_be_raised_later_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def samples(num_samples: int, temperature: float = 1.0) -> Artifact:
        settings = {"num_samples": num_samples, "temperature": temperature}
        return Artifact(run, "samples", settings, extendable=frozenset({"num_samples"}))

    samples(64).complete()
    assert samples(64).is_finished
    assert not samples(128).is_finished
    with pytest.raises(UserError, match=r"made with sampling\.num_samples = 64, now it is 32"):
        _ = samples(32).is_finished
    with pytest.raises(UserError, match=r"made with sampling\.temperature = 1\.0, now it is 0.5"):
        _ = samples(128, temperature=0.5).is_finished
    samples(128).begin()
    assert not samples(128).is_finished
    with pytest.raises(UserError, match=r"made with sampling\.num_samples = 128, now it is 64"):
        _ = samples(64).is_finished


def test_greedy_with_several_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature=0 draws the same completion 4 times"):
        roll_out(make_run(tmp_path), temperature=0)


def test_question_seeds_are_far_apart_and_depend_on_seed_round_and_question() -> None:
    seeds = sorted({question_seed(s, r, f"q{i}") for s in range(3) for r in range(3) for i in range(1000)})
    assert len(seeds) == 9000
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 1 << 20
    assert all(0 <= seed < 1 << 62 for seed in seeds)


def idle_share(num_questions: int, engines: int, most: int, num_samples: int = 128) -> float:
    """Share of a pool's time in which an engine has no shard left, while others still work; the mean of ten random sets.

    A question's work varies by a third of its mean, as in real responses to 666 questions of GSM8K. An engine works on the shards it holds in turn and takes one more when one
    is finished, as many at once as the pool would give it.
    """
    shares = []
    sampling = SamplingConfig(num_samples=num_samples, questions_per_shard=most)
    for seed in range(10):
        work_N = np.random.default_rng(seed).gamma(9.0, 1 / 9, num_questions)
        size = shards.shard_size(num_questions, engines, most)
        shards_left = [work_N[i : i + size].sum() for i in range(0, num_questions, size)][::-1]
        sized = sampling.model_copy(update={"questions_per_shard": size})
        in_flight = _shards_in_flight(sized, len(shards_left), engines)
        free_at = [(0.0, engine) for engine in range(engines)]
        held = [[shards_left.pop() for _ in range(in_flight) if shards_left] for _ in range(engines)]
        ends = [0.0] * engines
        while free_at:
            now, engine = heapq.heappop(free_at)
            ends[engine] = now
            if shards_left and now > 0:
                held[engine].append(shards_left.pop())
            if held[engine]:
                heapq.heappush(free_at, (now + held[engine].pop(0), engine))
        shares.append(1 - work_N.sum() / (engines * max(ends)))
    return float(np.mean(shares))


@pytest.mark.parametrize(("engines", "size"), [(1, 32), (8, 32), (16, 15), (32, 7), (64, 4)])
def test_shards_get_smaller_so_that_engines_are_idle_for_less_than_a_twentieth(engines: int, size: int) -> None:
    """GSM8K's training set; with shards of 32 questions 64 engines are idle for an eighth of the time."""
    assert shards.shard_size(7473, engines, 32) == size
    assert idle_share(7473, engines, 32) < 0.05


def test_a_large_set_keeps_large_shards_whatever_the_number_of_engines() -> None:
    assert shards.shard_size(100_000, 64, 32) == 32
    assert shards.shard_size(10, 64, 32) == 4
    assert shards.shard_size(10, 64, 4) == 1


def test_token_ids_are_stored_as_whole_numbers_which_compress_better_than_a_dictionarys_indices(tmp_path: Path) -> None:
    run, ids = RunDirectory(str(tmp_path)), [[i % 50, 5, 2**31 - 1] for i in range(4)]
    rows = [{**row, "completion_ids": ids} for row in samples(8, 4).to_pylist()]
    shards.write_samples(run, pa.Table.from_pylist(rows, schema=SAMPLES), "samples", 0, 4)
    assert shards.read_shard_and_footer(run, "samples", 0)[0]["completion_ids"].to_pylist() == [ids] * 8
    group = pq.read_metadata(run.path("samples", shards.shard_name(0))).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    in_dictionary = {c.path_in_schema.split(".")[0] for c in columns if c.has_dictionary_page}
    assert in_dictionary == set(SAMPLES.names) - {"completion_ids"}


def test_an_engine_never_works_on_more_than_128_shards_at_once() -> None:
    """Each is a thread of its actor: two thousand of them starved everything else on a machine."""
    greedy_one_by_one = SamplingConfig(num_samples=1, questions_per_shard=1)
    assert _shards_in_flight(greedy_one_by_one, 100_000, 1) == 128
    assert _shards_in_flight(SamplingConfig(num_samples=1, questions_per_shard=32), 1_000, 1) == 64
