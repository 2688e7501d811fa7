"""Data of the page's question browser: clusters, verdicts, some completions, the selected pair and the weights.

A page of a few megabytes cannot hold a large run: this file chooses what to show and says what it left out.
Completions are read shard by shard, and only for the questions shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from east_ray.records import CORRECT
from east_ray.report.data import ReportData, figure5_name
from east_ray.runs.directory import RunDirectory

MAX_QUESTIONS = 2000  # rows of the list, over all rounds and arms
MAX_CLUSTERS = 12
COMPLETIONS_BYTES = 1_500_000  # completion text on the page, over all rounds and arms
COMPLETIONS_PER_QUESTION = 6
MAX_WITH_COMPLETIONS = 600  # questions of one source
CLIP = 1200  # characters of one completion
SHORT = 80  # characters of one answer
QUESTION_CLIP = 2000
TEXT_COLUMNS = ("question", "reference", "level", "subject")
GRADE_COLUMNS = ("answers", "verdicts", "clusters", "cluster_sizes", "cluster_verdicts", "num_samples")


def sources(f: ReportData) -> list[dict[str, Any]]:
    """One source per set of graded samples, with the name of the figure whose dots are its questions."""
    directories = f.weight_directories()
    most, most_bytes = (limit // max(len(directories), 1) for limit in (MAX_QUESTIONS, COMPLETIONS_BYTES))
    return [
        {"name": name, "figure": figure5_name(directory), **_source(f, directory, most, most_bytes)}
        for name, directory in directories.items()
    ]


def choose_rows(weights: pa.Table, column: str | None, most: int) -> pa.Table:
    """At most `most` rows of a weights table, in its order, spread evenly over the questions sorted by weight."""
    if len(weights) <= most:
        return weights
    keys = pc.fill_null(weights[column], -1.0) if column else weights["entropy"]  # type: ignore[attr-defined]
    order = np.argsort(np.asarray(keys), kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, most).round().astype(int))]
    return weights.take(np.sort(picked))


def _source(f: ReportData, directory: str, max_questions: int, max_bytes: int) -> dict[str, Any]:
    run, weights = f.run, f.run.read_table(directory, "weights")
    mappings = {name: arms for name, arms in f.weight_columns(directory).items() if name in weights.column_names}
    rows = choose_rows(weights, next(iter(mappings), None), max_questions)
    ids = rows["question_id"].to_pylist()
    texts = {row["question_id"]: row for row in _rows(run, ["questions"], ids, TEXT_COLUMNS)}
    grades = {row["question_id"]: row for row in _rows(run, [directory, "grades"], ids, GRADE_COLUMNS)}
    questions = []
    for row in rows.to_pylist():
        text, grade = texts.get(row["question_id"]), grades.get(row["question_id"])
        if text is None or grade is None:
            continue
        questions.append(
            {
                "id": row["question_id"],
                "question": _clip(text["question"], QUESTION_CLIP)[0],
                **{key: text[key] for key in ("reference", "level", "subject")},
                "num_samples": grade["num_samples"],
                "num_clusters": row["num_clusters"],
                **{key: round(row[key], 4) for key in ("entropy", "inaccuracy", "dominant_wrong")},
                "reason": row["reason"],
                "weights": [None if row[column] is None else round(row[column], 4) for column in mappings],
                "clusters": _clusters(grade),
                "completions": [],
            }
        )
    shown = _add_completions(run, directory, questions, grades, max_bytes)
    left_out = ""
    if more := len(weights) - len(questions):
        left_out = f"{more:,} more were sampled; this list spreads evenly over their weights. "
    if shown < len(questions):
        left_out += f"Completions of {shown:,} are on this page, the rest are in {directory}/samples."
    return {"mappings": list(mappings.values()), "questions": questions, "left_out": left_out}


def _clusters(grade: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The correct cluster and the largest others, each named by its first answer; null names completions without one."""
    first: dict[int, str | None] = {}
    for cluster, answer in zip(grade["clusters"], grade["answers"], strict=True):
        first.setdefault(cluster, answer)
    sizes = zip(grade["cluster_sizes"], grade["cluster_verdicts"], strict=True)
    return [
        {"answer": _clip(first.get(i), SHORT)[0], "size": size, "verdict": verdict}
        for i, (size, verdict) in enumerate(sizes)
        if i < MAX_CLUSTERS or verdict == CORRECT
    ]


def _add_completions(
    run: RunDirectory, directory: str, questions: list[dict[str, Any]], grades: Mapping[str, Any], max_bytes: int
) -> int:
    """Add completions to questions scattered over the list until `max_bytes` are used; returns how many got some."""
    wanted = [questions[i]["id"] for i in _scattered(len(questions))[:MAX_WITH_COMPLETIONS]]
    selected = _selected(run, directory, wanted)
    names = ["completions", "finish_reasons", "completion_tokens"]
    picked = {
        row["question_id"]: _pick(row, grades[row["question_id"]], selected.get(row["question_id"], {}))
        for row in _rows(run, [directory, "samples"], wanted, names)
    }
    by_id = {question["id"]: question for question in questions}
    used = shown = 0
    for question_id in wanted:
        completions = picked.get(question_id, [])
        used += sum(len(json.dumps(completion)) for completion in completions)
        if used > max_bytes:
            break
        by_id[question_id]["completions"] = completions
        shown += bool(completions)
    return shown


def _pick(samples: Mapping[str, Any], grade: Mapping[str, Any], selected: Mapping[str, str]) -> list[dict[str, Any]]:
    """The selected pair, then one completion of each of the largest clusters."""
    completions = samples["completions"]
    uses = {completions.index(text): use for text, use in selected.items() if text in completions}
    representatives = {cluster: i for i, cluster in reversed(list(enumerate(grade["clusters"]))) if i not in uses}
    chosen = list(uses) + [representatives[cluster] for cluster in sorted(representatives)]
    return [
        {
            **dict(zip(("text", "clipped"), _clip(completions[i], CLIP), strict=True)),
            "verdict": grade["verdicts"][i],
            "tokens": samples["completion_tokens"][i],
            "finish": samples["finish_reasons"][i],
            "use": uses.get(i),
        }
        for i in chosen[:COMPLETIONS_PER_QUESTION]
    ]


def _selected(run: RunDirectory, directory: str, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """question_id -> completion -> "positive" or "negative", from whichever example files there are."""
    found: dict[str, dict[str, str]] = {}
    for row in _rows(run, [directory, "examples"], ids):
        uses = found.setdefault(row["question_id"], {})
        if "chosen" in row:
            uses |= {row["chosen"]: "positive", row["rejected"]: "negative"}
        else:
            uses[row["completion"]] = "positive" if row.get("label", True) else "negative"
    return found


def _rows(
    run: RunDirectory, parts: Sequence[str], ids: Sequence[str], columns: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows with these question ids of every Parquet file in a directory, one file in memory at a time."""
    wanted = pc.field("question_id").isin(pa.array(ids, pa.string()))
    for file in run.list(*parts, suffix=".parquet"):
        path, filesystem = run.path(*parts, file), run.filesystem
        names = ["question_id", *columns] if columns else None
        try:
            table = pq.read_table(path, filesystem=filesystem, columns=names, filters=wanted)
        except (pa.ArrowException, OSError) as error:
            raise run.damaged(error, *parts, file) from None
        yield from table.to_pylist()


def _scattered(count: int) -> list[int]:
    """0 .. count - 1, ordered so that every prefix is spread over the whole range (a golden-ratio walk)."""
    return sorted(range(count), key=lambda i: (i * 0.6180339887498949) % 1.0)


def _clip(text: str | None, length: int) -> tuple[str | None, int]:
    """The first `length` characters, and how many were cut off."""
    return (text, 0) if text is None or len(text) <= length else (text[:length], len(text) - length)


def embed_json(value: Any) -> str:
    """JSON that is safe inside a <script> element: `<`, `>` and `&` are escaped, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
