"""Report chapters, results: accuracies, exponents, rounds, and the questions the model is unsure of.

Each reads its part of a run directory, never completions; without data it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from east_ray.analysis.drift import STATES, RoundDrift, drift
from east_ray.evaluation.comparison import DEFAULT, Comparison, Difference, compare
from east_ray.evaluation.statistics import holm
from east_ray.figures import charts
from east_ray.figures.drawing import Estimate, Figure
from east_ray.formatting import interval, percent, points, points_interval, probability
from east_ray.report import paper
from east_ray.report.data import Chapter, ReportData, Table, chapter, figure5_name, titled

MAX_FLOWS = 4  # arms whose questions are drawn moving; the table has all
WEIGHT_COLUMNS = ["question_id", "entropy", "inaccuracy", "dominant_wrong"]


def result(f: ReportData) -> Chapter | None:
    """The headline: one row per arm. The page adds the table of differences, whose cells have two lines."""
    if not f.comparisons:
        return None
    confidence = f.config.evaluation.confidence
    figures = [charts.accuracy_forest([*map(f.estimate, f.comparisons)], confidence, f.comparisons[0].num_questions)]
    differences = [
        Estimate(row.name, 100 * d.estimate, 100 * d.low, 100 * d.high, f.color(row.members[0]))
        for row in f.comparisons
        if (d := row.to_vanilla)
    ]
    if differences:
        figures.append(charts.difference_forest(differences, confidence))
    text, rounds = "", max(m.rounds for m in f.compared.values())
    if f.config.run.rounds > 1:
        text = f"After {rounds} {'rounds' if rounds > 1 else 'round'} of self-training"
        is_early = 0 < rounds < f.config.run.rounds
        text += ", the most that all arms have; later rounds of some arms are shown below." if is_early else "."
    return chapter("result", "Result", "Did it help?", text, figures)


def table_1(f: ReportData) -> Chapter | None:
    """Our results next to the paper's Table 1, for the losses of which all four methods were measured."""
    rows = {row.name: row for row in f.comparisons}
    losses = [loss for loss in ("sft", "dpo", "kto") if all(f"{loss}-{method}" in rows for method in paper.METHODS)]
    if not losses:
        return None
    column = paper.column_for(f.config.model.path, f.config.questions.train, f.config.questions.test)
    text = f"Our EAST has a = {f.config.weighting.exponent:g} in every row; the paper searches for the best a in each. "
    text += "The paper's figures are single runs without intervals. "
    if column is None:
        column = paper.COLUMNS[0]
        text += f"They are of another model and data set ({column.title}): compare directions, not heights."
    body = [("default", percent(rows[DEFAULT].accuracy), "", f"{column.default:.1f}%", "")] if DEFAULT in rows else []
    for loss in losses:
        for method in paper.METHODS:
            row, theirs = rows[f"{loss}-{method}"], column.accuracy(loss, method)
            less = "" if method == "vanilla" else points((theirs - column.accuracy(loss, "vanilla")) / 100)
            body.append((row.name, percent(row.accuracy), difference(row.to_vanilla), f"{theirs:.1f}%", less))
    columns = ("method", "ours", "ours to vanilla", "paper", "paper to vanilla")
    table = Table(columns, tuple(body), f"Paper: {column.title}.")
    return chapter("table1", "Table 1", "Our results and the paper's Table 1", text, tables=[table])


def exponents(f: ReportData) -> Chapter | None:
    """Figure 3, for every family of at least three exponents."""
    families = exponent_families(f, f.comparisons)
    if not families:
        return None
    default = next((row.accuracy for row in f.comparisons if row.name == DEFAULT), None)
    held_out = exponent_families(f, f.held_out)
    if held_out:
        text = (
            f"The exponent is chosen on {f.held_out[0].num_questions:,} held-out training questions, never on the test "
            "questions shown here, so a chosen arm is one comparison with plain self-training, not the best of many."
        )
    else:
        text = (
            "No training questions were held out (questions.validation_share = 0), so no exponent may be chosen from this "
            "figure: picking the best of several on the test questions would overstate it."
        )
    figure = charts.accuracy_by_exponent(families, default)
    return chapter(
        "exponents", "Exponents", "How sharp should the weights be?", text, [figure], [chosen_table(f, held_out)]
    )


def chosen_table(f: ReportData, held_out: Mapping[str, Sequence[tuple[float, Estimate]]]) -> Table:
    """Per family the exponent that the held-out questions choose, and what it is worth on the test questions.

    Of equally accurate exponents the one nearest to 0 is chosen, which changes training least.
    """
    tested = {row.name: row for row in f.comparisons}
    chosen = {
        label: max(values, key=lambda point: (round(point[1].value, 12), -abs(point[0])))
        for label, values in held_out.items()
    }
    gains = [row.to_vanilla if (row := tested.get(best.label)) else None for _, best in chosen.values()]
    adjusted = holm([d.p_value if d else 1.0 for d in gains])
    rows = []
    for (label, (a, best)), d, p in zip(chosen.items(), gains, adjusted, strict=True):
        on_held_out = f"{percent(best.value)} {interval(best.low, best.high)}"
        on_test = percent(tested[best.label].accuracy) if best.label in tested else ""
        gain = "plain self-training" if a == 0 else difference(d and replace(d, p_adjusted=p))
        rows.append((label, f"{a:g}", on_held_out, on_test, gain))
    columns = ("weights from", "chosen a", "on the held-out questions", "on the test questions", "to a = 0")
    caption = "The exponent that did best on the held-out questions; of equal ones, the nearest to 0."
    if len(rows) > 1:
        caption += f" p is Holm-adjusted over these {len(rows)} choices."
    return Table(columns, tuple(rows), caption)


def exponent_families(f: ReportData, rows: Sequence[Comparison]) -> dict[str, list[tuple[float, Estimate]]]:
    """Label -> (exponent, accuracy) of arms that differ in nothing but the exponent; exponent 0 belongs to every measure."""
    weighted, plain = power_arms(f, rows)
    families = {}
    for key, found in weighted.items():
        points = {a: f.estimate(row) for a, row in {**plain.get(key[:-2], {}), **found}.items()}
        if len(points) >= 3:
            families[family_label(f, found, weighted)] = sorted(points.items(), key=lambda point: point[0])
    return families


Arms = dict[tuple[str, ...], dict[float, Comparison]]


def power_arms(f: ReportData, rows: Sequence[Comparison]) -> tuple[Arms, Arms]:
    """Arms by what they share, then by exponent: those that weight, and those with exponent 0, whose weights are all 1.

    Keys: (training settings, clip, measure) of the former, (training settings,) of the latter.
    """
    weighted: Arms = {}
    plain: Arms = {}
    for row in rows:
        if row.name == DEFAULT:
            continue
        own = f.config.for_arm(f.arm(row.members[0]))
        if own.weighting.mapping != "power" or own.training.local_weight != "none":
            continue
        training = json.dumps(own.training.identity(), sort_keys=True)
        if own.weighting.exponent == 0:
            plain.setdefault((training,), {}).setdefault(0.0, row)
        else:
            key = (training, str(own.weighting.clip), own.weighting.measure)
            weighted.setdefault(key, {}).setdefault(own.weighting.exponent, row)
    return weighted, plain


def family_label(f: ReportData, found: Mapping[float, Comparison], weighted: Arms) -> str:
    """Loss and measure, and the settings that tell a family from others with the same two."""

    def parts(rows: Mapping[float, Comparison]) -> tuple[str, str]:
        arm = f.arm(next(iter(rows.values())).members[0])
        own = f.config.for_arm(arm)
        shown = {"weighting.exponent", "weighting.measure", "training.loss", "run.seed"}
        others = [f"{key.split('.', 1)[1]} {value}" for key, value in sorted(arm.set.items()) if key not in shown]
        return f"{own.training.loss.upper()}, {own.weighting.measure.replace('_', ' ')}", ", ".join(others)

    name, others = parts(found)
    is_alone = sum(parts(rows)[0] == name for rows in weighted.values()) == 1
    return name if is_alone or not others else f"{name}, {others}"


def rounds(f: ReportData) -> Chapter | None:
    """Figure 4 and what happened to the training questions meanwhile, for the arms of more than one round."""
    long_arms = {arm.name for arm in f.config.arms if (arm.rounds or f.config.run.rounds) > 1}
    if not long_arms:
        return None
    by_round = compare_rounds(f, long_arms)
    figures: list[Figure] = []
    start = [(0, f.estimate(row)) for rows in by_round.values() for row in rows if row.name == DEFAULT][:1]
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for t, rows in by_round.items():
        for row in rows:
            if row.name != DEFAULT:
                lines.setdefault(row.name, list(start)).append((t, f.estimate(row)))
    if lines:
        figures.append(charts.accuracy_by_round(lines))
    by_arm = {arm: rows for arm, rows in drift(f.run, f.config).items() if arm in long_arms}
    for arm in (members[0] for members in f.groups.values() if members[0] in by_arm):
        moves = [np.array(row.moved) for row in by_arm[arm] if row.moved is not None]
        if moves and len(figures) <= MAX_FLOWS:
            figures.append(charts.state_flow(arm, moves))
    model = "that model" if f.config.run.start_from == "previous" else "the first model again"
    data = "this round's examples" if f.config.run.data == "replace" else "the examples of all rounds so far"
    text = f"Round t samples from the model after t \u2212 1 rounds of training, then trains {model} on {data}."
    tables = [round_table(by_round, f.config.evaluation.confidence), drift_table(by_arm)]
    return chapter("rounds", "Rounds", "Round after round", text, figures, tables)


def compare_rounds(f: ReportData, arms: Collection[str]) -> dict[int, list[Comparison]]:
    """Rounds of training -> the arms after so many, compared; p-values are corrected within a round."""
    found = {}
    for t in sorted({m.rounds for m in f.measured} - {0}):
        at_t = {m.name: m for m in f.measured if m.rounds == 0 or (m.rounds == t and m.name in arms)}
        found[t] = compare(f.run, f.config, at_t)
    return found


def round_table(by_round: Mapping[int, Sequence[Comparison]], confidence: float) -> Table:
    """Accuracy of every arm after each round, and its difference to its vanilla arm."""
    body = [
        (f"{row.name}, round {t}", percent(row.accuracy), interval(row.low, row.high), difference(row.to_vanilla))
        for t, rows in by_round.items()
        for row in rows
        if row.name != DEFAULT
    ]
    columns = ("arm, round", "accuracy", f"{confidence:.0%} CI", "difference to vanilla")
    caption = "Test accuracy after every round; differences in points, p Holm-adjusted within a round."
    return Table(columns, tuple(body), caption)


def drift_table(by_arm: Mapping[str, Sequence[RoundDrift]]) -> Table:
    """Solved, uncertain and stuck training questions, arm by arm and round by round."""
    columns = ("arm, round", *STATES, "pass@1", "pass@k", "tokens", "different answers")
    rows = [
        (
            f"{row.arm}, round {row.round_index + 1}",
            *(f"{getattr(row, state):,}" for state in STATES),
            f"{row.pass_at_1:.1%}",
            f"{row.pass_at_k:.1%} (k = {row.k})",
            f"{row.mean_tokens:,.1f}",
            f"{row.unique_answers:.2f}",
        )
        for rows in by_arm.values()
        for row in rows
    ]
    caption = "Drift on the training questions. Tokens and different answers: mean per completion and per question."
    return Table(columns, tuple(rows), caption)


def uncertainty(f: ReportData) -> Chapter | None:
    """Figure 5, of the first samples and of the last round's, and the three measures' accuracies when arms compare them."""
    figures: list[Figure] = []
    for name, directory in f.plotted_directories().items():
        weights = f.run.read_table(directory, "weights", columns=WEIGHT_COLUMNS)
        measures = [np.asarray(weights[c]) for c in WEIGHT_COLUMNS[1:]]
        figure = charts.uncertainty_map(weights["question_id"].to_pylist(), *measures, name=figure5_name(directory))
        figure = replace(figure, caption="The same questions, sampled again in this round.") if figures else figure
        figures.append(titled(figure, name, len(f.weight_directories()) > 1))
    text = (
        "Entropy, inaccuracy and the dominant wrong share are computed from the same clusters of answers. Click a dot to "
        "read its question."
    )
    title = "Which questions is the model unsure of?"
    return chapter("uncertainty", "Uncertainty", title, text, figures, [measure_table(f)])


def measure_table(f: ReportData) -> Table | None:
    """Mean accuracy by measure over the exponents that all measures were trained with (the paper's ablation).

    Only arms that differ in nothing but measure and exponent are compared.
    """
    weighted, _ = power_arms(f, f.comparisons)
    alike: dict[tuple[str, ...], dict[str, dict[float, Comparison]]] = {}
    for (*settings, measure), found in weighted.items():
        alike.setdefault(tuple(settings), {})[measure] = found
    shared = {key: sorted(set.intersection(*map(set, one.values()))) for key, one in alike.items() if len(one) > 1}
    most = max(shared, key=lambda key: len(shared[key]), default=None)
    if most is None or not (exponents := shared[most]):
        return None
    rows = []
    for found in alike[most].values():
        accuracies = [found[a].accuracy for a in exponents]
        label = family_label(f, found, weighted)
        rows.append((label, percent(float(np.mean(accuracies))), *map(percent, accuracies)))
    columns = ("weights from", "mean accuracy", *(f"a = {a:g}" for a in exponents))
    caption = (
        "By measure, over the exponents all of them share. The confidence intervals of the first table show how much of a "
        "difference may be chance."
    )
    return Table(columns, tuple(rows), caption)


def difference(d: Difference | None) -> str:
    """A difference with its interval and p; empty where there is none."""
    return f"{points(d.estimate)} {points_interval(d.low, d.high)}, p {probability(d.p_adjusted)}" if d else ""
