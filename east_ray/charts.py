"""The figures there are: the paper's three and our own, each made of plain numbers (`figures.py` says what a figure is)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from east_ray.figures import (
    EAST,
    NEUTRAL,
    NUM_SHADES,
    Bar,
    Flow,
    Forest,
    Node,
    Plot,
    Series,
    distinct_colors,
    wrap_color,
)

MAX_DOTS = 4000  # more dots than this hide each other and weigh down the page


def accuracy_forest(bars: Sequence[Bar], confidence: float, num_questions: int) -> Forest:
    """Every arm's accuracy with its interval, and a mark at the first bar's, the model before training."""
    return Forest(
        name="accuracy",
        title="Accuracy on the test questions",
        caption=f"Dot: greedy accuracy over {num_questions:,} questions. Line: its {confidence:.0%} interval. "
        "Arms answer the same questions, so their differences are known better than overlapping lines suggest.",
        x_label="accuracy",
        bars=tuple(bars),
        marks=(("default", bars[0].value),) if bars else (),
    )


def difference_forest(bars: Sequence[Bar], confidence: float) -> Forest:
    """The arms less their vanilla ones, in points: what `accuracy_forest` is too coarse to show."""
    return Forest(
        name="differences",
        title="Difference to plain self-training",
        caption="Dot: accuracy less that of the vanilla arm with the same loss and seeds, on the same questions, in points. Line: "
        f"its {confidence:.0%} interval, not corrected for the number of arms. A line that crosses 0 may be chance.",
        x_label="points",
        bars=tuple(bars),
        marks=(("vanilla", 0.0),),
        percent=False,
    )


def accuracy_by_exponent(families: Mapping[str, Sequence[tuple[float, Bar]]], default: float | None) -> Plot:
    """Figure 3. `families`: label (e.g. "sft, entropy") -> (exponent, accuracy) of each of its arms."""
    series = []
    weighted = [next(bar.color for a, bar in points if a != 0) for points in families.values()]
    for color, (label, points) in zip(distinct_colors(weighted), families.items(), strict=True):
        ordered = sorted(points, key=lambda point: point[0])
        series.append(_with_intervals(label, [a for a, _ in ordered], [bar for _, bar in ordered], color))
    caption = (
        "Figure 3 of the paper. a = 0 is plain self-training; above it uncertain questions weigh more, below it less. "
        "Read it as a curve, not as a contest: picking its highest point would be picking noise."
    )
    low, high = min(min(one.low) for one in series), max(max(one.high) for one in series)
    is_near = default is not None and 2 * low - high < default < 2 * high - low
    if default is not None and not is_near:
        caption += f" The model before training, at {default:.1%}, lies outside the figure."
    return Plot(
        name="figure3_exponents",
        title="Accuracy against the exponent",
        caption=caption,
        x_label="exponent a",
        y_label="accuracy",
        series=tuple(series),
        marks=(("default", default),) if default is not None and is_near else (),
        percent=True,
    )


def accuracy_by_round(arms: Mapping[str, Sequence[tuple[int, Bar]]]) -> Plot:
    """Figure 4. `arms`: name -> (rounds of training, accuracy); 0 is the model before training."""
    rounds = sorted({t for points in arms.values() for t, _ in points})
    return Plot(
        name="figure4_rounds",
        title="Accuracy round after round",
        caption="Figure 4 of the paper. Round 0 is the model before training; each round samples from the model of the one before.",
        x_label="rounds of self-training",
        y_label="accuracy",
        series=tuple(
            _with_intervals(name, [float(t) for t, _ in points], [bar for _, bar in points], points[-1][1].color)
            for name, points in arms.items()
        ),
        x_ticks=tuple((float(t), str(t)) for t in rounds),
        percent=True,
    )


def uncertainty_map(
    ids: Sequence[str], entropy: np.ndarray, inaccuracy: np.ndarray, dominant_wrong: np.ndarray, name: str
) -> Plot:
    """Figure 5: one dot per question. Of more than MAX_DOTS questions every so-manieth is drawn, and the caption says so."""
    step = math.ceil(len(ids) / MAX_DOTS) or 1
    shades = np.minimum((dominant_wrong[::step] * NUM_SHADES).astype(int), NUM_SHADES - 1)
    thinned = f" {len(shades):,} of {len(ids):,} questions drawn (every {step}th)." if step > 1 else ""
    return Plot(
        name=name,
        title="Where the model is unsure",
        caption="Figure 5 of the paper: one dot per training question. Entropy rises with the number of answers the model hesitates "
        "between; a dot far up and to the left, from the far end of the scale, is a stubborn mistake: one wrong answer, again and again."
        + thinned,
        x_label="entropy of the answers, nats",
        y_label="inaccuracy, share of wrong completions",
        series=(
            Series(
                "questions",
                tuple(entropy[::step].tolist()),
                tuple(inaccuracy[::step].tolist()),
                kind="dots",
                shades=tuple(shades.tolist()),
                keys=tuple(ids[::step]),
            ),
        ),
        from_zero=True,
        y_high=1.0,
        shade_label="share of the most frequent wrong answer",
    )


def weight_histogram(weights: Mapping[str, np.ndarray], name: str, num_bins: int = 32) -> Plot:
    """How weight is spread over the kept questions. Weights past the 99.5th percentile fall into the last bin."""
    top = max((float(np.quantile(values, 0.995)) for values in weights.values()), default=1.0)
    edges = np.linspace(0, max(top, 1.5), num_bins + 1)
    series = []
    for color, (label, values) in enumerate(weights.items(), start=EAST):
        shares = np.histogram(np.minimum(values, edges[-1]), edges)[0] / len(values)
        series.append(
            Series(label, tuple(edges[:-1].tolist()), tuple(shares.tolist()), color=wrap_color(color), kind="step")
        )
    return Plot(
        name=name,
        title="How the weight is spread",
        caption="Share of the kept questions by weight. The mean is always 1, so the learning rate keeps its meaning. "
        "The last step holds everything beyond it.",
        x_label="weight of a question",
        y_label="share of kept questions",
        series=tuple(series),
        percent=True,
        from_zero=True,
    )


def funnel_flow(num_questions: int, kept: int, dropped: Mapping[str, int], name: str) -> Flow:
    """From all sampled questions to the kept ones, and why the others were dropped."""
    ends = [Node("kept", kept, EAST), *(Node(reason, n) for reason, n in sorted(dropped.items(), key=lambda d: -d[1]))]
    return Flow(
        name=name,
        title="From sampled questions to training examples",
        caption="Every question that was sampled is either kept or counted under the reason why it cannot be trained on.",
        columns=((Node("sampled questions", num_questions, NEUTRAL),), tuple(ends)),
        links=tuple((0, 0, i, node.count) for i, node in enumerate(ends) if node.count),
    )


def state_flow(arm: str, moves: Sequence[np.ndarray]) -> Flow:
    """Questions moving between solved, uncertain and stuck; `moves[t][a, b]`: from state a in round t to b in round t + 1."""
    counts = [move.sum(axis=1) for move in moves] + [moves[-1].sum(axis=0)]
    states = (("solved", 3), ("uncertain", EAST), ("stuck", NEUTRAL))
    columns = tuple(
        tuple(Node(label, int(n), color) for (label, color), n in zip(states, row, strict=True)) for row in counts
    )
    return Flow(
        name=f"drift_{arm}",
        title=f"How questions move: {arm}",
        caption="Solved: every completion is correct. Stuck: none is. Uncertain: some are, and only these can be trained on.",
        columns=columns,
        links=tuple(
            (t, a, b, int(move[a, b])) for t, move in enumerate(moves) for a in range(3) for b in range(3) if move[a, b]
        ),
        headings=tuple(f"round {t + 1}" for t in range(len(columns))),
    )


def training_curve(
    name: str, title: str, y_label: str, caption: str, arms: Mapping[str, tuple[Sequence[float], Sequence[float], int]]
) -> Plot:
    """One logged quantity against the optimizer step. `arms`: name -> (steps, values, colour)."""
    drawn = {arm: curve for arm, curve in arms.items() if len(curve[0])}
    colors = distinct_colors([color for _, _, color in drawn.values()])
    series = (
        Series(arm, tuple(steps), tuple(values), color=color)
        for (arm, (steps, values, _)), color in zip(drawn.items(), colors, strict=True)
    )
    return Plot(name, title, caption, "optimizer step", y_label, tuple(series))


def pass_at_k_curve(arms: Mapping[str, tuple[Mapping[int, float], int]]) -> Plot:
    """Share of the test questions solved by at least one of k samples. `arms`: name -> (k -> value, colour)."""
    ks = sorted({k for values, _ in arms.values() for k in values})
    return Plot(
        name="pass_at_k",
        title="Solved by one of k samples",
        caption="Unbiased pass@k over the test questions. A model that only became surer of what it knew gains at k = 1 and not at large k.",
        x_label="samples k",
        y_label="pass@k",
        series=tuple(
            Series(arm, tuple(math.log2(k) for k in values), tuple(values.values()), color=color)
            for (arm, (values, _)), color in zip(
                arms.items(), distinct_colors([color for _, color in arms.values()]), strict=True
            )
        ),
        x_ticks=tuple((math.log2(k), str(k)) for k in ks),
        percent=True,
    )


def _with_intervals(label: str, x: list[float], bars: Sequence[Bar], color: int) -> Series:
    low, high = (tuple(getattr(bar, end) for bar in bars) for end in ("low", "high"))
    return Series(label, tuple(x), tuple(bar.value for bar in bars), low, high, color)
