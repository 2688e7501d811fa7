"""Report chapters, process: training data, training curves, evaluation details, and cost.

Each reads its part of a run directory, never completions; without data it is left out.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from east_ray.figures import charts
from east_ray.figures.drawing import Figure, line_chart
from east_ray.formatting import duration, percent
from east_ray.preflight.actual import recorded_comparison
from east_ray.report.data import Chapter, ReportData, Table, chapter, slug, titled
from east_ray.weighting.mappings import effective_sample_size
from east_ray.weighting.weigh import COUNT_COLUMNS

MAX_CURVES = 7  # as many as there are colours
MODEL_STEPS = ("sample", "train", "validate", "evaluate")  # their tokens went through a model
MAX_HISTOGRAMS = 4  # drawn over each other
MAX_IDS = 5  # questions named per reason
MAX_POINTS = 240  # of one curve; longer ones are averaged over neighbouring steps

CURVES = (
    ("loss", "Loss, all questions alike", "loss", "The loss before weighting: comparable between arms."),
    ("weighted_loss", "Loss as minimised, with weights", "weighted loss", "What the optimizer saw. Arms differ in their weights, so compare shapes, not heights."),
    ("rewards/margins", "Margin between positive and negative", "reward margin", "How far training has pushed the two apart."),
    ("rewards/accuracies", "Pairs in the right order", "share of pairs", "How often the positive has the higher reward."),
)  # fmt: skip

TRAINING_FACTS = (  # key of a training's facts, heading, format, note
    ("examples", "examples", ",", ""),
    ("steps", "steps", ",", ""),
    ("tokens", "tokens", ",", ""),
    ("tokenised_from_text", "completions from text", ",", "Completions are trained as the token ids that were sampled; those from text were imported without ids and tokenised once."),
    ("gradient_error", "gradient error", ".2g", "Gradient error: relative L2 distance of the first weighted micro-batch's gradient from the formula's."),
    ("weight_error", "weight error", ".2g", "Weight error: largest relative error of a weight as it reached the loss."),
)  # fmt: skip


def weights(f: ReportData) -> Chapter | None:
    """The funnel as a flow, the histogram of weights, and their effective sample sizes."""
    directories, plotted = f.weight_directories(), f.plotted_directories()
    figures: list[Figure] = []
    rows = []
    for name, directory in directories.items():
        columns = f.weight_columns(directory)
        table = f.run.read_table(directory, "weights")
        reasons = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
        kept = len(table) - reasons.total()
        values = {
            arms: np.asarray(table[column].drop_null())
            for column, arms in columns.items()
            if column in table.column_names and kept
        }
        if name in plotted:
            drawn = [charts.funnel_flow(len(table), kept, reasons, f"funnel_{slug(directory)}")]
            if varied := {arms: v for arms, v in values.items() if np.ptp(v) > 1e-9}:
                shown = dict(list(varied.items())[:MAX_HISTOGRAMS])
                figure = charts.weight_histogram(shown, f"weights_{slug(directory)}")
                if len(varied) > len(shown):
                    note = f" {len(shown)} of {len(varied)} different weightings are drawn; all are in the table."
                    figure = replace(figure, caption=figure.caption + note)
                drawn.append(figure)
            figures += [titled(figure, name, len(directories) > 1) for figure in drawn]
        for arms, v in values.items():
            size = effective_sample_size(v)
            label = f"{name}: {arms}" if len(directories) > 1 else arms
            rows.append(
                (label, f"{len(v):,}", f"{size:,.0f}", f"{size / len(v):.0%}", f"{v.min():.3g}", f"{v.max():.3g}")
            )
    columns = ("weights of", "kept questions", "effective sample size", "share", "smallest", "largest")
    caption = (
        "Effective sample size, (\u2211w)\u00b2 / \u2211w\u00b2: the number of equally weighted questions that carry as much "
        "information. Plain self-training has all of them."
    )
    tables = (Table(columns, tuple(rows), caption), completions_table(f), left_out_table(f))
    title = "What was trained on, and how much each question counts"
    return chapter("weights", "Weights", title, figures=figures, tables=tables)


def completions_table(f: ReportData) -> Table:
    """Verdicts of the sampled or imported completions."""
    rows, imported, columns = [], "", ["num_samples", *COUNT_COLUMNS]
    for name, directory in f.weight_directories().items():
        counts = f.run.read_table(directory, "grades", columns=columns)
        samples, *others, positives, negatives = (int(np.sum(counts[column])) for column in columns)
        others.append(positives + negatives)
        rows.append((name, f"{samples:,}", *(percent(count / max(samples, 1)) for count in others)))
        if file := (f.run.manifest(f"{directory}/samples") or {}).get("settings", {}).get("imported"):
            imported = f" They were imported from {file}."
    return Table(
        ("completions of", "completions", "correct", "incorrect", "not gradable", "no answer", "truncated", "eligible"),
        tuple(rows),
        "Completions of the training questions. Those without an extractable answer are incorrect; those that could not be "
        "graded are neither. Eligible: may be trained on, as a positive or a negative; texts cut at the token limit or with "
        f"another turn after the answer are not positives.{imported}",
    )


def left_out_table(f: ReportData) -> Table:
    """Why questions are not trained on, and which ones."""
    rows = []
    for name, directory in f.weight_directories().items():
        questions = f.run.read_table(directory, "weights", columns=["question_id", "reason"]).to_pylist()
        prefix = f"{name}: " if len(f.weight_directories()) > 1 else ""
        for reason, count in Counter(row["reason"] for row in questions if row["reason"]).most_common():
            ids = [row["question_id"] for row in questions if row["reason"] == reason][:MAX_IDS]
            rows.append((prefix + reason, f"{count:,}", ", ".join(ids) + (", ..." if count > len(ids) else "")))
    caption = "Questions left out of training; the list below shows any of them."
    return Table(("left out because", "questions", "which"), tuple(rows), caption, words=True)


def training(f: ReportData) -> Chapter | None:
    """Curves of what the trainers logged; an arm's rounds follow each other on one axis."""
    logs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    most_seeds = 1
    for group, members in f.groups.items():
        if rows := read_log(f, members[0]):
            logs.setdefault(f.config.for_arm(f.arm(members[0])).training.loss, {})[group] = rows
            most_seeds = max(most_seeds, len(members))
    figures = []
    for loss, arms in logs.items():
        for key, title, label, caption in CURVES:
            curves = {
                group: (thin([(r["step"], r[key]) for r in rows if key in r]), f.color(f.groups[group][0]))
                for group, rows in arms.items()
                if any(key in r for r in rows)
            }
            if curves:
                shown = dict(list(curves.items())[:MAX_CURVES])
                note = f" The first {MAX_CURVES} of {len(curves)} arms are drawn." if len(curves) > MAX_CURVES else ""
                name, full_title = f"training_{loss}_{slug(key)}", f"{title} ({loss.upper()})"
                figures.append(line_chart(name, full_title, caption + note, "optimizer step", label, shown))
    text = f"Of an arm's {most_seeds} seeds the first is drawn." if most_seeds > 1 else ""
    return chapter("training", "Training", "How training went", text, figures, [training_table(f)])


def training_table(f: ReportData) -> Table:
    """Every training, and how exactly its weights reached the gradient, where its manifest records it."""
    found = {}
    for t, arm in itertools.product(range(f.config.run.rounds), f.config.arms):
        manifest = f.run.manifest(f"round-{t:02d}/arms/{arm.name}/training")
        if manifest and "steps" in manifest["facts"]:
            found[f"{arm.name}, round {t + 1}" if f.config.run.rounds > 1 else arm.name] = manifest["facts"]
    shown = [column for column in TRAINING_FACTS if any(column[0] in facts for facts in found.values())]
    rows = [
        (name, *(format(facts[key], form) if key in facts else "" for key, _, form, _ in shown))
        for name, facts in found.items()
    ]
    notes = [note for *_, note in shown if note]
    return Table(("trained", *(heading for _, heading, _, _ in shown)), tuple(rows), " ".join(notes))


def read_log(f: ReportData, arm: str) -> list[dict[str, Any]]:
    """The rows of an arm's training logs, steps counted through its rounds; none when it was not trained."""
    rows: list[dict[str, Any]] = []
    for t in range(f.config.run.rounds):
        parts = (f"round-{t:02d}/arms/{arm}/training", "log.jsonl")
        if f.run.exists(*parts):
            before = rows[-1]["step"] if rows else 0
            found = [json.loads(line) for line in f.run.read_bytes(*parts).splitlines()]
            rows += [{**row, "step": row["step"] + before} for row in found]
    return rows


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS (x, y): longer series are averaged over runs of neighbours."""
    width = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[-1][0], float(np.mean([y for _, y in group]))) for group in groups]


def details(f: ReportData) -> Chapter | None:
    """Everything metrics.json knows beyond the headline, for the models that were compared; the mean of an arm's seeds."""
    metrics = {row.name: mean_of([f.metrics[f.compared[member]] for member in row.members]) for row in f.comparisons}
    figures, tables = [], [greedy_table(metrics), *(group_table(metrics, title) for title in ("level", "subject"))]
    if sampled := {name: m for name, m in metrics.items() if m["pass_at_k"]}:
        ks = list(dict.fromkeys(k for m in sampled.values() for k in m["maj_at_k"]))
        body = tuple((name, *(percent(m["maj_at_k"].get(k, 0.0)) for k in ks)) for name, m in sampled.items())
        tables.append(Table(("majority of k samples", *(f"k = {k}" for k in ks)), body))
        curves = {
            name: ({int(k): v for k, v in m["pass_at_k"].items()}, f.color(f.groups.get(name, (name,))[0]))
            for name, m in list(sampled.items())[:MAX_CURVES]
        }
        figures.append(charts.pass_at_k_curve(curves))
    return chapter("details", "Details", "The evaluation in detail", figures=figures, tables=tables)


def greedy_table(metrics: Mapping[str, dict[str, Any]]) -> Table:
    """Greedy answers: length, and the shares truncated, unanswered and not gradable."""
    shares = ("truncated_share", "no_answer_share", "error_share")
    rows = [
        (name, percent(m["overall"]["accuracy"]), f"{m['mean_tokens']:,.1f}", *(percent(m[key]) for key in shares))
        for name, m in metrics.items()
    ]
    return Table(
        ("model", "accuracy", "mean tokens", "truncated", "no answer", "not gradable"),
        tuple(rows),
        "Greedy decoding. Questions whose answer could not be graded count as not correct, so accuracy may be too low by "
        "up to their share.",
    )


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of each entry of dictionaries with the same keys; what is equal in all stays as it is."""
    if all(value == values[0] for value in values):
        return values[0]
    if isinstance(values[0], dict):
        return {key: mean_of([value[key] for value in values]) for key in values[0]}
    return float(np.mean(values))


def group_table(metrics: Mapping[str, dict[str, Any]], title: str) -> Table | None:
    """Accuracy by level or subject; None when there are not at least two."""
    key = f"by_{title}"
    sizes = {group: a["num_questions"] for m in metrics.values() for group, a in m[key].items()}
    if len(sizes) < 2:
        return None
    body = tuple(
        (name, *(percent(m[key][group]["accuracy"]) if group in m[key] else "" for group in sizes))
        for name, m in metrics.items()
    )
    columns = (f"accuracy by {title}", *(f"{group} ({size:,})" for group, size in sizes.items()))
    return Table(columns, body, f"Accuracy by {title}; the number of questions in brackets.")


def cost(f: ReportData) -> Chapter | None:
    """Wall time and tokens of every step, as recorded when it ended."""
    steps = f.run.finished_steps()
    if not steps:
        return None
    rows = []
    for step in steps:
        facts = [manifest["facts"] for directory in step["artifacts"] if (manifest := f.run.manifest(directory))]
        tokens = sum(map(tokens_of, facts)) if step["step"] in MODEL_STEPS else 0
        is_whole = not any(fact.get("reused_shards") for fact in facts)
        rate = f"{tokens / step['seconds']:,.0f}" if tokens and is_whole and step["seconds"] > 0 else ""
        directory = step["artifacts"][0].split("/")[0] if step["artifacts"] else ""
        name = f"{step['step']}, {directory}" if directory.startswith("round-") else step["step"]
        count = f"{tokens:,}" if tokens else ""
        rows.append((name, str(len(step["artifacts"])), duration(step["seconds"]), count, rate))
    rows.append(("sum of these", "", duration(sum(step["seconds"] for step in steps)), "", ""))
    table = Table(
        ("step", "artifacts", "wall time", "tokens", "tokens per second"),
        tuple(rows),
        "Wall time includes starting engines and workers. A step that was stopped and continued shows the time since it was "
        "last started, and no rate. Evaluation counts its greedy tokens.",
    )
    tables = [table]
    if recorded := recorded_comparison(f.run):
        pool, figures = recorded
        note = f"The plan for {pool}, recorded when the run began, and what was measured."
        tables.append(Table(("plan", "planned", "measured"), tuple(figure.cells for figure in figures), note))
    return chapter("cost", "Cost", "Time and tokens", tables=tables)


def tokens_of(facts: Mapping[str, Any]) -> int:
    """Tokens that a finished artifact generated or trained on, from its manifest; evaluations record only their mean."""
    if "overall" in facts:
        return round(facts["overall"]["num_questions"] * facts["mean_tokens"])
    return facts.get("tokens", 0)
