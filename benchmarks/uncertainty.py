"""Uncertainty on real completions: funnel, distribution of weights, was n enough. Prints Markdown.

    python benchmarks/uncertainty.py ../shared/data/responses [FIGURES_DIRECTORY]

Reads responses_math_ei56 and responses_gsm8k_pooled (one JSON object per question: id, gold, responses), grades them as a
run would and prints the tables of docs/uncertainty.md.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from east_ray.analysis.subsamples import gather
from east_ray.analysis.sufficiency import assess, figure
from east_ray.answers.grading import Grader, grade_table
from east_ray.config.sections import GradingConfig
from east_ray.figures.drawing import png
from east_ray.records import SAMPLES
from east_ray.weighting.health import WeightHealth
from east_ray.weighting.mappings import WeightMapping, weights
from east_ray.weighting.weigh import measure_table

SETS = ("responses_math_ei56", "responses_gsm8k_pooled")
EXPONENTS = (-1, 0.5, 1, 1.5, 3)


def main() -> None:
    directory = Path(sys.argv[1])
    for name in SETS:
        samples = read(directory / f"{name}.jsonl.gz")
        with Grader(GradingConfig(answer_tags=True)) as grader:
            grades = grade_table(samples, grader)
        print(f"\n## {name}\n")
        print_weights(grades)
        drawn = gather(grades.select(["question_id", "clusters", "verdicts"]).to_pylist())
        found = assess(drawn, "mixed")
        print(f"\n```\n{found.render()}\n```")
        if len(sys.argv) > 2:
            Path(sys.argv[2], f"sufficiency_{name}.png").write_bytes(png(figure(found)))


def read(path: Path) -> pa.Table:
    """Real responses as SAMPLES; lengths are in characters / 4."""
    rows = []
    for line in gzip.decompress(path.read_bytes()).split(b"\n")[:-1]:
        item = json.loads(line)
        texts = item["responses"]
        rows.append(
            {"question_id": item["id"], "reference": item["gold"], "prompt_hash": "0" * 16, "prompt_tokens": 1}
            | {"completions": texts, "finish_reasons": ["unknown"] * len(texts), "shortfall": None}
            | {"completion_tokens": [max(len(text) // 4, 1) for text in texts]}
        )
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def print_weights(grades: pa.Table) -> None:
    """The funnel, and the distribution and health of the weights at several exponents."""
    measures = measure_table(grades, "mixed")
    reasons = Counter(measures["reason"].to_pylist())
    kept = measures["reason"].is_null().to_numpy()
    lost = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if reason)
    total = {
        name: int(grades[f"num_{name}"].to_numpy().sum()) for name in ("samples", "correct", "errors", "unanswered")
    }
    print(
        f"{len(grades)} questions, {kept.sum()} kept ({lost}); {total['samples']:,} completions: {total['correct']:,} correct,"
    )
    print(f"{total['errors']} errors, {total['unanswered']:,} without an answer.\n")
    print("| a | min | 10% | median | 90% | max | effective | corr. length | token weight |\n|" + "---|" * 9)
    entropy, tokens = measures["entropy"].to_numpy()[kept], measures["mean_tokens"].to_numpy()[kept]
    for exponent in EXPONENTS:
        weight = weights(entropy, WeightMapping(exponent=exponent))
        health = WeightHealth.of(weight, tokens).figures()
        spread = " | ".join(f"{q:.3f}" for q in np.quantile(weight, [0, 0.1, 0.5, 0.9, 1]))
        print(
            f"| {exponent:g} | {spread} | {health['effective_share']:.1%} "
            f"| {health['length_correlation']:+.2f} | {health['token_weight']:.3f} |"
        )


if __name__ == "__main__":
    main()
