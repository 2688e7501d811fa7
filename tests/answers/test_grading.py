"""Verdicts, clusters and counts of questions: by hand, under permutation, duplication and batching, and under attack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from east_ray.answers.grading import IGNORED, Grader, grade_table
from east_ray.config.sections import GradingConfig
from east_ray.records import CORRECT, ERROR, GRADES, INCORRECT, SAMPLES
from tests.support import hostile


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(GradingConfig(deadline_seconds=2)) as grader:
        yield grader


def boxed(*answers: str | None) -> list[str]:
    return ["I give up" if answer is None else rf"so \boxed{{{answer}}}" for answer in answers]


def samples(rows: list[dict]) -> pa.Table:
    defaults = {"prompt_hash": "", "prompt_tokens": 1, "shortfall": None}
    full = []
    for number, row in enumerate(rows):
        count = len(row["completions"])
        lists = {"finish_reasons": ["stop"] * count, "completion_tokens": [10] * count}
        full.append({"question_id": f"q{number}", **defaults, **lists, **row})
    return pa.Table.from_pylist(full, schema=SAMPLES)


def test_a_question_is_graded_and_clustered_by_meaning(grader: Grader) -> None:
    answers = boxed("1/2", r"\frac12", "0.5", "3", "3.0", "x+1", "1+x", None, None, "Monday")
    graded = grader.grade("0.50", answers)
    assert graded.verdicts == [CORRECT] * 3 + [INCORRECT] * 7
    assert graded.clusters == [0, 0, 0, 1, 1, 3, 3, 2, 2, 4]
    assert graded.cluster_sizes == [3, 2, 2, 2, 1]
    assert graded.cluster_verdicts == [CORRECT] + [INCORRECT] * 4
    assert graded.answers[:2] == ["1/2", r"\frac12"]
    assert graded.answers[7] is None
    assert graded.rules[6:8] == ["boxed", "none"]


def test_what_was_judged_correct_is_one_cluster_whatever_its_key(grader: Grader) -> None:
    """0.333333 passes for 1/3, and stays with it; the same two wrong answers are two clusters."""
    right = grader.grade(r"\frac13", boxed("1/3", "0.333333", "2"))
    assert right.clusters == [0, 0, 1]
    wrong = grader.grade("7", boxed("1/3", "0.333333", "7"))
    assert len(set(wrong.clusters)) == 3


def test_answers_without_a_key_of_our_own_are_compared_by_math_verify(grader: Grader) -> None:
    graded = grader.grade(
        "6", boxed(r"\sum_{k=1}^{3} k", r"\int_0^1 x dx", r"\frac12", r"\gcd(12,18)", r"\lim_{n\to} ?")
    )
    assert graded.verdicts == [CORRECT, INCORRECT, INCORRECT, CORRECT, INCORRECT]
    assert graded.clusters[1] == graded.clusters[2]


def test_string_clusters_are_those_of_the_released_scripts() -> None:
    with Grader(GradingConfig(cluster="string")) as grader:
        graded = grader.grade("0.5", boxed("1/2", "0.5", "0.5", "3", "3.0", None))
    assert graded.verdicts == [CORRECT] * 3 + [INCORRECT] * 3
    assert graded.cluster_sizes == [2, 1, 1, 1, 1]
    assert len(set(graded.clusters)) == 5


def test_unanswered_completions_may_be_left_out_of_the_clusters() -> None:
    with Grader(GradingConfig(unanswered="ignore")) as grader:
        graded = grader.grade("1", boxed("1", None, "2", None))
    assert graded.clusters == [0, IGNORED, 1, IGNORED]
    assert graded.cluster_sizes == [1, 1]
    assert graded.verdicts.count(INCORRECT) == 3


def test_an_answer_past_the_deadline_is_an_error_and_a_cluster_of_its_own(grader: Grader) -> None:
    tower, other = "9^{9^{9^{9}}}", "8^{8^{8^{8}}}"
    graded = grader.grade("7", boxed(tower, "7", tower, "8", other))
    assert graded.verdicts == [ERROR, CORRECT, ERROR, INCORRECT, ERROR]
    assert graded.clusters == [0, 1, 0, 2, 3]
    assert grader.equal("7", tower) == ERROR
    assert grader.equal(tower, tower) == CORRECT


def test_rows_of_a_table_carry_every_count(grader: Grader) -> None:
    table = samples(
        [
            {
                "reference": "4",
                "completions": [*boxed("4", "4.0", "5", "5", "6", None), "", r"\boxed{9^{9^{9^{9}}}}"],
                "finish_reasons": ["stop", "length", "stop", "stop", "unknown", "length", "stop", "stop"],
                "completion_tokens": [1, 2, 3, 4, 5, 6, 7, 8],
                "shortfall": "8 of 9: prompt too long",
            },
            {"reference": "1", "completions": []},
        ]
    )
    grades = grade_table(table, grader)
    assert grades.schema == GRADES
    first, empty = grades.to_pylist()
    counts = {name: value for name, value in first.items() if name.startswith(("num_", "largest", "mean"))}
    assert counts == {
        "num_samples": 8,
        "num_correct": 2,
        "num_incorrect": 5,
        "num_errors": 1,
        "num_unanswered": 2,
        "num_truncated": 2,
        "num_positives": 1,
        "num_negatives": 4,
        "largest_wrong": 2,
        "mean_tokens": 4.5,
    }
    assert first["question_id"] == "q0"
    assert first["shortfall"] == "8 of 9: prompt too long"
    assert first["truncated"] == [False, True, False, False, False, True, False, False]
    assert sum(first["cluster_sizes"]) == 8
    assert empty["num_samples"] == empty["largest_wrong"] == 0
    assert empty["clusters"] == empty["cluster_sizes"] == []


SPELLINGS = r"2 2.0 \frac{4}{2} x=2 3 6/2 \sqrt{9} 1,2 2,1 (1,2) x+1 1+x no No $ 2% \frac{1}{2 9/0 a^2-b^2 (a-b)(a+b)"
ANSWERS = st.sampled_from([*SPELLINGS.split(), "the total is 3", None])
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@FEW
@given(st.lists(ANSWERS, min_size=1, max_size=10), st.randoms())
def test_order_does_not_matter(grader: Grader, answers: list[str | None], random: object) -> None:
    order = list(range(len(answers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    graded = grader.grade("2", boxed(*answers))
    shuffled = grader.grade("2", boxed(*(answers[place] for place in order)))
    assert shuffled.verdicts == [graded.verdicts[place] for place in order]
    assert shuffled.clusters == [graded.clusters[place] for place in order]
    assert shuffled.cluster_sizes == graded.cluster_sizes
    assert shuffled.cluster_verdicts == graded.cluster_verdicts


@FEW
@given(st.lists(ANSWERS, min_size=1, max_size=8), st.integers(2, 4))
def test_repeating_all_completions_multiplies_the_clusters(
    grader: Grader, answers: list[str | None], times: int
) -> None:
    graded, repeated = grader.grade("3", boxed(*answers)), grader.grade("3", boxed(*answers) * times)
    assert repeated.clusters == graded.clusters * times
    assert repeated.cluster_sizes == [size * times for size in graded.cluster_sizes]


@FEW
@given(st.lists(ANSWERS, min_size=2, max_size=10))
def test_clusters_partition_the_completions_by_agreement(grader: Grader, answers: list[str | None]) -> None:
    graded = grader.grade("12345", boxed(*answers))
    sizes = [graded.clusters.count(number) for number in range(len(graded.cluster_sizes))]
    assert sizes == graded.cluster_sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(answers)
    for first, left in zip(graded.clusters, answers, strict=True):
        for second, right in zip(graded.clusters, answers, strict=True):
            if left == right:
                assert first == second


@FEW
@given(st.text(min_size=1, max_size=40))
def test_every_answer_equals_itself(grader: Grader, answer: str) -> None:
    assert grader.equal(answer, answer) == CORRECT


def test_batches_and_workers_leave_the_same_bytes(shared_data: Path) -> None:
    lines = (shared_data / "responses" / "small_math_40q.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines[:12]]
    table = samples([{"reference": row["gold"], "completions": row["responses"]} for row in rows])

    def graded_apart(piece: int, size: int) -> pa.Table:
        with Grader(GradingConfig(answer_tags=True)) as one:
            pieces = [grade_table(table.slice(start, size), one) for start in range(piece, piece + 6, size)]
            return pa.concat_tables(pieces)

    with Grader(GradingConfig(answer_tags=True)) as alone:
        whole = grade_table(table, alone)
    with ThreadPoolExecutor(2) as workers:
        apart = list(workers.map(graded_apart, (0, 6), (1, 3)))
    assert pa.concat_tables(apart).equals(whole)


def test_one_grader_serves_many_threads(grader: Grader) -> None:
    completions = boxed("2", r"\sum_{k=1}^{2} 1", r"\frac{1}{2", "4/2")
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: grader.grade("2", completions), range(16)))
    assert results == [results[0]] * 16
    assert results[0].verdicts == [CORRECT, CORRECT, INCORRECT, CORRECT]


def test_hostile_answers_are_graded_and_none_is_executed(tmp_path: Path) -> None:
    """Every family, at a short deadline. What hangs is an error, and the answers beside it are judged as ever."""
    canary = tmp_path / "canary"
    attacks = hostile.answers(canary)
    assert len(attacks) >= 80
    with Grader(GradingConfig(deadline_seconds=0.3, memory_gib=1)) as grader:
        graded = grader.grade("7", boxed("7", *attacks.values(), "8"))
    verdicts = dict(zip(["right", *attacks, "wrong"], graded.verdicts, strict=True))
    assert verdicts.pop("right") == CORRECT
    assert verdicts.pop("wrong") == INCORRECT
    assert CORRECT not in verdicts.values()
    assert verdicts["tower of four"] == ERROR
    assert all(verdict == INCORRECT for name, verdict in verdicts.items() if name.startswith("code "))
    assert not canary.exists()


def test_hostile_references_are_survived(tmp_path: Path) -> None:
    attacks = list(hostile.answers(tmp_path / "canary").values())[::8]
    with Grader(GradingConfig(deadline_seconds=0.3, memory_gib=1)) as grader:
        verdicts = [grader.equal(attack, "7") for attack in attacks]
        assert CORRECT not in verdicts
        assert grader.equal("7", "7.0") == CORRECT


def test_verdicts_agree_with_math_verify_on_real_answers(shared_data: Path) -> None:
    """A sample of `benchmarks/grading.py`, which measures this on 40,000 responses."""
    from math_verify import parse, verify

    from east_ray.answers.extraction import extract_answer
    from east_ray.answers.normalization import normalise

    lines = (shared_data / "responses" / "small_math_40q.jsonl").read_text(encoding="utf-8").strip().split("\n")
    pairs = set()
    for row in map(json.loads, lines[::4]):
        answers = {extract_answer(text, answer_tags=True).answer for text in row["responses"]}
        pairs |= {(normalise(row["gold"]), normalise(answer)) for answer in answers if answer and len(answer) < 60}
    with Grader(GradingConfig()) as grader:
        ours = {pair: grader.equal(*pair) == CORRECT for pair in pairs}
    theirs = {pair: verify(parse(f"${pair[0]}$"), parse(f"${pair[1]}$")) for pair in pairs}
    differing = [pair for pair in pairs if ours[pair] != theirs[pair]]
    assert len(pairs) > 100
    assert len(differing) <= 1, differing
