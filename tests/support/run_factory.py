"""A plausible finished run directory, made up in a second, for tests of whatever reads runs.

Nothing is trained or sampled. Every question gets a chance of being solved; its answers, grades, weights and evaluations
are seeded draws from it, so figures and tables have the shapes of real ones.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from east_ray.arms import mappings_of
from east_ray.config.load import Arm, Config, from_dict
from east_ray.evaluation.evaluate import EVALUATIONS, summarise
from east_ray.records import CORRECT, EXAMPLES, GRADES, INCORRECT, MEASURES, QUESTIONS, SAMPLES
from east_ray.runs.artifacts import Artifact
from east_ray.runs.directory import RunDirectory, jsonable
from east_ray.weighting.mappings import WeightMapping, entropy, weights


def make_run(
    path: Path,
    *,
    arms: list[Arm] | None = None,
    rounds: int = 1,
    num_train: int = 120,
    num_test: int = 200,
    num_samples: int = 16,
    validation: bool = False,
    pass_at_k: bool = False,
    gains: dict[str, float] | None = None,
    hostile: str = "",
    seed: int = 0,
) -> RunDirectory:
    """Write a finished run. `gains`: arm -> accuracy it adds per round; `hostile` is put into questions, answers and completions."""
    run = RunDirectory(str(path))
    data: dict[str, Any] = {
        "run": {"dir": str(path), "seed": seed, "rounds": rounds},
        "model": {"path": "east_ray/tiny/model"},
        "questions": {"train": "train.jsonl", "test": "test.jsonl", "validation_share": 0.2 if validation else 0.0},
        "sampling": {"num_samples": num_samples},
        "evaluation": {"num_samples": 8 if pass_at_k else 0},
    }
    if arms is not None:
        data["arms"] = [arm.model_dump() for arm in arms]
    config = from_dict(data, "run_factory")
    run.write_json(config.model_dump(mode="json"), "config.json")
    run.write_json(
        {"git_revision": "0123abcd", "packages": {"ray": "2.60.0"}, "hardware": {"cores": 2}}, "provenance.json"
    )
    draw = np.random.default_rng(seed)
    train, test = (_questions(name, n, hostile) for name, n in (("train", num_train), ("test", num_test)))
    run.write_table(train, "questions", "train.parquet")
    run.write_table(test, "questions", "test.parquet")
    splits = {"evaluation": test} | ({"validation": train.slice(0, num_train // 4)} if validation else {})
    gains = {arm.name: 0.2 for arm in config.arms} | (gains or {})
    base = draw.beta(0.7, 1.6, max(num_train, num_test))
    for split, questions in splits.items():
        _evaluate(run, "base", split, questions, base, draw, config)
    _round(run, config, "round-00", config.arms, train, base, draw, hostile)
    for t in range(rounds):
        for arm in (arm for arm in config.arms if t < (arm.rounds or rounds)):
            skill = np.clip(base + gains[arm.name] * (t + 1) ** 0.6, 0, 1)
            if t > 0:
                before = np.clip(base + gains[arm.name] * t**0.6, 0, 1)
                _round(run, config, f"round-{t:02d}/arms/{arm.name}", (arm,), train, before, draw, hostile)
            for split, questions in splits.items():
                _evaluate(run, f"round-{t:02d}/arms/{arm.name}", split, questions, skill, draw, config)
            _training(run, f"round-{t:02d}/arms/{arm.name}", config.for_arm(arm).training.loss, draw)
    return run


def _questions(name: str, count: int, hostile: str) -> pa.Table:
    rows = [
        {
            "question_id": f"{name}-{i:05d}",
            "question": f"Take {i % 9 + 1}, add {i % 7}, times {i % 5 + 1}.{hostile}",
            "reference": str((i % 9 + 1 + i % 7) * (i % 5 + 1)),
            "level": f"Level {i % 4 + 1}",
            "subject": ("running total", "counting")[i % 2],
            "prompt": f"Q: {i}",
            "prompt_token_ids": [1, i % 100],
            "prompt_hash": f"{i:016x}",
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=QUESTIONS)


def _round(
    run: RunDirectory,
    config: Config,
    directory: str,
    arms: tuple[Arm, ...],
    questions: pa.Table,
    skill: np.ndarray,
    draw: np.random.Generator,
    hostile: str,
) -> None:
    """Samples, grades, weights and examples of one directory, in shards of 32 questions."""
    rows = [
        _sampled(q, skill[i], config.sampling.num_samples, draw, hostile) for i, q in enumerate(questions.to_pylist())
    ]
    samples, grades, measures = ([row[kind] for row in rows] for kind in range(3))
    for shard, start in enumerate(range(0, len(rows), 32)):
        name = f"shard-{shard:05d}.parquet"
        run.write_table(pa.Table.from_pylist(samples[start : start + 32], schema=SAMPLES), directory, "samples", name)
        run.write_table(pa.Table.from_pylist(grades[start : start + 32], schema=GRADES), directory, "grades", name)
    table = pa.Table.from_pylist(measures, schema=MEASURES)
    kept = np.array([row["reason"] is None for row in measures])
    mappings = mappings_of(config, arms)
    columns = {mapping.column: _weights(table, kept, mapping) for mapping in mappings}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.float64()))
    for shard, start in enumerate(range(0, len(rows), 32)):
        run.write_table(table.slice(start, 32), directory, "weights", f"shard-{shard:05d}.parquet")
    run.write_json({"mappings": list(columns)}, directory, "weights", "weights.json")
    for loss in {config.for_arm(arm).training.loss for arm in arms}:
        examples = [e for i in np.flatnonzero(kept) for e in _examples(loss, samples[i], grades[i], columns, i)]
        schema = pa.schema([*EXAMPLES[loss], *(pa.field(name, pa.float64()) for name in columns)])
        run.write_table(pa.Table.from_pylist(examples, schema=schema), directory, "examples", f"{loss}.parquet")
    tokens = sum(sum(row["completion_tokens"]) for row in samples)
    Artifact(run, f"{directory}/samples").complete(tokens=tokens, seconds=12.5, reused_shards=0)
    run.append_metrics(step="sample", artifacts=[f"{directory}/samples"], seconds=12.5)


def _sampled(
    question: dict[str, Any], skill: float, n: int, draw: np.random.Generator, hostile: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """SAMPLES, GRADES and MEASURES rows of one question."""
    reference = question["reference"]
    wrong = [*(str(int(reference) + d) for d in (1, -1, 2, 10, 7, -3)), None]
    share = draw.dirichlet(np.full(len(wrong), 0.5))
    answers = [
        reference if draw.random() < skill else wrong[draw.choice(len(wrong), p=share)] for _ in range(n)
    ]  # fmt: skip
    counts = Counter(answers)
    order = sorted(counts, key=lambda a: (-counts[a], a or ""))
    verdicts = [CORRECT if a == reference else INCORRECT for a in answers]
    cluster_verdicts = [CORRECT if a == reference else INCORRECT for a in order]
    sizes = [counts[a] for a in order]
    correct = verdicts.count(CORRECT)
    largest = max((s for s, v in zip(sizes, cluster_verdicts, strict=True) if v == INCORRECT), default=0)
    tokens = [int(t) for t in draw.integers(12, 60, n)]
    texts = [
        "I give up." if a is None else f"Step {i}: some working.{hostile}\nSo the answer is \\boxed{{{a}}}"
        for i, a in enumerate(answers)
    ]
    shown = [None if a is None else a + hostile for a in answers]
    samples = {
        "question_id": question["question_id"],
        "reference": reference,
        "prompt_hash": question["prompt_hash"],
        "prompt_tokens": 2,
        "completions": texts,
        "finish_reasons": ["stop"] * n,
        "completion_tokens": tokens,
        "shortfall": None,
    }
    grades = {
        "question_id": question["question_id"],
        "answers": shown,
        "rules": ["none" if a is None else "boxed" for a in answers],
        "verdicts": verdicts,
        "clusters": [order.index(a) for a in answers],
        "cluster_sizes": sizes,
        "cluster_verdicts": cluster_verdicts,
        "truncated": [False] * n,
        "run_on": [False] * n,
        "num_samples": n,
        "num_correct": correct,
        "num_incorrect": n - correct,
        "num_errors": 0,
        "num_unanswered": answers.count(None),
        "num_truncated": 0,
        "num_positives": correct,
        "num_negatives": n - correct,
        "largest_wrong": largest,
        "mean_tokens": float(np.mean(tokens)),
        "shortfall": None,
    }
    measures = {
        "question_id": question["question_id"],
        "num_clusters": len(order),
        "entropy": entropy(sizes),
        "inaccuracy": 1 - correct / n,
        "dominant_wrong": largest / n,
        "mean_tokens": float(np.mean(tokens)),
        "reason": "all wrong" if correct == 0 else "all correct" if correct == n else None,
    }
    return samples, grades, measures


def _weights(table: pa.Table, kept: np.ndarray, mapping: WeightMapping) -> list[float | None]:
    values = iter(weights(np.asarray(table[mapping.measure])[kept], mapping).tolist())
    return [next(values) if keep else None for keep in kept]


def _examples(
    loss: str, samples: dict[str, Any], grades: dict[str, Any], columns: dict[str, list[float | None]], row: int
) -> list[dict[str, Any]]:
    good = samples["completions"][grades["verdicts"].index(CORRECT)]
    bad = samples["completions"][grades["verdicts"].index(INCORRECT)]
    shared = {"question_id": samples["question_id"], "prompt": "Q"} | {c: v[row] for c, v in columns.items()}
    if loss == "dpo":
        return [shared | {"chosen": good, "rejected": bad}]
    if loss == "kto":
        return [shared | {"completion": good, "label": True}, shared | {"completion": bad, "label": False}]
    return [shared | {"completion": good}]


def _evaluate(
    run: RunDirectory,
    directory: str,
    split: str,
    questions: pa.Table,
    skill: np.ndarray,
    draw: np.random.Generator,
    config: Config,
) -> None:
    rows = []
    for q, chance in zip(questions.to_pylist(), skill, strict=False):
        right = bool(draw.random() < chance)
        rows.append(
            {key: q[key] for key in ("question_id", "level", "subject")}
            | {"correct": right, "verdict": CORRECT if right else INCORRECT, "answer": q["reference"] if right else "0"}
            | {"tokens": int(draw.integers(12, 60)), "truncated": False}
        )
    table = pa.Table.from_pylist(rows, schema=EVALUATIONS)
    sampled = None
    if n := config.evaluation.num_samples:
        correct = draw.binomial(n, skill[: len(rows)])
        sampled = pa.table(
            {
                "num_samples": pa.array([n] * len(rows), pa.int32()),
                "num_correct": pa.array(correct, pa.int32()),
                "answers": [["1"] * int(c) + ["0"] * (n - int(c)) for c in correct],
                "clusters": [[0] * int(c) + [1] * (n - int(c)) for c in correct],
                "cluster_sizes": pa.array([[int(c), n - int(c)] for c in correct], pa.list_(pa.int32())),
                "cluster_verdicts": [[CORRECT, INCORRECT]] * len(rows),
            }
        )
    run.write_table(table, directory, split, "eval.parquet")
    summary = jsonable(summarise(table, config.evaluation.confidence, sampled))
    run.write_json(summary, directory, split, "metrics.json")
    Artifact(run, f"{directory}/{split}").complete(seconds=3.0, **summary)
    run.append_metrics(step="evaluate", artifacts=[f"{directory}/{split}"], seconds=3.0)


def _training(run: RunDirectory, directory: str, loss: str, draw: np.random.Generator) -> None:
    steps = np.arange(1, 61)
    rows = [
        {"step": int(s), "loss": float(1.1 * np.exp(-s / 25) + 0.3 + draw.normal(0, 0.03)), "epoch": float(s / 20)}
        | {"weighted_loss": float(1.2 * np.exp(-s / 25) + 0.3 + draw.normal(0, 0.05)), "grad_norm": float(1 + 4 / s)}
        | ({"rewards/margins": float(0.02 * s)} if loss != "sft" else {})
        for s in steps
    ]
    run.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), directory, "training", "log.jsonl")
    Artifact(run, f"{directory}/training").complete(
        examples=48,
        steps=60,
        tokens=41_000,
        tokenised_from_text=0,
        seconds=8.0,
        gradient_error=2.8e-3,
        weight_error=0.0,
    )
    run.append_metrics(step="train", artifacts=[f"{directory}/training"], seconds=8.0)
