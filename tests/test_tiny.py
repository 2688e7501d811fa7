"""The bundled model and questions: what the files promise, and that the script makes exactly these questions."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.make_tiny_model import (
    GUESS_SHARE,
    IGNORED,
    LEVELS,
    SYSTEM_PROMPT,
    make,
    make_question,
    make_questions,
    make_tokenizer,
    pretraining_batches,
)

TOKENIZER = make_tokenizer()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def work_out(question: str) -> list[Fraction]:
    """The running totals of a question's text, computed without the code that made it."""
    start, operations = re.fullmatch(r"Start with (\d+), then (.+)\.", question).groups()  # type: ignore[union-attr]
    totals = [Fraction(start)]
    for operation in operations.split():
        number = Fraction(operation[1:])
        totals.append({"+": totals[-1] + number, "-": totals[-1] - number, "*": totals[-1] * number}[operation[0]])
    return totals


@pytest.fixture(params=["train", "test"])
def questions(request: pytest.FixtureRequest, tiny_questions: Path) -> list[dict[str, Any]]:
    return read(tiny_questions / f"{request.param}.jsonl")


def test_every_answer_is_what_its_question_works_out_to(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        assert Fraction(row["answer"]) == work_out(row["question"])[-1]


def test_every_solution_shows_each_step_and_ends_in_the_boxed_answer(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        *steps, last = row["solution"].split("\n")
        assert [int(step.split("=")[1]) for step in steps] == work_out(row["question"])[1:]
        assert last == f"\\boxed{{{row['answer']}}}"


def test_levels_are_the_number_of_steps_and_equally_many(questions: list[dict[str, Any]]) -> None:
    counts: dict[int, int] = {}
    for row in questions:
        level = len(work_out(row["question"])) - 1
        assert row["level"] == f"Level {level}"
        counts[level] = counts.get(level, 0) + 1
    assert sorted(counts) == list(LEVELS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_columns_are_those_of_the_gsm8k_and_math_files(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        assert list(row) == ["id", "question", "answer", "solution", "level", "subject"]
        assert all(isinstance(value, str) and value for value in row.values())


def test_no_question_or_id_occurs_twice_in_either_split(tiny_questions: Path) -> None:
    rows = read(tiny_questions / "train.jsonl") + read(tiny_questions / "test.jsonl")
    assert len({row["question"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_script_makes_exactly_the_bundled_questions(tiny_questions: Path) -> None:
    test, train = read(tiny_questions / "test.jsonl"), read(tiny_questions / "train.jsonl")
    rng, taken = random.Random(0), set[str]()
    made = [q.text for q in make_questions(rng, len(test), taken) + make_questions(rng, len(train), taken)]
    assert made == [row["question"] for row in test + train]


@given(seed=st.integers(0, 2**32), level=st.sampled_from(LEVELS))
def test_totals_stay_positive_whole_and_below_two_hundred(seed: int, level: int) -> None:
    totals = work_out(make_question(random.Random(seed), level).text)
    assert len(totals) == level + 1
    assert all(1 <= total < 200 for total in totals)


def test_pre_training_sees_no_bundled_question_and_learns_only_answers(tiny_questions: Path) -> None:
    taken = {row["question"] for split in ("train", "test") for row in read(tiny_questions / f"{split}.jsonl")}
    guesses = {level: [0, 0] for level in LEVELS}
    for step, (ids, labels) in enumerate(pretraining_batches(TOKENIZER, random.Random(1), taken, 20, 200)):
        for row, targets in zip(ids.tolist(), labels.tolist(), strict=True):
            text = TOKENIZER.decode([token for token in row if token != TOKENIZER.pad_token_id])
            prompt, answer = text.removesuffix("<|eos|>").split("<|assistant|>")
            question = prompt.split("<|user|>")[1]
            assert question not in taken
            learned = TOKENIZER.decode([token for token in targets if token != IGNORED])
            assert learned == answer + "<|eos|>"
            if step >= 12:
                counts = guesses[len(work_out(question)) - 1]
                counts[0] += "=" not in answer
                counts[1] += 1
            else:
                assert "=" in answer
    for level, (guessed, total) in guesses.items():
        assert guessed / total == pytest.approx(GUESS_SHARE[level], abs=0.1)


@settings(max_examples=200)
@given(st.text())
def test_the_tokenizer_gives_back_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_printable_ascii_takes_one_token_per_character() -> None:
    text = "".join(chr(code) for code in range(32, 127)) + "\n\t"
    assert len(TOKENIZER.encode(text, add_special_tokens=False)) == len(text)


def test_the_saved_tokenizer_is_the_one_the_script_makes(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(tiny_model)
    assert saved.get_vocab() == TOKENIZER.get_vocab()
    assert saved.chat_template == TOKENIZER.chat_template
    assert (saved.bos_token, saved.eos_token, saved.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")


def test_the_tokenizer_adds_its_beginning_token_as_llamas_does() -> None:
    assert TOKENIZER("5")["input_ids"] == [TOKENIZER.bos_token_id, *TOKENIZER.encode("5", add_special_tokens=False)]


def test_the_chat_template_renders_all_three_roles_and_opens_the_answer() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    whole = TOKENIZER.apply_chat_template(messages, tokenize=False)
    opened = TOKENIZER.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert whole == "<|bos|><|system|>S<|user|>Q<|assistant|>A<|eos|>"
    assert opened == "<|bos|><|system|>S<|user|>Q<|assistant|>"


def test_an_unknown_role_is_refused_by_the_chat_template() -> None:
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_model_is_small_half_precision_and_reads_long_texts(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert sum(path.stat().st_size for path in tiny_model.iterdir()) <= 3_000_000
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert model.dtype == torch.bfloat16
    assert 0.8e6 < model.num_parameters() < 1e6
    assert model.config.max_position_embeddings == 4096
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id


@pytest.mark.parametrize("system", ["", SYSTEM_PROMPT])
def test_before_training_the_model_answers_some_questions_and_not_most(
    tiny_model: Path, tiny_questions: Path, system: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = read(tiny_questions / "test.jsonl")[:150]
    prompts = [
        TOKENIZER.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": row["question"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for row in rows
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    batch = TOKENIZER(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=80, do_sample=False)
    texts = TOKENIZER.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    correct = sum(text.endswith(f"\\boxed{{{row['answer']}}}") for text, row in zip(texts, rows, strict=True))
    assert 0.1 < correct / len(rows) < 0.5


def test_the_script_writes_a_model_that_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make(tmp_path, seed=1, steps=2, batch_size=2, num_train=5, num_test=5)
    assert len(read(tmp_path / "train.jsonl")) == len(read(tmp_path / "test.jsonl")) == 5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(tokenizer)
