"""The word problems: right answers, right working, no leak between splits, and the very questions the adapter was made for."""

from __future__ import annotations

import hashlib
import re

import pytest

from east_ray import Grader
from smollm2.word_problems import ASKED, SPLITS, Problem, make_splits, warm_up_examples


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Problem]]:
    return make_splits()


@pytest.fixture(scope="module")
def problems(splits: dict[str, list[Problem]]) -> list[Problem]:
    return [problem for split in splits.values() for problem in split]


def test_every_answer_is_the_value_of_its_one_line_calculation(problems: list[Problem]) -> None:
    for problem in problems:
        assert re.fullmatch(r"[\d +*/()-]+", problem.line)
        assert eval(problem.line) == problem.answer, problem


def test_every_step_is_right_and_uses_numbers_of_the_question_or_of_earlier_steps(problems: list[Problem]) -> None:
    for problem in problems:
        known = set(re.findall(r"\d+", problem.question)) | ({"2"} if "half" in problem.question.lower() else set())
        for step in problem.steps:
            left, right, result = re.search(r"(\d+) [-+*/] (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
            assert {left, right} <= known, problem
            assert eval(re.search(r"\d+ [-+*/] \d+", step)[0]) == int(result), problem  # type: ignore[index]
            known.add(result)
        assert result == str(problem.answer)


def test_levels_are_the_numbers_of_calculations_and_come_in_turn(splits: dict[str, list[Problem]]) -> None:
    for split, problems in splits.items():
        assert all(problem.level == len(problem.steps) for problem in problems)
        assert [p.level for p in problems] == list(ASKED) * (SPLITS[split] // len(ASKED))


def test_no_question_occurs_twice_and_the_warm_up_sees_none_of_them(problems: list[Problem]) -> None:
    questions = {problem.question for problem in problems}
    assert len(questions) == len(problems)
    warmed = [question for question, _ in warm_up_examples()]
    assert len({*warmed, *questions}) == len(warmed) + len(questions)


def test_the_grader_finds_both_kinds_of_solution_correct(problems: list[Problem]) -> None:
    with Grader() as grader:
        for problem in problems[:50]:
            graded = grader.grade(str(problem.answer), [problem.solution(in_one_line=line) for line in (True, False)])
            assert graded.verdicts == ["correct", "correct"]


def test_questions_read_as_english_sentences(problems: list[Problem]) -> None:
    for problem in problems:
        assert problem.question.endswith("?")
        assert not re.search(r"[{}]|  | [,.?]|, (All|Half|The|He|She) ", problem.question), problem.question
        sentences = re.split(r"(?<=[.?]) ", problem.question.replace("Mr. ", "Mr ").replace("Mrs. ", "Mrs "))
        assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in sentences), problem.question


def test_the_seed_makes_the_questions_that_the_shipped_adapter_was_made_for(problems: list[Problem]) -> None:
    told = "\n".join(f"{p.question} {p.solution(in_one_line=False)} {p.line}" for p in problems)
    warmed = "\n".join(" ".join(example) for example in warm_up_examples())
    assert hashlib.sha256((told + warmed).encode()).hexdigest() == (
        "297325b13a9fe87f385c5532dc6093a68780057772d707adf9522c05e7b07295"
    )
