"""More whole answers in kinds, written before any of them was tried: what a careful reader accepts, and what not.

`test_variants.py` has the first hundred; these are the kinds again with other words, units, languages and numbers.
"""

from __future__ import annotations

import pytest

from east_ray.answers.extraction import extract_answer
from east_ray.answers.grading import Grader
from east_ray.records import CORRECT, INCORRECT

EQUAL = {
    "short sentences": [
        ("52", "Lena is 52 years old."),
        ("415", "They raised a total of $415."),
        ("9", "He needs 9 more stamps."),
        ("16", "Each of them received 16 marbles."),
        ("31.5", "Each ticket costs $31.50."),
        ("7", "It will take Ben 7 days to read 210 pages."),
        ("40", "You can print 40 posters for $12."),
        ("60", "Tom walks 60 miles"),
        ("45", "The answer would be 45 kilograms"),
        ("18", "18 is the answer."),
        ("5", "Mia picked 5 more apples than Joe."),
        ("21", "There are twenty-one students in the class."),
        ("102", "one hundred and two"),
        ("47", "forty seven"),
        ("1200", "The tank holds one thousand two hundred liters."),
        ("Tuesday", "It will be a Tuesday."),
    ],
    "a clause behind the value": [
        ("47", "We get $6^2 + 11 = 47$, which is prime."),
        ("84", "Their sum is 84, which is divisible by 7."),
        ("15", "The smallest such number is 15, because 15 is the first multiple of 3 and 5."),
        ("6", "The largest gap is 6, with the digits being either 1 and 7 or 2 and 8."),
        ("5/8", r"We have $\frac{10}{16}$, which simplifies to $\frac{5}{8}$."),
        ("130", "There are 90 boys and 40 girls, making a total of 130 pupils."),
        ("12", "She needs 96 / 8 = 12 weeks to save $96."),
        ("18", "18 per day, which is 126 per week"),
        ("23", "The total is 23 (9 + 14) which is prime."),
    ],
    "text after the answer": [
        ("331", "So the cow weighs 331 kilograms. You did it!"),
        ("17", "Thus $n = 17$. I hope this helps!"),
        ("8", "We find $t = 8$. Because time cannot be negative, we discard the other root."),
    ],
    "a count and its list": [
        ("4", "There are four such numbers: 13, 31, 103 and 301."),
        ("6", "There are 6 such integers, which are: 2, 3, 5, 7, 11, 13."),
        ("3", "There are 3 solutions. They are: 2, 5 and 9."),
        ("5", "Between 50 and 90, there are five such numbers: 53, 59, 61, 67, 71."),
        ("3", "Three values, $1$, $4$, and $9$."),
        ("2,7", "The solutions are 2 and 7."),
        ("-4, 6", "The roots are $x = 6$ and $x = -4$."),
        ("1,3,9", "The three integers are 1, 3, and 9."),
    ],
    "several sentences": [
        ("82", "1 pound is 0.4536 kg, so we divide and get 82.013. To the nearest whole pound, the dog weighs 82 pounds."),
        ("24", "Ann walks 2 miles an hour. In 12 hours, she covers a distance of (2 mph * 12 hours) = 24 miles."),
        ("13", "Solving, we have $7n = 91$.\nSo, the value of $n$ is 13."),
        ("9", "Using the formula, \\[ x = \\frac{18}{2} \\]\n\nTherefore, she bought 9 pens."),
        (r"8\sqrt2", r"1. The side is 2\sqrt2. 2. The perimeter is \(4 \times s = 4 \times 2\sqrt{2} = 8\sqrt{2}\) feet."),
    ],
    "aligned derivations": [
        ("3-y", r"\begin{eqnarray*} 5-(2+y) & = & 5-2-y \\ & = & 3-y \end{eqnarray*}"),
        ("14", r"\begin{align*} 2x+2 &= 30 \\ 2x &= 28 \\ x &= 14 \end{align*}"),
        ("1-y", r"2-(1+y)\\=2-1-y\\=1-y"),
    ],
    "qualifiers": [
        ("f(x)=5x", r"f(x)=5x \text{ for every real } x"),
        (r"\frac{\pi}{3}+2k\pi", r"\frac{\pi}{3}+2n\pi, \quad n\in\mathbb{Z}"),
        ("n^2+1", r"n^2+1 \text{ for } n \ge 1"),
    ],
    "hedges and dressing": [
        ("63", "approximately 63"),
        ("63", r"\approx 63 \text{ cm}"),
        ("63", r"\color{red}{63}"),
        (r"\frac{3}{8}", r"\purple{\frac{3}{8}}"),
        (r"\frac{3}{8}", r"\blue{\dfrac{3}{8}}"),
        ("63", "***63***"),
        ("4.6", r"$4.6$ cm \hspace{0.2in}"),
        ("7", r"\textbf7"),
        ("63", r"\underline{63}"),
        ("63", "(answer) 63"),
    ],
    "choices": [
        ("B", "(B) 14 km"),
        ("B", "B: 14"),
        (r"\textbf{(E)}\ 30", "E"),
        ("30", r"\textbf{(E)}\ 30"),
    ],
    "units, money, times": [
        ("11", "11 (pencils)"),
        ("2.5", r"2.5\ \text{m}\cdot\text{s}^{-2}"),
        ("72", "72 km/h"),
        (r"\frac{5}{6}", "5/6 cup"),
        ("450", r"450 \frac{\text{mi}}{\text{h}}"),
        ("14.50", "$14.50"),
        ("3, 8", r"3 \text{ m}, 8 \text{ m}"),
        (r"4:15 \text{ PM}", "4:15 p.m."),
        (r"4:15 \text{ PM}", "4:15 pm"),
        (r"9 \text{ AM}", "9:00 a.m."),
        (r"12^{\circ} 15^{\prime}", "12.25"),
        ("762", "762 M&Ms"),
        (r"25\%", "25 percent"),
    ],
    "numbers": [
        ("3200000", "3.2 million"),
        ("60", "5 dozen"),
        ("7", "seven"),
        ("12.5", "12,5"),
        ("4000000", "4.000.000"),
        ("25000", "25 000"),
        ("10", r"{5 \choose 2}"),
        (r"-\infty", "-inf"),
        (r"\frac{1}{7}", "0.142857142857"),
        ("6.02e23", r"6.02 \times 10^{23}"),
        ("5:3", "5 to 3"),
        (r"\frac{5}{3}", "5:3"),
        (r"14\frac{2}{3}", "14 and 2/3 liters"),
        ("130 flowers", "90 + 40 = <<90+40=130>>130 flowers"),
    ],
    "sets, intervals, lists, matrices": [
        ("(1,4]", r"\{x : 1 < x \le 4\}"),
        ("[2,7)", r"2 \le x < 7"),
        (r"(-\infty,-1)\cup(2,\infty)", r"x<-1 \text{ or } x>2"),
        ("(2,9)", r"x>2 \text{ and } x<9"),
        (r"\emptyset", "There is no solution."),
        (r"\emptyset", "The equation has no solutions"),
        (r"(-\infty,\infty)", "all real numbers"),
        ("1,2,2", "2, 1, 2"),
        ("-3, 5", r"x=5 \text{ or } x=-3"),
        (r"\pm 6", "6, -6"),
        ("(x,y)=(2,-5)", "x=2, y=-5"),
        (r"\begin{pmatrix}1&2\\0&3\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\0&3\end{array}\right]"),
        (r"\begin{pmatrix}1/4\\2\end{pmatrix}", r"\begin{bmatrix}\\frac{1}{4}\\2\end{bmatrix}"),
    ],
    "what looks alike": [
        ("64, 128", "128, 64"),
        ("11700, 11000", "11,700, 11,000"),
        ("uv-w", "-w+vu"),
    ],
    "reasons before and behind": [
        ("90", "Since Rosa has 55 stamps, she has a total of 90 stamps."),
        ("4", "Because he can only buy whole boxes, he will need to buy 4 boxes."),
        ("6", "As 9 of the pens are red, there are 6 blue pens."),
        ("12", "Of those 30 guests, 18 leave early. That leaves 12 guests who stay."),
        ("53", "Tim ran 110 km and Ana 57 km. Tim ran 53 km farther than Ana."),
        ("-4", "3x=-12 Therefore, x=-4"),
        ("340", "340g"),
        ("15000", "15000.&"),
        ("80", "Each would have 80 after sharing. Your answer depends on rounding."),
    ],
}  # fmt: skip
DIFFERENT = {
    "short sentences": [
        ("210", "It will take Ben 7 days to read 210 pages."),
        ("12", "You can print 40 posters for $12."),
        ("5", "5 more than y"),
        ("3", "There are 4 primes between 3 and 14."),
    ],
    "a clause behind the value": [
        ("529", "The total is 23 (9 + 14) which is prime."),
    ],
    "a count and its list": [
        ("2", "The solutions are 2 and 7."),
        ("6", "The roots are $x = 6$ and $x = -4$."),
    ],
    "qualifiers": [
        ("5", r"f(x)=5x \text{ for every real } x"),
    ],
    "choices": [
        (r"\textbf{(E)}\ 30", "(D) 30"),
    ],
    "units, money, times": [
        (r"4:15 \text{ PM}", "4:15 am"),
    ],
    "numbers": [
        ("12,5", "12.5"),
    ],
    "sets, intervals, lists, matrices": [
        (r"x>2 \text{ or } x<9", r"x>2 \text{ and } x<9"),
        ("1,2,2", "1,2"),
        (r"\begin{pmatrix}1&2\\0&3\end{pmatrix}", r"\begin{pmatrix}1&0\\2&3\end{pmatrix}"),
    ],
    "what looks alike": [
        ("64128", "64, 128"),
        ("12", "x+2y=12"),
        ("z^2", "x^2+y^2=z^2"),
        ("0", "e^{-65}"),
        ("54", "x = 3x - 108"),
        ("3x-108", "x = 3x - 108"),
        ("4", "4^{-1}"),
        ("2^{-50}", "2^{-51}"),
        ("12", "12_3"),
    ],
    "reasons before and behind": [
        ("9", "As 9 of the pens are red, there are 6 blue pens."),
        ("7", "Since we know the price is 7, we must find the number of cows, which is not known."),
        ("5", "Given that 5 people came, we cannot say who stayed."),
    ],
}  # fmt: skip
RESPONSES = [
    ("26", "<answer>26</ answer> </think>", CORRECT),
    ("70", r"<answer>$70^\circ$ < /answer> <more> < /more>", CORRECT),
    ("5", "The answer is 5. Let me know if you have any questions!", CORRECT),
    ("5", "\\boxed{5}\n\nThis is a well-known problem from 1998.", CORRECT),
    ("C", "So the correct choice is **C**.", CORRECT),
    ("A", "Therefore option (A) is the correct answer.", CORRECT),
    ("17", "<think>maybe \\boxed{12}</think>\nSo we obtain \\boxed{17}.", CORRECT),
    ("12", r"<think>maybe \boxed{12}, let me check", INCORRECT),
    ("17", "### Final Answer\n\n$17$", CORRECT),
    ("17", "**Final Answer:**\n\n17", CORRECT),
    ("17", "#### Step 3\n9+8\n\n#### 17", CORRECT),
    ("B", "The value is \\boxed{x^2}. Hence none fits but one.\n\nFinal answer: B", CORRECT),
    ("2,-9", r"Hence $x=\boxed{2}$ and $x=\boxed{-9}$.", CORRECT),
    ("17", "\\boxed{17}\nUser: what about 3?\nAssistant: \\boxed{3}", CORRECT),
    ("17", "Question: compute 9+8.\nAnswer: 17", CORRECT),
    ("17", "所以最终答案是 17。", CORRECT),
    ("17", "答案为：$17$", CORRECT),
    ("17", "因此,答案是17个苹果。", CORRECT),
    ("17", "Por lo tanto, la respuesta final es 17.", CORRECT),
    ("17", "La respuesta correcta es: 17 manzanas", CORRECT),
    ("17", "Donc, la réponse finale est 17.", CORRECT),
    ("2.5", "La réponse est donc 2,5 mètres.", CORRECT),
    ("17", "Also ist die Antwort 17.", CORRECT),
    ("17", "Die endgültige Antwort lautet: 17", CORRECT),
    ("17", "Das Ergebnis ist 17 Euro.", CORRECT),
    ("17", "Vậy đáp án là 17.", CORRECT),
    ("17", "Câu trả lời cuối cùng là: $17$", CORRECT),
    ("17", "So 17 is the final answer.", CORRECT),
    ("17", r"The final answer is: $\boxed{17}$. I hope it is correct.", CORRECT),
    ("17", "the answer is clearly 17", CORRECT),
    ("17", r"<answer> </answer> then \boxed{17}", CORRECT),
    ("17", "**Answer**\n\n\\[17\\]", CORRECT),
]


@pytest.mark.parametrize(("reference", "answer"), [pair for pairs in EQUAL.values() for pair in pairs])
def test_another_wording_is_accepted(grader: Grader, reference: str, answer: str) -> None:
    assert grader.equal(reference, answer) == CORRECT


@pytest.mark.parametrize(("reference", "answer"), [pair for pairs in DIFFERENT.values() for pair in pairs])
def test_what_only_looks_alike_is_refused(grader: Grader, reference: str, answer: str) -> None:
    assert grader.equal(reference, answer) == INCORRECT


@pytest.mark.parametrize(("reference", "response", "verdict"), RESPONSES)
def test_a_response_is_graded_on_its_last_word(grader: Grader, reference: str, response: str, verdict: str) -> None:
    answer = extract_answer(response).answer
    assert grader.judge(reference, [answer])[0].verdict == verdict


def test_a_choice_is_grouped_by_its_text_where_the_reference_is_none(grader: Grader) -> None:
    texts = [rf"\boxed{{{answer}}}" for answer in (r"\text{(C)}\ 14", "14", "C")]
    assert len(set(grader.grade("9", texts).clusters)) == 2
    assert grader.grade("C", texts).verdicts == [CORRECT, INCORRECT, CORRECT]


def test_an_answer_without_content_is_no_answer(grader: Grader) -> None:
    graded = grader.grade("9", ["<answer>...</answer>", "<answer>$ </answer>", "no idea"])
    assert graded.answers == [None, None, None]
    assert graded.cluster_sizes == [3]
