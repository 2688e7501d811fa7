"""Paired comparison of a run's arms, in words and as the terminal's table: what a run showed and what it could not show.

An arm is called better or worse only when its Holm-adjusted p-value is below 1 - confidence, which its interval at the
adjusted confidence then bears out by leaving out 0; otherwise the sentence gives the minimum detectable effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from east_ray.evaluation.comparison import DEFAULT, Comparison, Difference, at_round, compare, read_measured
from east_ray.evaluation.statistics import minimum_detectable_effect
from east_ray.formatting import counted, interval, percent, points, points_interval, probability
from east_ray.runs.directory import RunDirectory

DISAGREEMENT = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of the questions that two models may answer differently
MAX_SENTENCES = 3  # more inconclusive arms than this share one sentence


@dataclass(frozen=True)
class Summary:
    """A headline, then sentences that can stand alone."""

    headline: str
    sentences: tuple[str, ...]


def render_table(run: RunDirectory) -> Group | None:
    """The terminal's table with its summary below; None while nothing is evaluated."""
    config = run.config()
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    if not rows:
        return None
    confidence = config.evaluation.confidence
    table = Table(
        title=f"Accuracy on {counted(rows[0].num_questions, 'test question')}{seeds(rows)}; {confidence:.0%} CI, differences in points",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("arm", overflow="fold")
    for name in ("accuracy", "to default", "to vanilla"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracy = f"{percent(row.accuracy)} {interval(row.low, row.high)}"
        table.add_row(row.name, accuracy, difference_cell(row.to_default), difference_cell(row.to_vanilla))
    summary = describe(rows, confidence)
    return Group(table, Text("\n".join([f"{summary.headline}.", *summary.sentences])))


def describe(rows: Sequence[Comparison], confidence: float) -> Summary:
    """Say what the rows of `compare` show and what they cannot show."""
    if not rows:
        return Summary("Nothing has been evaluated yet", ())
    default = next((row for row in rows if row.name == DEFAULT), None)
    trained = [row for row in rows if row.name != DEFAULT]
    if not trained:
        return Summary(
            f"Before training: {percent(rows[0].accuracy)} of {counted(rows[0].num_questions, 'question')}", ()
        )
    weighted = [(row, row.to_vanilla) for row in trained if row.to_vanilla is not None]
    sentences = []
    if default is not None:
        first = next((row for row in trained if row.to_vanilla is None), trained[0])
        sentences.append(_training_sentence(default, first, confidence))
    clear = [(row, d) for row, d in weighted if is_significant(d, confidence)]
    unclear = [(row, d) for row, d in weighted if not is_significant(d, confidence)]
    are_many = len(unclear) > MAX_SENTENCES
    shown = clear if are_many else [*clear, *unclear]
    sentences += [difference_sentence(row.name, d, row.num_questions, confidence) for row, d in shown]
    if are_many:
        sentences.append(_together([d for _, d in unclear]))
    sentences += [
        f"{row.name} is not compared with plain self-training: no vanilla arm has the seed of {', '.join(row.unpaired)}."
        for row in trained
        if row.unpaired
    ]
    if not weighted:
        return Summary(_headline_of_training(trained[0], default, confidence), tuple(sentences))
    return Summary(_headline_of_weights(weighted, confidence), tuple(sentences))


def detectable_differences(num_questions: int, confidence: float) -> str:
    """The minimum detectable difference of so many test questions, said before anything is spent on answering them."""
    sizes = {share: minimum_detectable_effect(num_questions, share, confidence=confidence) for share in DISAGREEMENT}
    shown = [
        f"{100 * size:.1f} points if the models disagree on {share:.0%}" for share, size in sizes.items() if size < 1
    ]
    if not shown:
        return f"{counted(num_questions, 'test question')}: too few to show a difference"
    shown = [shown[0] + " of them", *(text.replace("if the models disagree on", "on") for text in shown[1:4])]
    return (
        f"minimum detectable difference on {counted(num_questions, 'test question')} ({confidence:.0%} confidence, 80% power, one "
        f"comparison): {', '.join(shown)}"
    )


def is_significant(d: Difference, confidence: float) -> bool:
    """Whether the difference may be called one: its Holm-adjusted p-value is below 1 - confidence."""
    return d.p_adjusted < 1 - confidence


def difference_sentence(name: str, d: Difference, num_questions: int, confidence: float) -> str:
    """One difference with its interval, and either its p-value or the minimum detectable effect."""
    differs = f" Their settings differ: {', '.join(d.differs)}." if d.differs else ""
    if d.gained == d.lost == 0:
        return f"{name} and {d.baseline} answer the same of {counted(num_questions, 'question')} correctly.{differs}"
    found = f"{name} \u2212 {d.baseline} = {_known(d, confidence)}"
    if is_significant(d, confidence):
        return f"{found}, {_p(d)}.{differs}"
    return f"{found}: not significant ({_detectable(d.detectable, d.detectable)}).{differs}"


def difference_cell(d: Difference | None) -> str:
    """A difference as a cell of a terminal's table: points, interval, adjusted p; empty without one."""
    if d is None:
        return ""
    return f"{points(d.estimate)} {points_interval(d.low, d.high)}\np {probability(d.p_adjusted)}"


def seeds(rows: Sequence[Comparison]) -> str:
    """`, mean of 3 seeds` where arms were trained so many times."""
    most = max((len(row.members) for row in rows), default=1)
    return f", mean of {most} seeds" if most > 1 else ""


def _headline_of_training(row: Comparison, default: Comparison | None, confidence: float) -> str:
    if row.to_default is None or default is None:
        return f"After training: {percent(row.accuracy)} of {counted(row.num_questions, 'question')}"
    if not is_significant(row.to_default, confidence):
        return f"No significant difference to the base model ({points(row.to_default.estimate)} points)"
    return f"Training moved accuracy from {percent(default.accuracy)} to {percent(row.accuracy)}"


def _headline_of_weights(weighted: Sequence[tuple[Comparison, Difference]], confidence: float) -> str:
    if len(weighted) == 1:
        ((row, d),) = weighted
        if not is_significant(d, confidence):
            return f"No significant difference between {row.name} and {d.baseline} ({points(d.estimate)} points)"
        verb = "beats" if d.estimate > 0 else "falls behind"
        other = ", with other training settings" if d.differs else ""
        return f"{row.name} {verb} {d.baseline} by {abs(100 * d.estimate):.1f} points{other}"
    clear = [d for _, d in weighted if is_significant(d, confidence)]
    better, worse = sum(d.estimate > 0 for d in clear), sum(d.estimate < 0 for d in clear)
    if not clear:
        return f"None of {len(weighted)} weighted arms differs significantly from plain self-training"
    beat, fall = ("beats" if better == 1 else "beat"), ("falls" if worse == 1 else "fall")
    if not worse:
        return f"{better} of {len(weighted)} weighted arms {beat} plain self-training"
    if not better:
        return f"{worse} of {len(weighted)} weighted arms {fall} behind plain self-training"
    return f"Of {len(weighted)} weighted arms, {better} {beat} plain self-training and {worse} {fall} behind"


def _training_sentence(default: Comparison, row: Comparison, confidence: float) -> str:
    d = row.to_default
    assert d is not None
    if d.gained == d.lost == 0:
        return f"{row.name} answers the same of {counted(row.num_questions, 'question')} correctly as the base model."
    moved = f"{row.name}: {percent(default.accuracy)} \u2192 {percent(row.accuracy)}"
    end = "" if is_significant(d, confidence) else ": not significant"
    by = _known(d, confidence).replace(" points", " points over the base model", 1)
    return f"{moved} ({by}, {_p(d)}){end}."


def _together(differences: Sequence[Difference]) -> str:
    """One sentence for many arms without a significant difference to their vanilla ones."""
    lowest, highest = min(d.estimate for d in differences), max(d.estimate for d in differences)
    detectable = [d.detectable for d in differences]
    return (
        f"{len(differences)} arms differ from plain self-training by {points(lowest)} to {points(highest)} points: not "
        f"significant ({_detectable(min(detectable), max(detectable))})."
    )


def _known(d: Difference, confidence: float) -> str:
    return f"{points(d.estimate)} points, {confidence:.0%} CI {points_interval(d.low, d.high)}"


def _p(d: Difference) -> str:
    return f"{'Holm-adjusted p' if d.comparisons > 1 else 'p'} {probability(d.p_adjusted)}"


def _detectable(least: float, most: float) -> str:
    """The minimum detectable effect, from the arm for which it is smallest to the one for which it is largest."""
    if least >= 1:
        return "the arms disagree on too few questions to show any difference"
    if most >= 1:
        return f"minimum detectable effect {100 * least:.1f} points or more"
    if round(100 * least, 1) == round(100 * most, 1):
        return f"minimum detectable effect {100 * least:.1f} points"
    return f"minimum detectable effect {100 * least:.1f} to {100 * most:.1f} points, by arm"
