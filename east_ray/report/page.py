"""The report: one self-contained page from a run directory, with every figure as PNG and CSV beside it.

Reads whatever is there (a base evaluation alone, one round, several, a sweep) and leaves out chapters without data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from dataclasses import asdict
from importlib import resources

import jinja2
from markupsafe import Markup

from east_ray import formatting
from east_ray.evaluation.comparison import DEFAULT, Comparison, flatten
from east_ray.evaluation.summary import describe, seeds
from east_ray.figures.drawing import EAST, FULL, HALF, NARROW, NEUTRAL, VANILLA, Figure, png, svg, to_csv
from east_ray.report import process, question_browser, results
from east_ray.report.data import Chapter, ReportData, gather_report_data
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

SCRIPT_HASH = "{script-hash}"
MAX_STATS = 4  # accuracies at the head of the page


def write_report(run: RunDirectory) -> str:
    """Write report.html and the files beside it; returns its address. UserError when this is not a run directory."""
    data = gather_report_data(run, run.config())
    made = [make(data) for make in (
        results.result, results.table_1, results.exponents, results.rounds, results.uncertainty, process.weights,
        process.training, process.details, _questions, process.cost,
    )]  # fmt: skip
    chapters = [chapter for chapter in made if chapter is not None]
    chapters.append(Chapter("provenance", "Provenance", "Where these results come from"))
    for figure in (figure for chapter in chapters for figure in chapter.figures):
        run.write_bytes(png(figure), "report", f"{figure.name}.png")
        run.write_bytes(to_csv(figure.rows), "report", f"{figure.name}.csv")
    run.write_bytes(to_csv([asdict(row) for row in data.comparisons]), "report", "comparisons.csv")
    page = render_page(data, chapters)
    run.write_bytes(page.encode(), "report.html")
    logger.info("report.html: %d chapters, %.1f MB", len(chapters), len(page) / 1e6)
    return run.uri_of("report.html")


def render_page(f: ReportData, chapters: list[Chapter]) -> str:
    """The page. Its content security policy holds the hash of its script, so that no other script can ever run in it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": formatting.percent, "points": formatting.points, "p": formatting.probability}
    environment.globals |= {"interval": formatting.interval, "points_interval": formatting.points_interval}
    template = resources.files("east_ray.report").joinpath("report.html").read_text(encoding="utf-8")
    shown = _main_rows(f)
    page = environment.from_string(template).render(
        f=f,
        name=f.run.uri.rstrip("/").rsplit("/", 1)[-1],
        chapters=chapters,
        summary=describe(f.comparisons, f.config.evaluation.confidence),
        basis=_basis(f),
        main_rows=shown,
        other_rows=[row for row in f.comparisons if row not in shown],
        facts=_facts(f),
        note=_note(f),
        confidence=f"{f.config.evaluation.confidence:.0%}",
        draw=_draw,
        cells=_cells,
        provenance=_provenance_rows(f),
        config_text=json.dumps(f.config.model_dump(mode="json"), indent=2),
        data=Markup(question_browser.embed_json({"sources": question_browser.sources(f)})),
        script_hash=SCRIPT_HASH,
    )
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.replace(SCRIPT_HASH, f"sha256-{digest}", 1)


def _draw(figure: Figure, is_full: bool) -> Markup:
    """Both drawings of a figure, for its place on a desk and for a phone; the page shows the one that fits."""
    wide, narrow = svg(figure, FULL if is_full else HALF), svg(figure, NARROW)
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _cells(figure: Figure) -> tuple[list[str], list[list[str]]]:
    """A figure's rows as headings and text."""
    columns = list(dict.fromkeys(name for row in figure.rows for name in row))
    texts = {float: lambda value: f"{value:.5g}", type(None): lambda _: ""}
    return columns, [[texts.get(type(row.get(c)), str)(row.get(c)) for c in columns] for row in figure.rows]


def _main_rows(f: ReportData) -> tuple[Comparison, ...]:
    """The accuracies at the head of the page: every arm's when they are few, else the first of each main colour."""
    if len(f.comparisons) <= MAX_STATS:
        return f.comparisons
    colors = {f.color(row.members[0]): row for row in reversed(f.comparisons)}
    return tuple(row for color in (NEUTRAL, VANILLA, EAST) if (row := colors.get(color)))


def _basis(f: ReportData) -> str:
    """The basis of the headline: intervals, seeds, and for how many comparisons p was corrected."""
    if not f.comparisons:
        return ""
    num_seeds = max(len(row.members) for row in f.comparisons)
    corrected = sum(row.to_vanilla is not None for row in f.comparisons)
    parts = [f"{f.config.evaluation.confidence:.0%} CI in brackets"]
    parts += [f"means of {num_seeds} seeds"] if num_seeds > 1 else ["one seed"]
    parts += [f"p Holm-adjusted over {corrected} comparisons"] if corrected > 1 else []
    return f"{', '.join(parts)}."


def _facts(f: ReportData) -> list[tuple[str, str]]:
    config = f.config
    used = sorted({config.for_arm(arm).run.seed for arm in config.arms})
    *_, parent, name = ["", *config.model.path.rstrip("/").split("/")]
    tested = [("Test questions", f"{f.comparisons[0].num_questions:,}")] if f.comparisons else []
    return [
        ("Model", f"{parent}/{name}" if name == "model" and parent else name),
        *tested,
        ("Samples per question", f"{config.sampling.num_samples:,}"),
        ("Rounds", str(config.run.rounds)),
        ("Arms", str(len(config.arms))),
        ("Seed" if len(used) == 1 else "Seeds", ", ".join(map(str, used))),
    ]


def _note(f: ReportData) -> str:
    """Notes below the headline table: how its numbers were computed, and what vanilla is."""
    level = f"{f.config.evaluation.confidence:.0%}"
    notes = [f"{level} CI: Wilson for accuracies, Bonett and Price's for paired differences. p: McNemar's exact test."]
    if any(len(row.members) > 1 for row in f.comparisons):
        notes = [
            f"{level} CI and p cover both which questions and which seeds were drawn{seeds(f.comparisons)}. Seeds differ in "
            "the order of training alone: in round 1 all learn from the same samples and pairs, so the intervals do not "
            "cover how other samples would have moved the result."
        ]
    differences = {row.name: row.to_vanilla for row in f.comparisons if row.to_vanilla}
    if differences:
        notes.append("Minimum detectable effect: the true difference that would be found significant with 80% power.")
        notes.append("Vanilla is the arm with all weights 1 and the same loss and seed.")
        mixed = [f"{name}: {', '.join(d.differs)}" for name, d in differences.items() if d.differs]
        others = f"Other settings differ too, so these differences are not of the weights alone: {'; '.join(mixed)}."
        notes.append(others if mixed else "All other training settings are equal.")
    plain = set(f.vanilla.values())
    without = [row.name for row in f.comparisons if row.members[0] not in {DEFAULT, *plain} and not row.to_vanilla]
    if plain and without:
        notes.append(
            f"Without a vanilla arm of the same loss and seeds, hence without a difference to it: {', '.join(without)}."
        )
    if max((d.comparisons for d in differences.values()), default=1) > 1:
        notes.append("CI hold for each arm alone; only p is adjusted for their number.")
    return " ".join(notes)


def _questions(f: ReportData) -> Chapter | None:
    if not f.weight_directories():
        return None
    return Chapter(
        "questions",
        "Questions",
        "Look into the questions",
        "Each bar shows how the completions of a question fall into clusters of equal answers: teal for correct, red for incorrect. "
        "Open one to read completions, the pair selected for training and its weight.",
    )


def _provenance_rows(f: ReportData) -> list[tuple[str, str]]:
    """provenance.json, flattened: a b -> value."""
    found = flatten(f.run.read_json("provenance.json") if f.run.exists("provenance.json") else {})
    texts = {list: lambda value: ", ".join(map(str, value)) or "none", bool: lambda value: "yes" if value else "no"}
    rows = [
        (re.sub("[_.]", " ", name), texts.get(type(value), str)(value))
        for name, value in found.items()
        if value is not None
    ]
    return [("run directory", f.run.uri), *rows]
