"""The report's chapters on what came out: the result, the exponents, the rounds, the questions the model is unsure of.

Each reads its part of a run directory, never completions, and says it in figures and tables, or is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from east_ray import figures
from east_ray.comparison import DEFAULT, Comparison, Measured, compare
from east_ray.drift import STATES, RoundDrift, drift
from east_ray.figures import Bar, Figure
from east_ray.findings import Chapter, Findings, Table, bar_of, figure5_name, first_and_last, titled
from east_ray.verdict import points, probability

WEIGHT_COLUMNS = ["question_id", "entropy", "inaccuracy", "dominant_wrong"]


def result(f: Findings) -> Chapter | None:
    """The headline: one row per arm. The page adds the table of differences, which has cells of its own."""
    if not f.comparisons:
        return None
    forest = figures.accuracy_forest(
        [bar_of(f, row) for row in f.comparisons], f.config.evaluation.confidence, f.comparisons[0].num_questions
    )
    rounds = max(m.rounds for m in f.compared.values())
    text = f"After {rounds} rounds of self-training." if rounds > 1 else ""
    return Chapter("result", "Result", "Did it help?", text, (forest,))


def exponents(f: Findings) -> Chapter | None:
    """Figure 3, for every family of at least three arms that differ in their exponent alone."""
    families = exponent_families(f, f.comparisons)
    if not families:
        return None
    default = next((row.accuracy for row in f.comparisons if row.name == DEFAULT), None)
    held_out = exponent_families(f, f.held_out)
    if held_out:
        text = "The exponent is chosen on held-out training questions, never on the test questions shown here. "
        for label, values in held_out.items():
            best = max(values, key=lambda point: point[1].value)
            test = {a: bar.value for a, bar in families.get(label, [])}
            text += f"{label}: a = {best[0]:g} was best there ({best[1].value:.1%})"
            text += f" and reaches {test[best[0]]:.1%} on the test questions. " if best[0] in test else ". "
    else:
        text = (
            "No training questions were held out (questions.validation_share = 0), so no exponent may be chosen from this "
            "figure: picking the best of several on the test questions would overstate it."
        )
    return Chapter(
        "exponents",
        "Exponents",
        "How sharp should the weights be?",
        text,
        (figures.accuracy_by_exponent(families, default),),
    )


def exponent_families(f: Findings, rows: Sequence[Comparison]) -> dict[str, list[tuple[float, Bar]]]:
    """Label -> (exponent, accuracy) of arms alike in all but the exponent; exponent 0 belongs to every measure."""
    points: dict[tuple[str, str, str], list[tuple[float, Bar]]] = {}
    plain: dict[str, list[tuple[float, Bar]]] = {}
    for row in rows:
        if row.name == DEFAULT:
            continue
        own = f.config.for_arm(f.arm(row.members[0]))
        if own.weighting.mapping != "power" or own.training.local_weight != "none":
            continue
        training = json.dumps(own.training.identity(), sort_keys=True)
        point = (own.weighting.exponent, bar_of(f, row))
        if own.weighting.exponent == 0:
            plain.setdefault(training, []).append(point)
        else:
            points.setdefault((training, own.training.loss, own.weighting.measure), []).append(point)
    families: dict[str, list[tuple[float, Bar]]] = {}
    for (training, loss, measure), found in points.items():
        found = sorted([*found, *plain.get(training, [])], key=lambda point: point[0])
        if len({a for a, _ in found}) >= 3:
            label = f"{loss.upper()}, {measure.replace('_', ' ')}"
            families[label if label not in families else f"{label} ({len(families) + 1})"] = found
    return families


def rounds(f: Findings) -> Chapter | None:
    """Figure 4 and what happened to the training questions meanwhile."""
    if f.config.run.rounds < 2:
        return None
    start = [m for m in f.measured if m.rounds == 0]
    arms = {
        arm.name: [
            (m.rounds, bar_from_metrics(f, m, arm.name))
            for m in [*start, *f.measured]
            if m.name == arm.name or m in start
        ]
        for arm in f.config.arms
    }
    arms = {name: sorted(dict(points).items()) for name, points in arms.items()}
    drawn: list[Figure] = []
    if any(len(points) > 1 for points in arms.values()):
        drawn.append(figures.accuracy_by_round({n: p for n, p in arms.items() if p}))
    by_arm = drift(f.run, f.config)
    for arm, rows in by_arm.items():
        moves = [np.array(row.moved) for row in rows if row.moved is not None]
        if moves:
            drawn.append(figures.state_flow(arm, moves))
    table = drift_table(by_arm)
    if not drawn and not table.rows:
        return None
    return Chapter(
        "rounds",
        "Rounds",
        "Round after round",
        "Round t samples from the model that t - 1 rounds of training made.",
        tuple(drawn),
        tuple(table for table in (round_table(f), table) if table.rows),
    )


def bar_from_metrics(f: Findings, m: Measured, arm: str) -> Bar:
    overall = f.metrics[m]["overall"]
    return Bar(arm, overall["accuracy"], overall["low"], overall["high"], f.color(arm))


def round_table(f: Findings) -> Table:
    """Accuracy and the difference to vanilla after every round; p-values are corrected within a round."""
    rows = []
    for t in sorted({m.rounds for m in f.measured} - {0}):
        for row in compare(f.run, f.config, {m.name: m for m in f.measured if m.rounds in (0, t)}):
            if row.name != DEFAULT:
                d = row.to_vanilla
                difference = (
                    ""
                    if d is None
                    else f"{points(d.estimate)} [{points(d.low)}, {points(d.high)}], p {probability(d.p_adjusted)}"
                )
                rows.append(
                    (
                        f"{row.name}, round {t}",
                        f"{row.accuracy:.1%}",
                        f"[{100 * row.low:.1f}, {100 * row.high:.1f}]",
                        difference,
                    )
                )
    return Table(
        ("arm, round", "accuracy", "interval", "difference to vanilla"), tuple(rows), "Test accuracy after every round."
    )


def drift_table(by_arm: Mapping[str, Sequence[RoundDrift]]) -> Table:
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
    return Table(
        columns,
        tuple(rows),
        "Drift on the training questions. Tokens and different answers: mean per completion and per question.",
    )


def uncertainty(f: Findings) -> Chapter | None:
    """Figure 5, of the first samples and of the last round's, and the three measures' accuracies when arms compare them."""
    places = f.places()
    drawn = []
    for name, place in first_and_last(places).items():
        table = f.run.read_table(place, "weights", columns=WEIGHT_COLUMNS)
        measures = [np.asarray(table[c]) for c in ("entropy", "inaccuracy", "dominant_wrong")]
        plot = figures.uncertainty_map(table["question_id"].to_pylist(), *measures, name=figure5_name(place))
        plot = replace(plot, caption="The same questions, asked again in this round.") if drawn else plot
        drawn.append(titled(plot, name, len(places) > 1))
    if not drawn:
        return None
    table = measure_table(f)
    return Chapter(
        "uncertainty",
        "Uncertainty",
        "Which questions is the model unsure of?",
        "Entropy, inaccuracy and the dominant wrong answer are computed from the same clusters of answers. Choose a dot to read its question.",
        tuple(drawn),
        (table,) if table else (),
    )


def measure_table(f: Findings) -> Table | None:
    """Mean accuracy by measure over the exponents that all measures were trained with (the paper's ablation)."""
    by_measure: dict[str, dict[float, float]] = {}
    for row in f.comparisons:
        if row.name == DEFAULT:
            continue
        own = f.config.for_arm(f.arm(row.members[0]))
        w = own.weighting
        if (
            w.mapping == "power"
            and w.exponent != 0
            and own.training.local_weight == "none"
            and own.training.loss == "sft"
        ):
            by_measure.setdefault(w.measure, {})[w.exponent] = row.accuracy
    common = sorted(set.intersection(*(set(values) for values in by_measure.values()))) if by_measure else []
    if len(by_measure) < 2 or not common:
        return None
    rows = [
        (
            measure.replace("_", " "),
            f"{np.mean([values[a] for a in common]):.1%}",
            *(f"{values[a]:.1%}" for a in common),
        )
        for measure, values in by_measure.items()
    ]
    return Table(
        ("weights from", "mean accuracy", *(f"a = {a:g}" for a in common)),
        tuple(rows),
        "SFT arms by measure, over the exponents all of them share.",
    )
