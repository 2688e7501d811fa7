"""Our weights against the arithmetic of the paper's released scripts, on real completions.

The oracle below shares no code with the package: base-2 entropy of the answers as strings, questions with a correct and
an incorrect completion, and division of h^a by its mean.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from east_ray.answers.grading import Grader, grade_table
from east_ray.config.sections import GradingConfig, SelectionConfig, WeightingConfig
from east_ray.records import SAMPLES
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import WeightMapping
from east_ray.weighting.weigh import weigh

EXPONENTS = (-1, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 2.5, 3)
SETS = {"responses_math_ei56": 302, "responses_gsm8k_pooled": 650}  # name -> about how many questions have both kinds


@pytest.mark.parametrize("name", SETS)
def test_weights_equal_the_released_scripts_on_real_completions(name: str, shared_data: Path, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    grades = grade(shared_data / "responses" / f"{name}.jsonl.gz")
    for i in range(0, len(grades), 100):
        run.write_table(grades.slice(i, 100), "grades", f"shard-{i // 100:05d}.parquet")
    mappings = [WeightMapping(exponent=a) for a in EXPONENTS]
    mappings += [WeightMapping("inaccuracy", exponent=a) for a in EXPONENTS]
    mappings += [WeightMapping("dominant_wrong", exponent=a) for a in EXPONENTS if a > 0]
    weigh(
        run,
        grades="grades",
        output="weights",
        mappings=mappings,
        selection=SelectionConfig(),
        weighting=WeightingConfig(),
    )

    expected = released(grades.to_pylist())
    assert len(expected["question_id"]) > 0.9 * SETS[name]
    table = run.read_table("weights")
    kept = table.filter(table["reason"].is_null())
    assert kept["question_id"].to_pylist() == expected["question_id"]
    for mapping in mappings:
        values = np.array(expected[mapping.measure]) ** mapping.exponent
        assert kept[mapping.column].to_numpy() == pytest.approx(values / values.mean(), rel=1e-12)


def grade(path: Path) -> pa.Table:
    """GRADES of a file of real responses, clustered by string."""
    rows = []
    for line in gzip.decompress(path.read_bytes()).split(b"\n")[:-1]:
        item = json.loads(line)
        count = len(item["responses"])
        rows.append(
            {"question_id": item["id"], "reference": item["gold"], "prompt_hash": "0" * 16, "prompt_tokens": 1}
            | {"completions": item["responses"], "finish_reasons": ["unknown"] * count}
            | {"completion_tokens": [1] * count, "shortfall": None}
        )
    with Grader(GradingConfig(cluster="string", answer_tags=True)) as grader:
        return grade_table(pa.Table.from_pylist(rows, schema=SAMPLES), grader)


def released(rows: list[dict]) -> dict[str, list]:
    """Entropy (bits), inaccuracy and dominant wrong share of the questions with both kinds of completions."""
    found: dict[str, list] = {"question_id": [], "entropy": [], "inaccuracy": [], "dominant_wrong": []}
    for row in rows:
        predictions, scores = [answer or "" for answer in row["answers"]], row["verdicts"]
        wrong = [p for p, score in zip(predictions, scores, strict=True) if score == "incorrect"]
        right = [p for p, score in zip(predictions, scores, strict=True) if score == "correct"]
        if not right or not wrong:
            continue
        shares = [count / len(predictions) for count in Counter(predictions).values()]
        found["question_id"].append(row["question_id"])
        found["entropy"].append(-sum(p * math.log(p, 2) for p in shares))
        found["inaccuracy"].append(1 - len(right) / (len(right) + len(wrong)))
        found["dominant_wrong"].append(Counter(wrong).most_common(1)[0][1] / len(predictions))
    return found
