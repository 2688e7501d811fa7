"""One self-contained page from a run directory: what came out, whether it means anything, and why.

Reads whatever is there (a base evaluation alone, one round, several, a sweep) and leaves out the chapters for which
there is nothing. PNG and CSV of every figure lie beside the page in report/.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from dataclasses import asdict
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from east_ray import figures, svg
from east_ray.config.load import from_dict
from east_ray.evaluation.comparison import DEFAULT, Difference
from east_ray.evaluation.summary import describe, seeds
from east_ray.formatting import points, probability
from east_ray.records import UserError
from east_ray.report import process, question_browser, results
from east_ray.report.data import Chapter, ReportData, figure5_name, gather
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

SCRIPT_HASH = "{script-hash}"
MAX_STATS = 4  # accuracies in the page's head


def write_report(run: RunDirectory) -> str:
    """Write report.html and the files beside it; returns where it is. UserError when this is no run directory."""
    from east_ray import png  # matplotlib takes a second to import

    if not run.exists("config.json"):
        raise UserError(
            f"{run.uri} holds no config.json, so it is no run directory; give the run.dir of an `east-ray run`"
        )
    config = from_dict(run.read_json("config.json"), run.uri_of("config.json"))
    findings = gather(run, config)
    found = [make(findings) for make in (
        results.result, results.table_1, results.exponents, results.rounds, results.uncertainty, process.weights,
        process.training, process.details, _questions, process.cost, _provenance,
    )]  # fmt: skip
    shown = [chapter for chapter in found if chapter is not None]
    for chapter in shown:
        for figure in chapter.figures:
            run.write_bytes(png.draw(figure), "report", f"{figure.name}.png")
            run.write_bytes(figures.to_csv(figure.rows()), "report", f"{figure.name}.csv")
    run.write_bytes(figures.to_csv([asdict(row) for row in findings.comparisons]), "report", "comparisons.csv")
    page = render(findings, shown)
    run.write_bytes(page.encode(), "report.html")
    logger.info("report.html: %d chapters, %.1f MB", len(shown), len(page) / 1e6)
    return run.uri_of("report.html")


def render(f: ReportData, shown: list[Chapter]) -> str:
    """The page. The script's hash goes into its content security policy, so that no other script can ever run in it."""
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(resources.files("east_ray.report").joinpath("report.html").read_text(encoding="utf-8"))
    verdict = describe(f.comparisons, f.config.evaluation.confidence)
    page = template.render(
        title=f.run.uri.rstrip("/").rsplit("/", 1)[-1],
        run_name=f.run.uri.rstrip("/").rsplit("/", 1)[-1],
        headline=verdict.headline,
        lede=" ".join([*verdict.sentences[:1], _basis(f)]),
        verdicts=verdict.sentences[1:],
        stats=_stats(f),
        facts=_facts(f),
        sections=[_section(chapter) for chapter in shown],
        comparisons=_rows(f),
        comparison_columns=("accuracy", "difference to default", "difference to vanilla"),
        comparison_note=_note(f),
        provenance=provenance_rows(f),
        config_text=json.dumps(f.config.model_dump(mode="json"), indent=2),
        data=Markup(question_browser.embed_json({"sources": _sources(f)})),
        script_hash=SCRIPT_HASH,
    )
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.replace(SCRIPT_HASH, f"sha256-{digest}", 1)


def _section(chapter: Chapter) -> dict[str, Any]:
    return {
        "id": chapter.id,
        "short": chapter.short,
        "title": chapter.title,
        "text": chapter.text,
        "tables": chapter.tables,
        "figures": [_figure(figure, is_main(figure, chapter)) for figure in chapter.figures],
    }


def is_main(figure: figures.Figure, chapter: Chapter) -> bool:
    """Forests and a chapter's main figure go across the page; others stand two in a row."""
    is_first = figure.name.startswith("figure") and figure is chapter.figures[0]
    return len(chapter.figures) == 1 or isinstance(figure, figures.Forest) or is_first


def _figure(figure: figures.Figure, full: bool) -> dict[str, Any]:
    rows = figure.rows()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "figure": figure,
        "drawing": Markup(svg.draw(figure, svg.FULL if full else svg.HALF)),
        "columns": columns,
        "rows": [["" if row.get(c) is None else _cell(row[c]) for c in columns] for row in rows],
        "full": full,
    }


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _stats(f: ReportData) -> list[dict[str, Any]]:
    """The accuracies in large figures: every arm's when they are few, else one of each colour and the others' range."""
    shown = f.comparisons
    if len(shown) > MAX_STATS:
        colors = {f.color(row.members[0]): row for row in reversed(shown)}
        shown = tuple(row for color in (figures.NEUTRAL, figures.VANILLA, figures.EAST) if (row := colors.get(color)))
    stats = [
        {
            "label": "before training" if row.name == DEFAULT else row.name,
            "value": f"{100 * row.accuracy:.1f}%",
            "note": f"{100 * row.low:.1f} to {100 * row.high:.1f}",
            "color": f.color(row.members[0]),
        }
        for row in shown
    ]
    if rest := [row for row in f.comparisons if row not in shown]:
        lowest, highest = min(row.accuracy for row in rest), max(row.accuracy for row in rest)
        value = f"{100 * lowest:.1f}% to {100 * highest:.1f}%"
        stats.append({"label": f"{len(rest)} other arms", "value": value, "note": "", "color": figures.NEUTRAL})
    return stats


def _basis(f: ReportData) -> str:
    """What the headline rests on: intervals, seeds, and for how many comparisons p was corrected."""
    if not f.comparisons:
        return ""
    num_seeds = max(len(row.members) for row in f.comparisons)
    corrected = sum(row.to_vanilla is not None for row in f.comparisons)
    parts = [f"{f.config.evaluation.confidence:.0%} intervals"]
    parts += [f"means of {num_seeds} seeds"] if num_seeds > 1 else ["one seed"]
    parts += [f"p corrected for {corrected} comparisons"] if corrected > 1 else []
    return f"{', '.join(parts)}."


def _facts(f: ReportData) -> list[tuple[str, str]]:
    config = f.config
    used = sorted({config.for_arm(arm).run.seed for arm in config.arms})
    facts = [
        ("Model", _short_name(config.model.path)),
        ("Samples per question", f"{config.sampling.num_samples:,}"),
        ("Rounds", str(config.run.rounds)),
        ("Arms", str(len(config.arms))),
        ("Seed" if len(used) == 1 else "Seeds", ", ".join(map(str, used))),
    ]
    if f.comparisons:
        facts.insert(1, ("Test questions", f"{f.comparisons[0].num_questions:,}"))
    return facts


def _short_name(path: str) -> str:
    """The end of a path or hub name that says which model it is."""
    *_, parent, name = ["", *path.rstrip("/").split("/")]
    return f"{parent}/{name}" if name == "model" and parent else name


def _rows(f: ReportData) -> list[dict[str, Any]]:
    """The headline table's rows; a cell is (large, small) or None."""
    return [
        {
            "name": row.name,
            "color": f.color(row.members[0]),
            "cells": [
                (f"{100 * row.accuracy:.1f}%", f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"),
                _difference(row.to_default),
                _difference(row.to_vanilla),
            ],
        }
        for row in f.comparisons
    ]


def _difference(d: Difference | None) -> tuple[str, str] | None:
    if d is None:
        return None
    return points(d.estimate), f"[{points(d.low)}, {points(d.high)}], p {probability(d.p_adjusted)}"


def _note(f: ReportData) -> str:
    """How the headline table's intervals and p-values are made."""
    confidence = f"{f.config.evaluation.confidence:.0%}"
    if any(len(row.members) > 1 for row in f.comparisons):
        how = (
            f"{confidence} intervals and p-values cover both which questions and which seeds were drawn{seeds(f.comparisons)}. "
            "Seeds differ in the order of training alone: in round 1 all learn from the same samples and pairs, so how other "
            "samples would have moved the result is not in the intervals."
        )
    else:
        how = (
            f"{confidence} intervals: Wilson for accuracies, paired bootstrap over questions for differences, in points. "
            "p: McNemar's exact test."
        )
    corrected = sum(row.to_vanilla is not None for row in f.comparisons)
    holm = f" Corrected for {corrected} comparisons by Holm's method." if corrected > 1 else ""
    return f"{how}{holm} Vanilla is the arm with the same loss, settings and samples but all weights 1."


def _questions(f: ReportData) -> Chapter | None:
    if not f.places():
        return None
    return Chapter(
        "questions",
        "Questions",
        "Look into the questions",
        "Each bar shows how the completions of a question fall into clusters of equal answers: teal for correct, red for incorrect. "
        "Open one to read completions, the pair chosen for training and the weight it got.",
    )


def _sources(f: ReportData) -> list[dict[str, Any]]:
    places = f.places()
    names = {place: f.columns(place) for place in places.values()}
    found = question_browser.sources(f.run, places, {place: list(columns) for place, columns in names.items()})
    for source, place in zip(found, places.values(), strict=True):
        source["figure"] = figure5_name(place)
        source["mappings"] = [names[place][column] for column in source["mappings"]]
    return found


def _provenance(f: ReportData) -> Chapter:
    return Chapter("provenance", "Provenance", "Where these results come from")


def provenance_rows(f: ReportData) -> list[tuple[str, str]]:
    """provenance.json, flattened: a.b -> value."""
    if not f.run.exists("provenance.json"):
        return [("run directory", f.run.uri)]
    rows: list[tuple[str, str]] = [("run directory", f.run.uri)]

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix} {key}".strip(), item)
        elif value is not None:
            rows.append((prefix.replace("_", " "), str(value)))

    walk("", f.run.read_json("provenance.json"))
    return rows
