"""The figures of the report: the paper's three and our own, each a function from plain numbers to a `Figure`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from east_ray.figures.drawing import (
    COLORS,
    EAST,
    NEUTRAL,
    SHADES,
    Estimate,
    Figure,
    flow,
    forest,
    label_axes,
    legend,
    line_chart,
    wrap_color,
)

MAX_DOTS = 2000  # more dots than this hide each other and weigh down the page


def accuracy_forest(estimates: Sequence[Estimate], confidence: float, num_questions: int) -> Figure:
    """Every arm's accuracy with its interval, and a mark at the first one's, the model before training."""
    return forest(
        "accuracy",
        "Accuracy on the test questions",
        f"Dot: greedy accuracy over {num_questions:,} questions. Line: its {confidence:.0%} CI. Dashed: the model before "
        "training. Arms answer the same questions, so their differences are known better than overlapping lines suggest.",
        "accuracy",
        estimates,
        estimates[0].value,
        percent=True,
    )


def difference_forest(estimates: Sequence[Estimate], confidence: float) -> Figure:
    """The arms less their vanilla ones, in points: what `accuracy_forest` is too coarse to show."""
    return forest(
        "differences",
        "Difference to plain self-training",
        "Dot: accuracy less that of the vanilla arm with the same loss and seeds, on the same questions, in points. Line: "
        f"its {confidence:.0%} CI, not adjusted for the number of arms. Where the line crosses 0, the difference may be chance.",
        "points",
        estimates,
        0.0,
        percent=False,
    )


def accuracy_by_exponent(families: Mapping[str, Sequence[tuple[float, Estimate]]], default: float | None) -> Figure:
    """Figure 3. `families`: label (e.g. "sft, entropy") -> (exponent, accuracy) of each of its arms."""
    caption = (
        "Figure 3 of the paper. a = 0 is plain self-training; above it uncertain questions weigh more, below it less. "
        "Read it as a curve, not as a contest: picking its highest point would be picking noise."
    )
    curves = {
        label: (sorted((a, *estimate[1:4]) for a, estimate in points), next(e.color for a, e in points if a != 0))
        for label, points in families.items()
    }
    ends = [end for points, _ in curves.values() for point in points for end in point[2:]]
    low, high = min(ends), max(ends)
    is_near = default is not None and 2 * low - high < default < 2 * high - low
    if default is not None and not is_near:
        caption += f" The model before training, at {default:.1%}, lies outside the figure."
    return line_chart(
        "figure3_exponents",
        "Accuracy against the exponent",
        caption,
        "exponent a",
        "accuracy",
        curves,
        marks={"default": default} if default is not None and is_near else {},
        percent=True,
        is_wide=True,
    )


def accuracy_by_round(arms: Mapping[str, Sequence[tuple[int, Estimate]]]) -> Figure:
    """Figure 4. `arms`: name -> (rounds of training, accuracy); 0 is the model before training."""
    return line_chart(
        "figure4_rounds",
        "Accuracy round after round",
        "Figure 4 of the paper. Round 0 is the model before training; each round samples from the model of the one before.",
        "rounds of self-training",
        "accuracy",
        {
            name: ([(float(t), *estimate[1:4]) for t, estimate in points], points[-1][1].color)
            for name, points in arms.items()
        },
        percent=True,
        is_wide=True,
    )


def uncertainty_map(
    ids: Sequence[str], entropy: np.ndarray, inaccuracy: np.ndarray, dominant_wrong: np.ndarray, name: str
) -> Figure:
    """Figure 5: one dot per question, a link to it. Of more than MAX_DOTS every k-th is drawn, and the caption says so."""
    step = math.ceil(len(ids) / MAX_DOTS) or 1
    keys, x, y = ids[::step], entropy[::step], inaccuracy[::step]
    shades = np.minimum((dominant_wrong[::step] * len(SHADES)).astype(int), len(SHADES) - 1)
    thinned = f" {len(keys):,} of {len(ids):,} questions drawn (every {step}th)." if step > 1 else ""

    def draw(axes: Axes, width: int) -> None:
        dots = axes.scatter(x, y, s=36, c=[SHADES[shade] for shade in shades], alpha=0.8, linewidths=0, clip_on=False)
        dots.set_urls([f"#{key}" for key in keys])
        label_axes(axes, width, "entropy of the answers, nats", "inaccuracy, share of wrong completions", False)
        axes.set_xlim(min(0.0, *x) if len(x) else 0.0)
        axes.set_ylim(0, 1)
        ramp = tuple(Line2D([], [], marker="s", linestyle="", color=shade, markersize=9) for shade in SHADES)
        legend(axes, width, [ramp], ["dominant wrong share, 0 to 1"], handlelength=5.5,
               handler_map={tuple: HandlerTuple(ndivide=None, pad=0)})  # fmt: skip

    rows = [
        {"series": "questions", "x": a, "y": b, "question_id": key}
        for key, a, b in zip(keys, x.tolist(), y.tolist(), strict=True)
    ]
    return Figure(
        name,
        "Where the model is unsure",
        "Figure 5 of the paper: one dot per training question. Entropy rises with the number of answers the model hesitates "
        "between; a dot far up and to the left, from the far end of the scale, is a stubborn mistake: one wrong answer, again and again."
        + thinned,
        rows,
        draw,
    )


def weight_histogram(weights: Mapping[str, np.ndarray], name: str, num_bins: int = 32) -> Figure:
    """Distribution of the weights of kept questions. Weights past the 99.5th percentile fall into the last bin."""
    top = max((float(np.quantile(values, 0.995)) for values in weights.values()), default=1.0)
    edges = np.linspace(0, max(top, 1.5), num_bins + 1)
    shares = {
        label: np.histogram(np.minimum(values, edges[-1]), edges)[0] / len(values) for label, values in weights.items()
    }

    def draw(axes: Axes, width: int) -> None:
        colors = [COLORS[wrap_color(EAST + i)] for i in range(len(shares))]
        for values, color in zip(shares.values(), colors, strict=True):
            axes.stairs(values, edges, color=color, alpha=0.14, fill=True)
            axes.stairs(values, edges, color=color, linewidth=2)
        label_axes(axes, width, "weight of a question", "share of kept questions", True)
        axes.set_ylim(0)
        if len(shares) > 1:
            legend(axes, width, [Patch(color=color) for color in colors], list(shares))

    rows = [
        {"series": label, "x": float(edge), "y": float(share)}
        for label, values in shares.items()
        for edge, share in zip(edges[:-1], values, strict=True)
    ]
    return Figure(
        name,
        "How the weight is spread",
        "Share of the kept questions by weight. The mean is always 1, so the learning rate keeps its meaning. "
        "The last step holds everything beyond it.",
        rows,
        draw,
    )


def funnel_flow(num_questions: int, kept: int, dropped: Mapping[str, int], name: str) -> Figure:
    """From all sampled questions to the kept ones, and why the others were dropped."""
    ends = [("kept", kept, EAST), *((reason, n, NEUTRAL) for reason, n in sorted(dropped.items(), key=lambda d: -d[1]))]
    return flow(
        name,
        "From sampled questions to training examples",
        "Every question that was sampled is either kept or counted under the reason why it cannot be trained on.",
        [[("sampled questions", num_questions, NEUTRAL)], ends],
        [(0, 0, i, count) for i, (_, count, _) in enumerate(ends) if count],
    )


def state_flow(arm: str, moves: Sequence[np.ndarray]) -> Figure:
    """Questions moving between solved, uncertain and stuck; `moves[t][a, b]`: from state a in round t to b in round t + 1."""
    counts = [move.sum(axis=1) for move in moves] + [moves[-1].sum(axis=0)]
    states = (("solved", 3), ("uncertain", EAST), ("stuck", NEUTRAL))
    return flow(
        f"drift_{arm}",
        f"How questions move: {arm}",
        "Solved: every completion is correct. Stuck: none is. Uncertain: some are, and only these can be trained on.",
        [[(label, int(n), color) for (label, color), n in zip(states, row, strict=True)] for row in counts],
        [(t, a, b, int(move[a, b])) for t, move in enumerate(moves) for a in range(3) for b in range(3) if move[a, b]],
        [f"round {t + 1}" for t in range(len(counts))],
    )


def pass_at_k_curve(arms: Mapping[str, tuple[Mapping[int, float], int]]) -> Figure:
    """Share of the test questions solved by at least one of k samples. `arms`: name -> (k -> value, colour)."""
    ks = sorted({k for values, _ in arms.values() for k in values})
    return line_chart(
        "pass_at_k",
        "Solved by one of k samples",
        "Unbiased pass@k over the test questions. A model that only became surer of what it knew gains at k = 1 and not at large k.",
        "samples k",
        "pass@k",
        {arm: ([(math.log2(k), value) for k, value in values.items()], color) for arm, (values, color) in arms.items()},
        x_ticks={math.log2(k): str(k) for k in ks},
        percent=True,
    )
