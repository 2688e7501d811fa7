"""The normal form keeps what an answer says and drops how it is typeset; nothing changes when it is taken twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from east_ray.answers.canonical import parse
from east_ray.answers.normalization import normalise, words_in
from tests.support import hostile


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("$17$", "17"),
        (r"\(17\)", "17"),
        ("17.", "17"),
        ("**17**", "17"),
        ("{17}", "17"),
        (r"\text{17}", "17"),
        (r"\$1{,}234.50", "1234.50"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        ("-27,000", "-27000"),
        (r"\dfrac{1}{29,\!322,\!216}", r"\frac{1}{29322216}"),
        ("12,34", "12,34"),
        ("(1,234)", "(1,234)"),
        ("18 dollars", "18"),
        ("240 inches.", "240"),
        (r"40\text{ cubic inches}", "40"),
        (r"864 \mbox{ inches}^2", "864"),
        (r"5\text{ m}", "5"),
        (r"v=18\ \text{m}/\text{s}", "v=18"),
        (r"15π square units", r"15 \pi"),
        (r"90^{\circ}", "90"),
        (r"\cos 58^\circ", r"\cos 58^\circ"),
        (r"20 \%", "20%"),
        ("20 percent of them", "20%"),
        ("2xy", "2xy"),
        ("5abc", "5abc"),
        ("5 million", "5000000"),
        ("10 a.m.", "10 am"),
        (r"5\text{ dollars and } 20 \text{ cents}", "5 dollars and 20"),
        (r"\left(\tfrac12,\; 3\right)", r"(\frac12,3)"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\begin{pmatrix}1\\x\end{pmatrix}", r"\begin{pmatrix}1\\x\end{pmatrix}"),
        ("x²+y₁", "x^{2}+y_{1}"),
        ("4√325", r"4 \sqrt{325}"),
        ("１２", "12"),
        (r"a \leqslant b", r"a \le b"),
        ("9**2", "9^2"),
        ("The area of the rectangle is 50 square units.", "50"),
        (r"Therefore the answer is $\frac{6}{11}$.", r"\frac{6}{11}"),
        ("The pirates dug 11 holes on the fourth day", "11"),
        ("12000. Another problem asks for 7", "12000"),
        ("3 red balls and 5 blue balls", "3 red balls and 5 blue balls"),
        ("the set of all real numbers", "the set of all real numbers"),
    ],
)
def test_answers_are_spelled_one_way(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("prose", "value"),
    [
        ("A crate holds 6 jars, 4 to a row. Since there are 9 crates, there are 9 x 6 = 54 jars.", r"9\times 6=54"),
        ("The three sides are 5, 6, and 8, and their sum is $5 + 6 + 8 = 19$.", "5+6+8=19"),
        ("Each tile is 3 cm wide. So the width, which is seven tiles, is 21 cm.", "21"),
        ("We have 40 nails and use 12. Therefore, she can hang 28 pictures in 2 rooms.", "28"),
        ("The multiples are 7, 14, 21 and 28. There are 4 of them.", "4"),
        ("Substituting $b=2$, we get $5b = 10$.</think>", "5b=10"),
        ("When $b=2$, the expression equals $10$.", "10"),
        ("17, because 4 of 21 are broken, and 21 - 4 is the rest", "17"),
        ("Take both rows in turn. " * 30 + "Thus, the total is 8 + 9 = 17 seats.", "8+9=17"),
    ],
)
def test_prose_states_the_value_that_its_last_sentence_ends_in(prose: str, value: str) -> None:
    assert normalise(prose) == value


@pytest.mark.parametrize(
    "prose",
    [
        "We list the divisors. Now we need only those that are less than or equal to $8$.",
        "We know the first and the last. So we need to find how many multiples of 6 there are between 6 and 90.",
        "The smallest such length could not be zero since zero is no length",
        "There are 3 boys for each girl who came. The rest is decided by the teacher alone.",
        "Let the side be $s$. Then we look for the smallest side that is 12 longer than another. We try each.",
        "It weighs 7 kg. This means the load is 50 times the weight of the box.",
        "The first scale is in pounds. What if the second were 30?",
    ],
)
def test_prose_that_only_mentions_a_number_is_no_number(prose: str) -> None:
    canonical = parse(normalise(prose))
    assert canonical is not None
    assert canonical.key.startswith(("text", "words"))
    assert len(words_in(normalise(prose))) > 4


@given(st.text(max_size=80))
def test_taking_the_normal_form_twice_changes_nothing(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@given(st.text(alphabet=r"012 ,.\{}()$%^_=+-/*textfracsqrtpi°√²!&|<>", max_size=60))
def test_taking_the_normal_form_of_something_like_latex_twice_changes_nothing(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@settings(max_examples=30)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["${}$", r"\({}\)", r"\text{{{}}}", "{}.", " {} ", "{{{}}}"]))
def test_wrapping_a_number_does_not_change_it(number: int, wrapper: str) -> None:
    assert normalise(wrapper.format(number)) == str(number)


@pytest.mark.parametrize("piece", ["]=", "x*]*", "1. Aa ", "five ", "so the ", "is 5 ", " and 1/2 ab"])
def test_what_is_longer_than_an_answer_is_not_simplified_piece_by_piece(piece: str) -> None:
    text = piece * 1_000
    assert normalise(text) == text or len(normalise(text)) < 20


def test_what_does_not_settle_in_a_few_passes_stays_as_it_is() -> None:
    assert normalise("7]=") == "7"
    assert normalise("7" + "]=" * 100) == "7" + "]=" * 100


def test_hostile_answers_have_a_normal_form(tmp_path: Path) -> None:
    for answer in hostile.answers(tmp_path / "canary").values():
        assert normalise(normalise(answer[:2_000])) == normalise(answer[:2_000])
