"""Paired comparison of two evaluated models or runs that answered the same questions: `east-ray compare A B`.

A and B are run directories, whose arms are paired by name (seeds pooled), or directories of one model inside a run
(RUN/base, RUN/round-00/arms/east). What was not asked and graded alike is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from east_ray.config.load import Config
from east_ray.evaluation.comparison import (
    DEFAULT,
    Difference,
    at_round,
    differences_of,
    matrix,
    read_correct,
    read_measured,
    seed_groups,
)
from east_ray.evaluation.statistics import accuracy_interval
from east_ray.evaluation.summary import difference_cell, difference_sentence
from east_ray.formatting import interval, percent
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

ASKED = ["question_id", "question", "reference", "prompt_hash"]
NOTED = {"max_new_tokens": "evaluation.max_new_tokens", "dtype": "model.dtype"}  # worth a line where they differ


@dataclass(frozen=True)
class Evaluated:
    """The evaluated models of one argument. Name -> evaluation directories in the run, one per seed."""

    uri: str
    run: RunDirectory
    config: Config
    models: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Pair:
    """One row: the same arm of A and of B, or the two models named. Intervals are of the accuracies."""

    name: str
    num_questions: int
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    difference: Difference


def render_comparison(first: str, second: str) -> Group:
    """The table of `compare_runs` with one sentence per row, for the terminal."""
    pairs, notes, confidence = compare_runs(first, second)
    count = pairs[0].num_questions
    table = Table(
        title=f"Accuracy on {count:,} questions, {confidence:.0%} CI", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("model", "A", "B", "A \u2212 B, points"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    sentences = []
    for pair in pairs:
        sides = zip(pair.accuracies, pair.intervals, strict=True)
        cells = (f"{percent(mean)} {interval(*ends)}" for mean, ends in sides)
        table.add_row(pair.name, *cells, difference_cell(pair.difference))
        sentences.append(f"{pair.name}: {difference_sentence('A', pair.difference, count, confidence)}")
    return Group(Text(f"A = {first}\nB = {second}"), table, Text("\n".join([*sentences, *notes])))


def compare_runs(first: str, second: str) -> tuple[list[Pair], list[str], float]:
    """A less B for every pair of models, notes on settings that differ, and the confidence (A's).

    UserError when nothing can be paired, or when questions, references, prompts or graders differ.
    """
    a, b = open_evaluated(first), open_evaluated(second)
    confidence, matched = a.config.evaluation.confidence, _matched(a, b)
    notes: set[str] = set()
    answers: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    for name, of_a, of_b in matched:
        notes |= check_alike(a, b, of_a[0], of_b[0])
        sides = [{d: read_correct(side.run, d) for d in found} for side, found in ((a, of_a), (b, of_b))]
        ids = sides[0][of_a[0]]
        answers[name] = (matrix(sides[0], of_a, ids), matrix(sides[1], of_b, ids), "B")
    pairs = []
    for name, difference in differences_of(answers, confidence).items():
        both = answers[name][:2]
        accuracies = tuple(float(side_S_Q.mean()) for side_S_Q in both)
        intervals = tuple(accuracy_interval(side_S_Q, confidence) for side_S_Q in both)
        pairs.append(Pair(name, both[0].shape[1], accuracies, intervals, difference))
    return pairs, sorted(notes), confidence


def open_evaluated(uri: str) -> Evaluated:
    """A run's evaluated models after the round that all arms share, or the one model of a directory inside a run."""
    root, inside = uri.rstrip("/"), ""
    while not (here := RunDirectory(root)).exists("config.json") or here.exists("training.json"):  # that is a model's
        parent, _, name = root.rpartition("/")
        if not parent or parent.endswith(":/"):
            raise UserError(f"{uri} is neither a run directory nor inside one: no config.json there or above it")
        root, inside = parent, f"{name}/{inside}".rstrip("/")
    run, inside = here, inside.removesuffix("/model").removesuffix("/evaluation")
    config = run.config()
    if inside:
        name = DEFAULT if inside == "base" else inside.rpartition("/")[2]
        is_evaluated = run.exists(inside, "evaluation", "metrics.json")
        found = {name: (f"{inside}/evaluation",)} if is_evaluated else {}
    else:
        measured = at_round(config, read_measured(run, config, "evaluation"))
        groups = {DEFAULT: (DEFAULT,), **seed_groups(config)}
        found = {
            name: tuple(measured[member].directory for member in members)
            for name, members in groups.items()
            if measured.keys() >= set(members)
        }
    if not found:
        raise UserError(f"{uri} holds no evaluation; run `east-ray evaluate CONFIG` first")
    return Evaluated(uri, run, config, found)


def _matched(a: Evaluated, b: Evaluated) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(name, A's directories, B's) of what is compared: arms of one name and as many seeds, or the only two models."""
    trained = [
        {name: found for name, found in side.models.items() if name != DEFAULT} or side.models for side in (a, b)
    ]
    if all(len(found) == 1 for found in trained):
        (name_a, of_a), (name_b, of_b) = (next(iter(found.items())) for found in trained)
        if len(of_a) == len(of_b):
            return [(name_a if name_a == name_b else f"{name_a} (A), {name_b} (B)", of_a, of_b)]
    shared = [name for name in a.models if name in b.models and len(a.models[name]) == len(b.models[name])]
    shared = [name for name in shared if name != DEFAULT] or shared
    if not shared:
        raise UserError(
            f"nothing to pair: A has {', '.join(a.models)}, B has {', '.join(b.models)}; name one model of each, e.g. "
            f"{a.run.uri_of(next(iter(trained[0].values()))[0].removesuffix('/evaluation'))}"
        )
    return [(name, a.models[name], b.models[name]) for name in shared]


def check_alike(a: Evaluated, b: Evaluated, of_a: str, of_b: str) -> set[str]:
    """Notes on other settings that differ. UserError, by name, where questions, references, prompts or graders do."""
    asked = []
    for side, directory in ((a, of_a), (b, of_b)):
        rows = side.run.read_table("questions", "test.parquet", columns=ASKED).to_pylist()
        ids = read_correct(side.run, directory)
        asked.append({row["question_id"]: row for row in rows if row["question_id"] in ids})
    where = f"{a.uri} and {b.uri} cannot be compared: "
    only_a, only_b = sorted(asked[0].keys() - asked[1].keys()), sorted(asked[1].keys() - asked[0].keys())
    if only_a or only_b:
        raise UserError(
            f"{where}they answered different questions ({len(only_a)} only in A, {len(only_b)} only in B, e.g. "
            f"{(only_a or only_b)[0]!r}); evaluate both on the same questions.test"
        )
    for column, what, remedy in (
        ("question", "questions", "evaluate both on the same questions.test"),
        ("reference", "reference answers", "evaluate both on the same questions.test"),
        ("prompt_hash", "prompts", "use the same questions.system_prompt and chat template"),
    ):
        differ = [name for name, row in asked[0].items() if row[column] != asked[1][name][column]]
        if differ:
            raise UserError(f"{where}different {what} for {len(differ)} questions, e.g. {differ[0]!r}; {remedy}")
    mine, theirs = (side.config.grading.identity() for side in (a, b))
    differ = [f"grading.{name} = {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
    of_run = [(side.run.manifest(d) or {"settings": {}})["settings"] for side, d in ((a, of_a), (b, of_b))]
    settings = {name: [found.get(name) for found in of_run] for name in ("grading", *NOTED)}
    if differ or settings["grading"][0] != settings["grading"][1]:
        raise UserError(
            f"{where}different graders ({', '.join(differ) or 'one was configured otherwise since'}); evaluate one again "
            "with the other's [grading] settings"
        )
    noted = {dotted: settings[name] for name, dotted in NOTED.items()}
    return {
        f"{dotted} differs: {a_has} (A), {b_has} (B)." for dotted, (a_has, b_has) in noted.items() if a_has != b_has
    }
