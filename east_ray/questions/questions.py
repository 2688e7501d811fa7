"""Questions of a run: read, checked, split, and rendered as prompts once for the whole run.

Errors in a question file are found here, before anything expensive starts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from east_ray.answers.extraction import reference_answer
from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.sources import read_rows, text_key
from east_ray.records import QUESTIONS, UserError, prompt_hash
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A question with its bare reference answer; `where` is its file and line, for errors."""

    question_id: str
    question: str
    reference: str
    level: str | None
    subject: str | None
    where: str


@dataclass(frozen=True)
class QuestionsSummary:
    """Questions per split; `longest_prompt` in tokens."""

    train: int
    validation: int
    test: int
    longest_prompt: int


def prepare(
    run: RunDirectory, output: str, *, questions: QuestionsConfig, model: ModelConfig, seed: int
) -> QuestionsSummary:
    """Write the train, validation and test questions with their prompts below `output`."""
    tokenizer = load_tokenizer(model)
    train = load_questions(questions.train, questions, questions.train_limit)
    held_out = {q.question_id for q in train if _unit_interval(seed, q.question_id) < questions.validation_share}
    splits = {
        "train": [q for q in train if q.question_id not in held_out],
        "validation": [q for q in train if q.question_id in held_out],
        "test": load_questions(questions.test, questions, questions.test_limit) if questions.test else [],
    }
    longest = 0
    for name, rows in splits.items():
        table = render(rows, tokenizer, questions.system_prompt)
        longest = max([longest, *(len(ids) for ids in table["prompt_token_ids"])])
        run.write_table(table, output, f"{name}.parquet")
    return QuestionsSummary(**{name: len(rows) for name, rows in splits.items()}, longest_prompt=longest)


def load_questions(source: str, columns: QuestionsConfig, limit: int | None = None) -> list[Question]:
    """Read and check questions. UserError names the file and line of the first error."""
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(source):
        if columns.skip_without_reference and not reference_answer(str(row.get(columns.answer_column) or "")):
            logger.warning("%s: skipped, it has no reference answer", where)
            continue
        question = _question(row, where, columns, fallback_id=f"{Path(source.split(':')[0]).stem}-{len(questions):06d}")
        if question.question_id in seen:
            raise UserError(
                f"{where}: question id {question.question_id!r} was already used at {seen[question.question_id]}; ids must be unique"
            )
        seen[question.question_id] = where
        questions.append(question)
        if len(questions) == limit:
            break
    if not questions:
        raise UserError(f"{source} holds no questions")
    return questions


def render(questions: Iterable[Question], tokenizer: Any, system_prompt: str | None) -> pa.Table:
    """Questions with their prompts as text and token ids (records.QUESTIONS)."""
    rows = []
    for q in questions:
        messages = [{"role": "user", "content": q.question}]
        if system_prompt:
            messages.insert(0, {"role": "system", "content": system_prompt})
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        rows.append(
            {
                "question_id": q.question_id,
                "question": q.question,
                "reference": q.reference,
                "level": q.level,
                "subject": q.subject,
                "prompt": prompt,
                "prompt_token_ids": ids,
                "prompt_hash": prompt_hash(ids),
            }
        )
    return pa.Table.from_pylist(rows, schema=QUESTIONS)


def in_test_set(run: RunDirectory, directory: str) -> frozenset[str]:
    """Ids of training questions whose text, apart from spaces and case, is also a test question."""
    test = run.read_table(directory, "test.parquet", columns=["question"])
    texts = {text_key(text) for text in test["question"].to_pylist()}
    train = run.read_table(directory, "train.parquet", columns=["question_id", "question"])
    ids = zip(train["question_id"].to_pylist(), train["question"].to_pylist(), strict=True)
    return frozenset(question_id for question_id, text in ids if text_key(text) in texts)


def _question(row: dict[str, Any], where: str, columns: QuestionsConfig, fallback_id: str) -> Question:
    for setting in ("question_column", "answer_column"):
        name = getattr(columns, setting)
        if name not in row:
            raise UserError(f"{where}: no column {name!r} among {sorted(row)}; set questions.{setting}")
    text = row[columns.question_column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {columns.question_column!r} must be non-empty text, got {text!r}")
    answer = row[columns.answer_column]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{where}: {columns.answer_column!r} must be text or a number, got {answer!r}")
    reference = reference_answer(str(answer))
    if not reference:
        raise UserError(
            f"{where}: no reference answer in {columns.answer_column!r} ({str(answer)[-80:]!r}); give a bare answer, or a "
            f"solution that ends in #### 42 or \\boxed{{42}}, or set questions.skip_without_reference=true"
        )
    given = row.get(columns.id_column)
    return Question(
        question_id=fallback_id if given is None else str(given),
        question=text,
        reference=reference,
        level=_optional(row.get("level")),
        subject=_optional(row.get("subject", row.get("type"))),
        where=where,
    )


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


def _unit_interval(seed: int, question_id: str) -> float:
    """A number in [0, 1) that depends only on the run seed and the question."""
    digest = hashlib.sha256(f"validation/{seed}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
