"""Results side by side, in words and as the terminal's table: what a run showed, and what it could not have shown.

An arm is called better or worse only when its corrected p-value is below 1 - confidence; otherwise the sentence says
which difference these questions could have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from east_ray.config.load import from_dict
from east_ray.evaluation.comparison import DEFAULT, Comparison, Difference, at_round, compare, read_measured
from east_ray.evaluation.statistics import minimum_detectable_effect
from east_ray.formatting import points, probability
from east_ray.runs.directory import RunDirectory

DISAGREEMENT = (0.02, 0.05, 0.1, 0.2)  # shares of the questions that two models may answer differently
MAX_SENTENCES = 3  # more inconclusive arms than this share one sentence


@dataclass(frozen=True)
class Summary:
    """A headline, then sentences that can stand alone."""

    headline: str
    sentences: tuple[str, ...]


def render_table(run: RunDirectory) -> Group | None:
    """The terminal's table with its verdict below; None while nothing is evaluated."""
    config = from_dict(run.read_json("config.json"), run.uri_of("config.json"))
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    if not rows:
        return None
    confidence = config.evaluation.confidence
    table = Table(
        title=f"Accuracy on {rows[0].num_questions:,} test questions{seeds(rows)}; {confidence:.0%} intervals, differences in points",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("arm", overflow="fold")
    for name in ("accuracy", "to default", "to vanilla"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracy = f"{100 * row.accuracy:.1f}% [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        table.add_row(row.name, accuracy, _cell(row.to_default), _cell(row.to_vanilla))
    verdict = describe(rows, confidence)
    return Group(table, Text("\n".join([f"{verdict.headline}.", *verdict.sentences])))


def describe(rows: Sequence[Comparison], confidence: float) -> Summary:
    """Say what the rows of `compare` show and what they cannot show."""
    if not rows:
        return Summary("Nothing has been evaluated yet", ())
    level = 1 - confidence
    default = next((row for row in rows if row.name == DEFAULT), None)
    trained = [row for row in rows if row.name != DEFAULT]
    if not trained:
        return Summary(f"Before training: {100 * rows[0].accuracy:.1f}% of {rows[0].num_questions:,} questions", ())
    weighted = [row for row in trained if row.to_vanilla is not None]
    sentences = []
    if default is not None:
        first = next((row for row in trained if row.to_vanilla is None), trained[0])
        sentences.append(_training_sentence(default, first, level))
    clear = [row for row in weighted if _is_clear(row, level)]
    unclear = [row for row in weighted if not _is_clear(row, level)]
    sentences += [_weighting_sentence(row, level) for row in clear]
    if len(unclear) > MAX_SENTENCES:
        sentences.append(_together(unclear))
    else:
        sentences += [_weighting_sentence(row, level) for row in unclear]
    headline = _headline_of_weights(weighted, level) if weighted else _headline_of_training(trained[0], default, level)
    return Summary(headline, tuple(sentences))


def detectable_differences(num_questions: int, confidence: float) -> str:
    """What so many test questions can show, said before anything is spent on answering them."""
    sizes = {share: minimum_detectable_effect(num_questions, share, confidence=confidence) for share in DISAGREEMENT}
    shown = [f"{100 * size:.1f} points on {share:.0%}" for share, size in sizes.items() if size < 1]
    if not shown:
        return f"{num_questions:,} test questions are too few to show a difference"
    return (
        f"{num_questions:,} test questions can show, in 8 of 10 tries at {confidence:.0%} and by the share on which two models "
        f"disagree: {', '.join(shown)}"
    )


def seeds(rows: Sequence[Comparison]) -> str:
    """`, mean of 3 seeds` where arms were trained so many times."""
    most = max((len(row.members) for row in rows), default=1)
    return f", mean of {most} seeds" if most > 1 else ""


def _headline_of_training(row: Comparison, default: Comparison | None, level: float) -> str:
    if row.to_default is None or default is None:
        return f"After training: {100 * row.accuracy:.1f}% of {row.num_questions:,} questions"
    if row.to_default.p_adjusted >= level:
        return "Training made no difference that these questions could show"
    return f"Training moved accuracy from {100 * default.accuracy:.1f}% to {100 * row.accuracy:.1f}%"


def _headline_of_weights(weighted: Sequence[Comparison], level: float) -> str:
    if len(weighted) == 1:
        row, d = weighted[0], weighted[0].to_vanilla
        assert d is not None
        if not _is_clear(row, level):
            return f"{row.name} and {d.baseline} cannot be told apart ({points(d.estimate)} points)"
        verb = "beats" if d.estimate > 0 else "falls behind"
        return f"{row.name} {verb} {d.baseline} by {abs(100 * d.estimate):.1f} points"
    clear = [row.to_vanilla for row in weighted if row.to_vanilla and _is_clear(row, level)]
    better, worse = sum(d.estimate > 0 for d in clear), sum(d.estimate < 0 for d in clear)
    if not clear:
        return f"None of {len(weighted)} weighted arms can be told apart from plain self-training"
    beat, fall = ("beats" if better == 1 else "beat"), ("falls" if worse == 1 else "fall")
    if not worse:
        return f"{better} of {len(weighted)} weighted arms {beat} plain self-training"
    if not better:
        return f"{worse} of {len(weighted)} weighted arms {fall} behind plain self-training"
    return f"Of {len(weighted)} weighted arms, {better} {beat} plain self-training and {worse} {fall} behind"


def _training_sentence(default: Comparison, row: Comparison, level: float) -> str:
    d = row.to_default
    assert d is not None
    if d.gained == d.lost == 0:
        answers = f"answers exactly the same of these {row.num_questions:,} questions correctly"
        return f"{row.name} {answers} as the model before training."
    moved = f"{row.name} moved accuracy from {100 * default.accuracy:.1f}% to {100 * row.accuracy:.1f}%"
    end = "" if d.p_adjusted < level else ", which chance alone could explain"
    return f"Against the model before training, {moved} ({_known(d)}, p {probability(d.p_adjusted)}){end}."


def _weighting_sentence(row: Comparison, level: float) -> str:
    d = row.to_vanilla
    assert d is not None
    if d.gained == d.lost == 0:
        return (
            f"{row.name} and {d.baseline} answer exactly the same of these {row.num_questions:,} questions correctly."
        )
    if _is_clear(row, level):
        better = "better" if d.estimate > 0 else "worse"
        return f"{row.name} is {better} than {d.baseline} by {_known(d)}, p {probability(d.p_adjusted)}."
    return (
        f"{row.name} and {d.baseline} differ by {_known(d)}: these {row.num_questions:,} questions cannot tell them apart; "
        f"{_detectable(d.detectable, d.detectable)}."
    )


def _together(rows: Sequence[Comparison]) -> str:
    """One sentence for many arms that cannot be told apart from their vanilla ones."""
    differences = [row.to_vanilla for row in rows if row.to_vanilla is not None]
    lowest, highest = min(d.estimate for d in differences), max(d.estimate for d in differences)
    return (
        f"{len(rows)} arms differ from plain self-training by {points(lowest)} to {points(highest)} points: these "
        f"{rows[0].num_questions:,} questions cannot tell them apart from it; "
        f"{_detectable(min(d.detectable for d in differences), max(d.detectable for d in differences))}."
    )


def _is_clear(row: Comparison, level: float) -> bool:
    return row.to_vanilla is not None and row.to_vanilla.p_adjusted < level


def _known(d: Difference) -> str:
    return f"{points(d.estimate)} points, interval [{points(d.low)}, {points(d.high)}]"


def _detectable(least: float, most: float) -> str:
    """What could have been seen, between the arm for which it was easiest and the one for which it was hardest."""
    if least >= 1:
        return "the arms disagree on too few of them to show any difference"
    if most >= 1:
        return f"a difference of {100 * least:.1f} points or more could have been seen"
    if round(100 * least, 1) == round(100 * most, 1):
        return f"a difference of {100 * least:.1f} points could have been seen"
    return f"differences of {100 * least:.1f} to {100 * most:.1f} points, by arm, could have been seen"


def _cell(d: Difference | None) -> str:
    if d is None:
        return ""
    return f"{points(d.estimate)} [{points(d.low)}, {points(d.high)}]\np {probability(d.p_adjusted)}"
