"""Why a question is dropped, which completions are chosen, and the rows made of them; on hand-made grades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.config.sections import SelectionConfig
from east_ray.examples.choice import Choice, choose, training_rows
from east_ray.records import GRADES
from east_ray.weighting.keep import REASONS, REMEDIES, drop_reasons
from tests.support.graded import grades_row

RIGHT, WRONG = "gold", "42"

DROPPED = {
    "no samples": grades_row("q", [], shortfall="engine died"),
    "grader error": grades_row("q", ["slow", "slow"], errors=["slow"]),
    "truncated": grades_row("q", [None, None], truncated=[True, True]),
    "all wrong": grades_row("q", [WRONG, None]),
    "all correct": grades_row("q", [RIGHT, RIGHT]),
    "no usable positive": {**grades_row("q", [RIGHT, WRONG]), "num_positives": 0},
    "no usable negative": {**grades_row("q", [RIGHT, WRONG]), "num_negatives": 0},
}


def drop_reason(row: dict[str, Any], keep: str, excluded: Collection[str] = frozenset()) -> str | None:
    return drop_reasons(pa.Table.from_pylist([row], schema=GRADES), keep, excluded)[0].as_py()


def chosen(row: dict[str, Any], completions: list[str] | None = None, **settings: Any) -> Choice:
    defaults = {"negative": "random", "pairs": 1, "seed": 0, "round_index": 0}
    return choose(row, completions or [f"text {i}" for i in range(row["num_samples"])], **{**defaults, **settings})


@pytest.mark.parametrize("reason", DROPPED)
def test_a_question_is_dropped_for_its_reason(reason: str) -> None:
    assert drop_reason(DROPPED[reason], "mixed") == reason


def test_mixed_questions_are_kept() -> None:
    assert drop_reason(grades_row("q", [RIGHT, WRONG]), "mixed") is None
    assert drop_reason(grades_row("q", [RIGHT, None, "slow"], errors=["slow"]), "mixed") is None


def test_solved_keeps_questions_without_a_negative() -> None:
    assert drop_reason(DROPPED["all correct"], "solved") is None
    assert drop_reason(DROPPED["no usable negative"], "solved") is None
    assert drop_reason(DROPPED["all wrong"], "solved") == "all wrong"


def test_correct_completions_that_were_all_cut_off_count_as_truncated() -> None:
    assert drop_reason(grades_row("q", [RIGHT, WRONG], truncated=[True, False]), "mixed") == "truncated"


def test_the_test_set_comes_before_every_other_reason() -> None:
    assert all(drop_reason(row, "mixed", {"q"}) == "in test set" for row in DROPPED.values())
    assert drop_reason(grades_row("q", [RIGHT, WRONG]), "mixed", {"another"}) is None


def test_an_error_is_neither_right_nor_wrong() -> None:
    assert drop_reason(grades_row("q", [RIGHT, "slow"], errors=["slow"]), "mixed") == "all correct"
    assert drop_reason(grades_row("q", [WRONG, "slow"], errors=["slow"]), "mixed") == "all wrong"


ANSWERS = st.lists(st.sampled_from([RIGHT, WRONG, "7", None, "slow"]), max_size=6)


@given(st.lists(ANSWERS, min_size=1, max_size=12), st.sampled_from(["mixed", "solved"]))
def test_every_question_is_kept_or_has_exactly_one_named_reason(answers: list[list[str | None]], keep: str) -> None:
    rows = [grades_row(f"q{i}", row, errors=["slow"]) for i, row in enumerate(answers)]
    reasons = drop_reasons(pa.Table.from_pylist(rows, schema=GRADES), keep).to_pylist()
    assert reasons == [drop_reason(row, keep) for row in rows]
    for row, reason in zip(rows, reasons, strict=True):
        assert reason is None or reason in REASONS
        usable = RIGHT in row["answers"] and (keep == "solved" or row["num_incorrect"] > 0)
        assert (reason is None) == usable


def test_positives_finished_and_carry_an_answer() -> None:
    row = grades_row("q", [RIGHT, RIGHT, RIGHT, WRONG], truncated=[True, False, False, False])
    row["answers"][1] = None
    assert chosen(row, pairs=5).positives == (2,)


def test_completions_that_run_on_into_another_turn_are_chosen_for_nothing() -> None:
    row = grades_row("q", [RIGHT, RIGHT, WRONG, WRONG]) | {"run_on": [True, False, False, True]}
    assert chosen(row, pairs=5) == Choice((1,), (2,))


def test_negatives_that_were_cut_are_drawn_unless_the_setting_leaves_them_out() -> None:
    row = grades_row("q", [RIGHT, WRONG, WRONG], truncated=[False, True, False])
    assert set(chosen(row, pairs=5).negatives) == {1, 2}
    assert chosen(row, pairs=5, truncated_negatives=False).negatives == (2,)
    assert "truncated_negatives" not in SelectionConfig().identity()  # which finished runs do not know


def test_negatives_are_incorrect_and_not_empty() -> None:
    row = grades_row("q", [RIGHT, WRONG, None, "slow", None], errors=["slow"])
    assert set(chosen(row, ["a", "b", "c", "d", " \n"], pairs=5).negatives) == {1, 2}


def test_dominant_negatives_come_from_the_largest_wrong_cluster_with_a_usable_completion() -> None:
    row = grades_row("q", [RIGHT] * 5 + [None] * 3 + ["7"] * 2 + [WRONG])
    texts = [f"text {i}" for i in range(11)]
    assert set(chosen(row, texts, negative="dominant", pairs=9).negatives) == {5, 6, 7}
    texts[5:8] = ["", "", ""]
    assert set(chosen(row, texts, negative="dominant", pairs=9).negatives) == {8, 9}


def test_dominant_falls_back_to_any_negative_when_only_ignored_completions_are_wrong() -> None:
    row = {**grades_row("q", [RIGHT, None]), "clusters": [0, -1]}
    assert chosen(row, negative="dominant").negatives == (1,)


def test_choices_depend_on_seed_round_and_question() -> None:
    row = grades_row("q", [RIGHT, WRONG] * 30)
    assert chosen(row) == chosen(row)
    others = [chosen(row, seed=1), chosen(row, round_index=1), chosen({**row, "question_id": "p"})]
    assert len({chosen(row), *others}) == 4


def test_choices_are_uniform() -> None:
    counts: Counter[int] = Counter()
    for i in range(4000):
        counts.update(chosen(grades_row(f"q{i}", [RIGHT] * 4 + [WRONG])).positives)
    # Chi-square with 3 degrees of freedom: 16.3 has p = 0.001.
    assert sum((counts[k] - 1000) ** 2 / 1000 for k in range(4)) < 16.3


def test_drawing_more_completions_later_keeps_most_choices() -> None:
    rows = [grades_row(f"q{i}", [RIGHT, WRONG] * 64) for i in range(200)]
    same = 0
    for row in rows:
        half = {**row, **{key: row[key][:64] for key in ("answers", "verdicts", "clusters", "truncated")}}
        same += chosen(half).positives == chosen(row).positives
    assert 70 <= same <= 130  # the winner is in the first half half of the time


def test_several_pairs_are_drawn_without_replacement() -> None:
    choice = chosen(grades_row("q", [RIGHT, WRONG] * 8), pairs=5)
    assert len(set(choice.positives)) == len(set(choice.negatives)) == 5


def test_rows_are_in_trls_own_formats() -> None:
    texts, choice, ids, cut = ["good", "bad"], Choice((0,), (1,)), [[7, 2], [8]], [False, True]
    good = {"prompt": "P", "completion": "good", "completion_ids": [7, 2]}
    bad = {"prompt": "P", "completion": "bad", "completion_ids": [8]}
    assert training_rows("sft", "P", texts, choice, ids, cut) == [good]
    pair = {"prompt": "P", "chosen": "good", "rejected": "bad", "chosen_ids": [7, 2], "rejected_ids": [8], "cut": True}
    assert training_rows("dpo", "P", texts, choice, ids, cut) == [pair]
    assert training_rows("kto", "P", texts, choice, ids, cut) == [
        {**good, "label": True, "cut": False},
        {**bad, "label": False, "cut": True},
    ]


def test_imported_completions_have_no_ids() -> None:
    rows = training_rows("dpo", "P", ["good", "bad"], Choice((0,), (1,)))
    assert (rows[0]["chosen_ids"], rows[0]["rejected_ids"], rows[0]["cut"]) == (None, None, False)


def test_a_loss_that_needs_a_negative_gets_as_many_pairs_as_there_are() -> None:
    texts, choice = ["a", "b", "c"], Choice((0, 1), (2,))
    assert [len(training_rows(loss, "P", texts, choice)) for loss in ("sft", "dpo", "kto")] == [2, 1, 2]
    assert training_rows("dpo", "P", texts, Choice((0,), ())) == []


def test_every_reason_that_may_leave_nothing_to_train_on_has_a_remedy() -> None:
    assert list(REMEDIES) == list(REASONS)
