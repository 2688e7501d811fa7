"""`east-ray import-samples`: completions sampled elsewhere, written as if they had been sampled here.

A line (a JSON object or Parquet row) names a question, by text or id, and holds completions; several lines may name the
same question. Lines are first spread over one spill file per shard, so memory holds one shard, whatever their order.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from east_ray.config.sections import ModelConfig
from east_ray.models import load_tokenizer
from east_ray.questions.sources import read_rows, text_key
from east_ray.records import SAMPLES, UserError
from east_ray.rollouts import shards
from east_ray.rollouts.sample_shard import unsampled
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

# Ours, and those of other pipelines' files: `code` is the released EAST scripts' (Qwen2.5-Math's evaluation),
# `generations` OpenR1's datasets', `generation` NeMo-Skills' (`_full_generation` where it has cut the thought away), `resps`
# lm-evaluation-harness's, whose `doc` holds the question.
QUESTION_COLUMNS = ("question", "problem")
ID_COLUMNS = ("question_id", "id")
LIST_COLUMNS = ("responses", "completions", "samples", "outputs", "generations", "code", "resps")
TEXT_COLUMNS = ("response", "completion", "output", "_full_generation", "generation")
FINISH_REASONS = ("stop", "length")


@dataclass(frozen=True)
class ImportSummary:
    """Counts of an import. `unmatched_lines` name no question of the run, `repeated_lines` are lm-evaluation-harness's
    for its second and further filters of the same completions; `missing_questions` got no completion.
    """

    lines: int
    unmatched_lines: int
    repeated_lines: int
    questions: int
    missing_questions: int
    samples: int
    fewest_samples: int
    most_samples: int


def import_samples(
    run: RunDirectory, file: str, *, questions: str, samples: str, model: ModelConfig, questions_per_shard: int
) -> ImportSummary:
    """Write `file` as shards of completions below `samples`, one row per question of the run.

    Numbers of completions may differ between questions; a question without any has the reason in `shortfall`.
    UserError names a line that is wrong, or says that no line matches.
    """
    catalogue = Catalogue(run.read_table(questions, columns=["question_id", "question"]))
    num_shards = shards.count_shards(len(catalogue.ids), questions_per_shard)
    lines = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="east-ray-import-") as spill:
        first_filter = None
        for where, row in read_rows(file):
            first_filter = first_filter or row.get("filter")
            index = catalogue.find(row, where)
            lines["all"] += 1
            if row.get("filter", first_filter) != first_filter and "resps" in row:
                lines["repeated"] += 1
                continue
            if index is None:
                lines["unmatched"] += 1
                continue
            texts, reasons = completions_of(row, where)
            with open(_spill_file(spill, index // questions_per_shard), "a", encoding="utf-8") as out:
                out.write(json.dumps([index % questions_per_shard, texts, reasons]) + "\n")
        if lines["all"] == lines["unmatched"] + lines["repeated"]:
            raise UserError(
                f"{file}: none of its {lines['all']} lines names a question of {run.uri_of(questions)}, by text "
                f"({' or '.join(QUESTION_COLUMNS)}) or id ({' or '.join(ID_COLUMNS)}); is it the same data set?"
            )
        tokenizer = load_tokenizer(model)
        per_question: list[int] = []
        of_run = shards.QuestionsFile(run, questions)
        for number in range(num_shards):
            asked = of_run.shard(number, questions_per_shard)
            table = _shard(asked, list(_read_spill(_spill_file(spill, number))), tokenizer, Path(file).name)
            shards.write_samples(run, table, samples, number, None)
            per_question += [len(completions) for completions in table["completions"]]
    answered = [count for count in per_question if count]
    logger.info(
        "imported %d completions of %d questions, %d to %d each, without token ids: training tokenises their text",
        sum(answered),
        len(answered),
        min(answered),
        max(answered),
    )
    if missing := len(per_question) - len(answered):
        logger.warning("%d of %d questions have no completion in %s", missing, len(per_question), file)
    if lines["unmatched"]:
        logger.warning("%d of %d lines of %s name no question of this run", lines["unmatched"], lines["all"], file)
    return ImportSummary(
        lines=lines["all"],
        unmatched_lines=lines["unmatched"],
        repeated_lines=lines["repeated"],
        questions=len(answered),
        missing_questions=missing,
        samples=sum(answered),
        fewest_samples=min(answered),
        most_samples=max(answered),
    )


class Catalogue:
    """Finds the question of the run that a line names: by text if the line has one, by id otherwise."""

    def __init__(self, questions: pa.Table) -> None:
        self.ids: list[str] = questions["question_id"].to_pylist()
        texts = [text_key(text) for text in questions["question"].to_pylist()]
        self._by_id = {question_id: row for row, question_id in enumerate(self.ids)}
        self._by_text = {text: row for row, text in reversed(list(enumerate(texts)))}
        self._texts = texts

    def find(self, row: dict[str, Any], where: str) -> int | None:
        """Row number of the question; None when the run has no such question. Text decides: other data sets reuse ids."""
        row = {**row.get("doc", {}), **row} if isinstance(row.get("doc", {}), dict) else row
        text = next((row[name] for name in QUESTION_COLUMNS if isinstance(row.get(name), str)), None)
        given = next((str(row[name]) for name in ID_COLUMNS if row.get(name) is not None), None)
        if text is None and given is None:
            raise UserError(f"{where}: names no question; give {' or '.join((*QUESTION_COLUMNS, *ID_COLUMNS))}")
        by_id = self._by_id.get(given) if given is not None else None
        if text is None or (by_id is not None and self._texts[by_id] == text_key(text)):
            return by_id
        return self._by_text.get(text_key(text))


def completions_of(row: dict[str, Any], where: str) -> tuple[list[str], list[str]]:
    """The completions of one line and their finish reasons, "unknown" if the line does not say."""
    name = next((name for name in (*LIST_COLUMNS, *TEXT_COLUMNS) if row.get(name) is not None), None)
    if name is None:
        raise UserError(
            f"{where}: no completions among {sorted(row)}; expected a list in {' or '.join(LIST_COLUMNS)}, or one text in "
            f"{' or '.join(TEXT_COLUMNS)}"
        )
    texts = [row[name]] if name in TEXT_COLUMNS else row[name]
    if name == "resps" and isinstance(texts, list) and all(isinstance(part, list) for part in texts):
        texts = [text for part in texts for text in part]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {name!r} must hold text, and at least one, got {str(row[name])[:80]!r}")
    reasons = row.get("finish_reasons") or [row.get("finish_reason")] * len(texts)
    if not isinstance(reasons, list) or len(reasons) != len(texts):
        raise UserError(f"{where}: 'finish_reasons' must be a list as long as {name!r}, {len(texts)}")
    return texts, [reason if reason in FINISH_REASONS else "unknown" for reason in reasons]


def _shard(asked: pa.Table, lines: Sequence[tuple[int, list[str], list[str]]], tokenizer: Any, file: str) -> pa.Table:
    rows = [{**unsampled(question), "completion_ids": None} for question in asked.to_pylist()]
    for index, texts, reasons in lines:
        rows[index]["completions"] += texts
        rows[index]["finish_reasons"] += reasons
        rows[index]["completion_tokens"] += [
            len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ]
    for row in rows:
        if not row["completions"]:
            row["shortfall"] = f"{file} has no completion of it"
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def _spill_file(directory: str, shard: int) -> Path:
    return Path(directory) / f"{shard:05d}.jsonl"


def _read_spill(path: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    if path.exists():
        with open(path, encoding="utf-8") as lines:
            yield from (tuple(json.loads(line)) for line in lines)  # type: ignore[misc]
