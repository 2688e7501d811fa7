"""Whole answers as models write them, in kinds: each kind with several wordings, and what must not pass for it."""

from __future__ import annotations

import pytest

from east_ray.answers.extraction import continues, extract_answer
from east_ray.answers.grading import Grader
from east_ray.records import CORRECT, INCORRECT

EQUAL = {
    "short sentences": [
        ("47", "She is 47 years old."),
        ("310", "a total of $310"),
        ("9", "It takes 9 screws"),
        ("85", "The train travels 85 miles in 2 hours."),
        ("23", "Therefore, Mia needs 23 tickets to ride all 7 rides."),
        ("6", "There are only six primes between 1 and 15."),
        ("14", "It's 14 inches."),
        ("250", "So, Tom pays $50 per week x 5 weeks = $250 for the course."),
        ("Friday", "It is Friday"),
        ("45", "So, 9/20 of the kittens are grey, which is 0.45 or 45%."),
        ("72", r"Therefore, the area is \((18 \times 8)/2 = 72\) square meters."),
    ],
    "reasons and qualifiers": [
        ("15", "15 because 5 times 3 is 15"),
        ("g(x)=3x", r"g(x)=3x \text{ for all real } x"),
        ("h(n)=n-2", r"h(n)=n-2, \forall n\in\mathbb{Z}"),
        (r"\frac{\pi}{6}+k\pi", r"\frac{\pi}{6}+m\pi, m \in \mathbb{Z}"),
        (r"\frac{23}{4}", r"\frac{23}{4}, or 5\frac{3}{4} as a mixed number"),
    ],
    "hedges and dressing": [
        ("77", r"\approx 77"),
        ("77", "about 77"),
        ("8", r"{\color{blue}8}"),
        ("8", r"\textcolor{red}{8}"),
        ("8", r"\boldsymbol{8}"),
        ("8", "_8_"),
        ("8", "*8*"),
        ("31", "𝟑𝟏"),
    ],
    "units": [
        ("3.7", r"3.7\,\mathrm{m/s^2}"),
        ("95", r"95\ \frac{\text{km}}{\text{h}}"),
        ("40", "40 kJ/mol"),
        ("17", "17 (oranges)"),
        ("6", "6 (cm)"),
        (r"\frac{3}{4}", "3/4 cup"),
        ("15", "15 N"),
        ("7, 9", r"7\text{ cm}, 9\text{ cm}"),
        ("22", "$22/hour"),
        ("8:00 AM", "8 a.m."),
        (r"\text{1:03 PM}", "1:03 p.m."),
        (r"\text{1:03 PM}", "1:03 pm"),
        (r"\text{1:03 PM}", "At 1:03 P.M."),
        (r"\approx 8.24 \text{ mph}", "8.24"),
        (r"41^{\circ} 30^{\prime}", "41.5"),
    ],
    "choices": [
        ("D", r"\text{(D)}\ 19"),
        ("D", "D. the last one"),
        ("D", "d"),
        (r"\textbf{(D)}\ 19", "19"),
        ("B", "B, it can't be C"),
    ],
    "numbers": [
        ("7000000", "7 million"),
        ("4250000", "4.25 million"),
        ("36", "3 dozen"),
        ("eleven", "11"),
        ("2/3", "0.666..."),
        ("6.28", "6,28"),
        ("2000000", "2.000.000"),
        ("0.003", r"\frac{3}{10}\text{ percent}"),
        ("35", r"{7 \choose 3}"),
        ("-3", "(-27)^{1/3}"),
        (r"\infty", "infinity"),
    ],
    "sets and lists": [
        ("(3,8)", r"x>3 \text{ and } x<8"),
        (r"[-4,6)", r"\{x \mid -4 \le x < 6\}"),
        ("91, 304", "304 and 91"),
        ("91, 304", "91,304"),
        (r"\emptyset", "no solution"),
        ("Thursday", r"\text{Thurs}"),
        (r"\text{Tuesday}", "Tue"),
        (r"\mathbb{R}", "all real numbers"),
        (r"\begin{cases}x=4\\y=7\end{cases}", "x=4, y=7"),
        (r"\begin{pmatrix} 2/9 \\ 4/9 \end{pmatrix}", r"\frac{2}{9}\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 5/9 \\ 1 \end{pmatrix}", r"\begin{pmatrix} \\frac{5}{9} \\ 1 \end{pmatrix}"),
        ("pq-r", "-r+qp"),
        ("x^3+C", "x^3+c"),
        ("12", "x*y=12"),
    ],
}  # fmt: skip
DIFFERENT = [
    ("70", "After 5 hours, Ann and Bob are 70 miles apart."),
    ("40", "You can print 900 pages for $40."),
    ("9", "There are 3 cubes between 9 and 99."),
    ("5", "3 red balls and 5 blue balls"),
    ("4", "4 more than x"),
    ("2x", r"g(x)=3x \text{ for all real } x"),
    ("91304", "91, 304"),
    ("2100", "{2, 100}"),
    ("7", "x+y=7"),
    ("0", "3x-5y+2z=0"),
    ("r^2", "p^2+q^2=r^2"),
    ("x>3 or x<8", "x>3 and x<8"),
    ("0", "e^{-90}"),
    (r"\sqrt5\times10^{-30}", r"\sqrt7\times10^{-30}"),
    ("2,3", "2,2,3"),
    ("12.00", r"\frac{280\sqrt2}{33}"),
    ("7 1/2", "7\n1/2"),
    ("11 am", "11 pm"),
    (r"\text{1:03 PM}", "1:03 a.m."),
    ("4", "The smallest sum is 72. You can confirm this by adding these four numbers up."),
    ("5", "The roots are $x = 5$ and $x = -2$."),
    ("3x-20", "x = 3x - 20"),
    ("529", "The total is 23 (9 + 14), which is prime."),
    ("200", "So a calf that weighs 200 kg weighs 441 pounds."),
    ("4", "Sam has to spend $15 to make 4 liters of juice."),
    (r"\textbf{(D)}\ 19", "(C) 19"),
    ("8", "8 million"),
    ("0.5", "5"),
]


@pytest.mark.parametrize(("reference", "answer"), [pair for pairs in EQUAL.values() for pair in pairs])
def test_a_careful_reader_accepts(grader: Grader, reference: str, answer: str) -> None:
    assert grader.equal(reference, answer) == CORRECT


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_a_careful_reader_refuses(grader: Grader, reference: str, answer: str) -> None:
    assert grader.equal(reference, answer) == INCORRECT


def test_sentences_with_two_possible_numbers_do_not_share_a_cluster(grader: Grader) -> None:
    texts = [f"They are 60 miles apart after {hours} hours." for hours in (4, 5)]
    graded = grader.grade("7", [rf"<answer>{text}</answer>" for text in [*texts, "60"]])
    assert len(set(graded.clusters)) == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Try 8: \\boxed{8}? No.\n</think>\n\nThe answer is 11.", "11"),
        ("<think>Maybe \\boxed{11}? Let me", None),
        ("<think>so \\boxed{11}</think> Anything else?", None),
        ("<think>so \\boxed{11}</think>", "11"),
        ("<think>\nUser: asks for 3+8\n</think>\n\n\\boxed{11}", "11"),
        ("Sure.\n\n**Problem:** Add 3 and 8.\n\n**Solution:** \\boxed{11}", "11"),
        ("\\boxed{11}\n\nQuestion: next?\n\\boxed{12}", "11"),
        ("\\boxed{4}. None of A, B, C fits.\n\n**Answer: D**", "D"),
        ("The answer is not \\boxed{4}. Final answer: 11", "11"),
        ("\\boxed{11}. This answer is correct since 3+8 is 11.", "11"),
        ("#### Step 1: add\n3+8\n\nThe answer is 11.", "11"),
        ("#### 2. Check the sum\nThe answer is 11.", "11"),
        ("#### Final Answer\n11", "11"),
        ("## Final Answer\n\n**11**", "11"),
        ("**Answer**: 11", "11"),
        ("Answer:\nConfidence: 20%", None),
        ("The correct option is (B).", "(B)"),
        ("Option C is correct.", "C"),
        ("so boxed(11).", "11"),
        ("$x=\\boxed{3}$ or $x=\\boxed{8}$.", "3 or 8"),
        ("\\boxed{3}, and \\boxed{8}", "3, 8"),
        ("First \\boxed{3}. Then we add 5 and get \\boxed{8}.", "8"),
        ("所以，答案是11。", "11"),
        ("Đáp án: 11", "11"),
        ("La respuesta es 11.", "11"),
        ("La réponse est $11$.", "11"),
        ("Die Antwort lautet 11.", "11"),
        ("Solving,\n\\[ x = 11 \\]", "x = 11"),
        ("there are **11** apples left", None),
        ("The answer is $x = 3$ or $x = 8$.", "$x = 3$ or $x = 8$"),
    ],
)
def test_the_answer_is_found_where_a_careful_reader_finds_it(text: str, answer: str | None) -> None:
    assert extract_answer(text).answer == answer


def test_an_open_thought_may_be_read_when_asked() -> None:
    assert extract_answer("<think>so \\boxed{11}", open_thought=True).answer == "11"


def test_a_completion_that_runs_on_into_another_turn_is_no_training_text(grader: Grader) -> None:
    texts = ["\\boxed{7}\nUser: and 2+2?\nAssistant: 4", "\\boxed{7}<|im_end|>", "\\boxed{7} done"]
    assert grader.grade("7", texts).run_on == [True, False, False]
    end = extract_answer(texts[0]).end
    assert texts[0][:end] == "\\boxed{7}"
    assert continues(texts[0], end)
