"""Questions from any file or hub dataset, and the prompt, rendered once for the whole run.

Everything that can be wrong with a user's question file is found here, before anything expensive starts.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from east_ray.answers.extraction import reference_answer
from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.records import QUESTIONS, UserError, prompt_hash
from east_ray.runs import storage
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Question:
    """One question with its bare reference answer; `where` names its file and line in errors."""

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
    """Write train, validation and test questions with their rendered prompts below `output`."""
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
    """Read and check questions. UserError names the file and line of the first thing that is wrong."""
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(source):
        if columns.skip_without_reference and not reference_answer(str(row.get(columns.answer_column) or "")):
            logger.warning("%s: left out, it has no reference answer", where)
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


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer. UserError when there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    is_here = Path(model.path).is_dir()
    if is_here and not (Path(model.path) / "config.json").exists():
        raise UserError(
            f"model.path={model.path!r} has no config.json; give a Hugging Face model directory or a hub name"
        )
    if not is_here and storage.is_local(model.path):
        storage.check_hub_name(model.path)
        logger.info("no directory %s here: asking the hub for a model of that name", model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            storage.local_copy(model.path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={model.path!r} comes with Python code of its own; read it, and if you trust it set "
                f"model.trust_remote_code=true"
            ) from None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "copy tokenizer.json and tokenizer_config.json beside the weights"
        if not is_here:
            remedy = "check the path, or the hub name, `hf auth login` and the network"
        raise UserError(f"model.path={model.path!r} has no usable tokenizer ({first}); {remedy}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path={model.path!r} has no chat template; use an instruct model, or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def in_test_set(run: RunDirectory, directory: str) -> frozenset[str]:
    """Ids of training questions whose text, spaces and case aside, is also a test question."""
    test = run.read_table(directory, "test.parquet", columns=["question"])
    texts = {text_key(text) for text in test["question"].to_pylist()}
    train = run.read_table(directory, "train.parquet", columns=["question_id", "question"])
    ids = zip(train["question_id"].to_pylist(), train["question"].to_pylist(), strict=True)
    return frozenset(question_id for question_id, text in ids if text_key(text) in texts)


def read_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each JSON line or Parquet row, one at a time. UserError names the line that is no JSON object."""
    if source.startswith("hf://"):
        yield from _hub_rows(source)
        return
    filesystem, path = _open(source)
    if not _is_file(filesystem, path):
        raise UserError(
            f"no question file at {source}; questions come as .jsonl, .jsonl.gz, .parquet or hf://owner/name[/config]:split"
        )
    if path.endswith(".parquet"):
        try:
            with filesystem.open_input_file(path) as stream:
                batches = pq.ParquetFile(stream).iter_batches(batch_size=64)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield f"{source}, row {number}", row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{source} is not readable as Parquet: {error}; write it again") from None
    elif path.endswith((".jsonl", ".jsonl.gz", ".json")):
        yield from _json_lines(source, filesystem, path)
    else:
        raise UserError(f"{source}: unknown kind of question file; use .jsonl, .jsonl.gz or .parquet")


def _open(source: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).expanduser().absolute())
    try:
        return pafs.FileSystem.from_uri(source)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{source} cannot be opened: {error}") from None


def _is_file(filesystem: pafs.FileSystem, path: str) -> bool:
    try:
        return filesystem.get_file_info(path).type == pafs.FileType.File
    except (pa.ArrowException, OSError, ValueError):  # a loop of links, a NUL byte in the name
        return False


def _json_lines(source: str, filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with filesystem.open_input_file(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else io.BufferedReader(raw)
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if line.strip():
                    where = f"{source}, line {number}"
                    yield where, _json_object(line, where)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{source}, after line {number}: the file is damaged ({error}); fetch or write it again"
        ) from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    if len(line) == MAX_LINE_BYTES:
        raise UserError(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; expected one JSON object per line")
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object in UTF-8 ({error}); mend or delete the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}; mend or delete the line")
    return row


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    name, separator, split = source.removeprefix("hf://").rpartition(":")
    if not separator or not name:
        raise UserError(f"{source}: name the split too, e.g. hf://openai/gsm8k/main:train")
    local = Path(name).is_dir()
    parts = name.split("/")
    path, config = (name, None) if local else ("/".join(parts[:2]), "/".join(parts[2:]) or None)
    try:
        dataset = load_dataset(path, config, split=split)
    except Exception as error:  # the hub client raises many unrelated types
        raise UserError(
            f"{source} cannot be loaded: {error}; check the name, the split, `hf auth login` and the network"
        ) from None
    for number, row in enumerate(dataset, start=1):
        yield f"{source}, row {number}", dict(row)


def _question(row: dict[str, Any], where: str, columns: QuestionsConfig, fallback_id: str) -> Question:
    for setting in ("question_column", "answer_column"):
        name = getattr(columns, setting)
        if name not in row:
            raise UserError(f"{where}: no column {name!r} among {sorted(row)}; set questions.{setting}")
    text = row[columns.question_column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {columns.question_column!r} must be a text that is not empty, got {text!r}")
    answer = row[columns.answer_column]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{where}: {columns.answer_column!r} must be a text or a number, got {answer!r}")
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


def text_key(text: str) -> str:
    """Equal for texts that differ in spaces and case alone."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _unit_interval(seed: int, question_id: str) -> float:
    """A number in [0, 1) that depends on nothing but the run seed and the question."""
    digest = hashlib.sha256(f"validation/{seed}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
