"""Extraction of answers: each rule, their order, the limits, and every reference of GSM8K and MATH."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.answers.extraction import MAX_ANSWER_CHARS, extract_answer, reference_answer
from tests.support import hostile


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        (r"so \boxed{5}.", "5", "boxed"),
        (r"\boxed{1} then \boxed{ 2 }", "2", "boxed"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed{\boxed{9}}", "9", "boxed"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
        (r"\boxed{3} and later \boxed{", "3", "boxed"),
        (r"\boxed{3} and later \boxed{ }", "3", "boxed"),
        (r"\boxed{3} and later \boxed{\frac{1}{2}", "3", "boxed"),
        (r"hence $\boxed 2$.", "2", "boxed"),
        (r"\\boxed{4}", "4", "boxed"),
        ("reasoning\n#### 42", "42", "hashes"),
        ("#### 1\n#### $1,234\nbye", "$1,234", "hashes"),
        ("### Heading\nThe answer is 6.", "6", "phrase"),
        ("The final answer is: $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}", "phrase"),
        ("Answer: 40,000.\nThanks", "40,000", "phrase"),
        ("The answer is 3. No, the answer is 4.", "4", "phrase"),
        ("Therefore, the answer (arabic numerals) is 36.", "36", "phrase"),
        (r"**Answer:** \(x = 7\)", "x = 7", "phrase"),
        (r"the answer is 1, or #### 2, or \boxed{3}", "3", "boxed"),
        ("the answer is 1 #### 2", "2", "hashes"),
        ("I do not know", None, "none"),
        ("", None, "none"),
        (r"\boxed{}", None, "none"),
        ("the total is 12", None, "none"),
        (r"\boxed{1}" + "\n\nQuestion: what else?\n" + r"\boxed{2}", "1", "boxed"),
        ("The answer is 8.\nUser: and now?\nAssistant: the answer is 9.", "8", "phrase"),
        ("Question: what is 1+1?\nThe answer is 2.", "2", "phrase"),
    ],
)
def test_the_answer_is_found_by_the_first_rule_that_applies(text: str, answer: str | None, rule: str) -> None:
    found = extract_answer(text)
    assert (found.answer, found.rule) == (answer, rule)


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        ("<think>2</think> <answer> 5 </answer>", "5", "answer_tags"),
        ("<answer>1</answer> no, <answer>2</answer>", "2", "answer_tags"),
        (r"\boxed{1} <answer>it is \boxed{2}</answer>", "2", "answer_tags"),
        ("<answer>The answer is 3.</answer>", "3", "answer_tags"),
        ("<answer>never closed 4", "never closed 4", "answer_tags"),
        ("<answer>5</answer> <answer> </answer>", "5", "answer_tags"),
        (r"no tag: \boxed{6}", "6", "boxed"),
        ("only a number: 1,234.5 and nothing else", "1,234.5", "last_number"),
        ("from 3 to -7/2", "-7/2", "last_number"),
    ],
)
def test_tags_and_the_last_number_can_be_switched(text: str, answer: str, rule: str) -> None:
    found = extract_answer(text, last_number=True)
    assert (found.answer, found.rule) == (answer, rule)
    assert extract_answer(text, answer_tags=False).rule not in ("answer_tags", "last_number")


def test_an_answer_beyond_the_limits_is_none() -> None:
    assert extract_answer(rf"\boxed{{{'1' * MAX_ANSWER_CHARS}}}").rule == "boxed"
    assert extract_answer(rf"\boxed{{{'1' * (MAX_ANSWER_CHARS + 1)}}}").rule == "too_long"
    assert extract_answer(rf"\boxed{{{'(' * 101 + ')' * 101}}}").rule == "too_deep"


@pytest.mark.parametrize("name", sorted(hostile.completions()))
def test_a_megabyte_of_garbage_is_read_to_its_end(name: str) -> None:
    """The suite's time limit is the judge: anything quadratic takes hours here."""
    text = hostile.completions()[name]
    found = extract_answer(text, answer_tags=True, last_number=True)
    assert found.answer is None or len(found.answer) <= MAX_ANSWER_CHARS
    assert extract_answer(text + "\n\\boxed{17}").answer in ("17", found.answer)


@given(st.text(max_size=300))
def test_any_text_has_an_extraction_and_the_answer_is_part_of_it(text: str) -> None:
    found = extract_answer(text, answer_tags=True, last_number=True)
    assert found.answer is None or (found.answer in text and found.answer.strip() == found.answer != "")


@given(st.text(alphabet="01 {}\\boxedfrac<>answer/#$.=:", max_size=120))
def test_a_balanced_box_is_found_wherever_it_stands(text: str) -> None:
    assert extract_answer(text + "\\boxed{12345}").answer == "12345"


# The answer column of MATH holds the last box. Two solutions end in an empty one; in the others it is one of several
# solutions that the question asks for ("separated by commas"), or one of two forms of the same.
NOT_THE_LAST_BOX = {
    "math_train": [334, 504, 3694, 3997, 4253, 5341, 5343, 5419, 5446, 6308, 6780, 6816, 6843, 7414],
    "math_test": [414, 2549, 2703, 2716, 2912, 3341, 3628, 4258, 4559, 4860],
}


@pytest.mark.parametrize("dataset", ["gsm8k_train", "gsm8k_test", "math_train", "math_test"])
def test_references_of_the_datasets_are_read_from_their_solutions(shared_data: Path, dataset: str) -> None:
    lines = (shared_data / "datasets" / f"{dataset}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    differing = [row["id"] for row in rows if reference_answer(row["solution"]) != row["answer"].strip()]
    assert [int(name.rpartition("-")[2]) for name in differing] == NOT_THE_LAST_BOX.get(dataset, [])


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("42", "42"),
        (" 3/4 ", "3/4"),
        ("steps\n#### 42", "42"),
        (r"thus $\boxed{x^2}$", "x^2"),
        ("a\nb", None),
        ("", None),
    ],
)
def test_a_reference_may_be_bare_or_a_whole_solution(text: str, reference: str | None) -> None:
    assert reference_answer(text) == reference
