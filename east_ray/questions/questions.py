"""Questions of a run: read, checked, split, and rendered as prompts once for the whole run.

Errors in a question file are found here, before anything expensive starts.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from east_ray.answers.extraction import reference_answer
from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.prompts import Prompts, Question
from east_ray.questions.sources import read_rows, text_key
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

ROW_GROUP = 1024  # questions: a shard is read without the rest of the file
NO_ANSWER = ("proof", "notfound")  # NuminaMath-1.5's answers to questions that have none to compare with


@dataclass(frozen=True)
class QuestionsSummary:
    """Questions per split, and what was noticed about them."""

    train: int
    validation: int
    test: int
    longest_prompt: int  # tokens
    repeated_train: int  # with the text of an earlier one of the file
    repeated_test: int
    in_test: int  # training questions that are test questions
    instruction_role: str | None


def prepare(
    run: RunDirectory, output: str, *, questions: QuestionsConfig, model: ModelConfig, seed: int
) -> QuestionsSummary:
    """Write the train, validation and test questions with their prompts below `output`.

    Whether a question is held out for validation follows from its text, so that repeats stay together; a test question
    never is.
    """
    prompts = Prompts(load_tokenizer(model), questions)
    train = load_questions(questions.train, questions, questions.train_limit)
    test = load_questions(questions.test, questions, questions.test_limit) if questions.test else []
    train_texts, test_texts = ([text_key(q.question) for q in split] for split in (train, test))
    tested, share = set(test_texts), questions.validation_share
    held_out = {text for text in train_texts if text not in tested and _unit_interval(seed, text) < share}
    splits = {
        "train": [q for q, text in zip(train, train_texts, strict=True) if text not in held_out],
        "validation": [q for q, text in zip(train, train_texts, strict=True) if text in held_out],
        "test": test,
    }
    longest = 0
    for name, rows in splits.items():
        table = prompts.render(rows)
        longest = max([longest, *(len(ids) for ids in table["prompt_token_ids"])])
        run.write_table(table, output, f"{name}.parquet", row_group_size=ROW_GROUP)
    summary = QuestionsSummary(
        **{name: len(rows) for name, rows in splits.items()},
        longest_prompt=longest,
        repeated_train=len(train_texts) - len(set(train_texts)),
        repeated_test=len(test_texts) - len(tested),
        in_test=sum(text in tested for text in train_texts),
        instruction_role=prompts.role,
    )
    for repeated, source in ((summary.repeated_train, questions.train), (summary.repeated_test, questions.test)):
        if repeated:
            logger.warning("%s repeats %d questions, apart from spaces and case", source, repeated)
    if summary.in_test:
        logger.warning("%d training questions are also test questions, which are never held out", summary.in_test)
    return summary


def load_questions(source: str, columns: QuestionsConfig, limit: int | None = None) -> list[Question]:
    """Read and check questions. UserError names the file and line of the first error."""
    questions: list[Question] = []
    seen: dict[str, str] = {}
    unanswerable = 0
    for where, row in read_rows(source):
        reference = read_reference(row.get(columns.answer_column))
        unanswerable += reference in NO_ANSWER
        if columns.skip_without_reference and columns.answer_column in row and reference in (None, *NO_ANSWER):
            logger.warning("%s: skipped, it has no reference answer", where)
            continue
        fallback_id = f"{Path(source.split(':')[0]).stem}-{len(questions):06d}"
        question = _question(row, reference, where, columns, fallback_id)
        if question.question_id in seen:
            raise UserError(
                f"{where}: question id {question.question_id!r} was already used at {seen[question.question_id]}; name a "
                f'column with unique ids in questions.id_column, or set it to "" to number the rows'
            )
        seen[question.question_id] = where
        questions.append(question)
        if len(questions) == limit:
            break
    if not questions:
        raise UserError(f"{source} holds no questions")
    if unanswerable and not columns.skip_without_reference:
        logger.warning(
            f"{source}: the reference of {unanswerable} questions is {' or '.join(NO_ANSWER)}, as NuminaMath marks questions "
            f"that have no answer to compare with; leave them out with questions.skip_without_reference=true"
        )
    return questions


def in_test_set(run: RunDirectory, directory: str) -> frozenset[str]:
    """Ids of training questions whose text, apart from spaces and case, is also a test question."""
    test = run.read_table(directory, "test.parquet", columns=["question"])
    texts = {text_key(text) for text in test["question"].to_pylist()}
    train = run.read_table(directory, "train.parquet", columns=["question_id", "question"])
    ids = zip(train["question_id"].to_pylist(), train["question"].to_pylist(), strict=True)
    return frozenset(question_id for question_id, text in ids if text_key(text) in texts)


def _question(
    row: dict[str, Any], reference: str | None, where: str, columns: QuestionsConfig, fallback_id: str
) -> Question:
    for setting in ("question_column", "answer_column"):
        name = getattr(columns, setting)
        if name not in row:
            raise UserError(f"{where}: no column {name!r} among {sorted(row)}; set questions.{setting}")
    text = row[columns.question_column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {columns.question_column!r} must be non-empty text, got {text!r}")
    if reference is None:
        answer = str(row[columns.answer_column])
        raise UserError(
            f"{where}: no reference answer in {columns.answer_column!r} ({answer[-80:]!r}); give text, a number or a list "
            f"of them: a bare answer, or a solution that ends in #### 42 or \\boxed{{42}}; or leave such questions out with "
            f"questions.skip_without_reference=true"
        )
    given = row.get(columns.id_column)
    labels = {"level": row.get("level"), "subject": row.get("subject", row.get("type"))}
    return Question(
        question_id=fallback_id if given is None else str(given),
        question=text,
        reference=reference,
        **{name: None if value is None else str(value) for name, value in labels.items()},
        where=where,
    )


def read_reference(value: Any) -> str | None:
    """The reference answer in an answer column: text, a number, or a list of them (several answers); None without one."""
    if isinstance(value, list):
        parts = [read_reference(item) for item in value]
        return ", ".join(part.strip().strip("$") for part in parts if part) if parts and all(parts) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # the last: NaN
        return None
    text = str(value)
    return reference_answer(text) or reference_answer(_joined(text))


def _joined(text: str) -> str:
    """A formula over several lines as one line; empty for prose, which is a solution without a marked answer."""
    bare = re.sub(r"\\(?:begin|end|text|mathrm|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+", " ", text)
    if re.search(r"[^\W\d_]{2,}[ \t]+[^\W\d_]{2,}", bare):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if re.search(r"\\begin|\\\[|\$\$", text):
        return " ".join(lines)
    return ", ".join(line.rstrip(",;") for line in lines)


def _unit_interval(seed: int, text: str) -> float:
    """A number in [0, 1) that depends only on the run seed and the text."""
    digest = hashlib.sha256(f"validation/{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
