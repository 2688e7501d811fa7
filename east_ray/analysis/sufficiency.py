"""Was n enough? Agreement of entropies and their ranks between subsamples of a run's completions and all of them.

Two disjoint halves say how far the whole can be trusted. All from the grades of a finished run: nothing is sampled, no
completion is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace

import numpy as np

from east_ray.analysis.subsamples import GradedArrays, gather, rank_correlation, top_overlap
from east_ray.figures.drawing import EAST, NEUTRAL, VANILLA, Figure, line_chart, png, to_csv
from east_ray.questions.questions import in_test_set
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
REPEATS = 20  # random subsamples per size
MAX_QUESTIONS = 10_000  # more would not move the third digit; they are taken evenly over the shards
GOOD_RANKS = 0.95  # rank correlation from which fewer completions are "almost as good"
COLUMNS = ["question_id", "clusters", "verdicts"]


@dataclass(frozen=True)
class CurvePoint:
    """The view from `num_samples` completions of the questions kept with all of theirs; means over random subsamples."""

    num_samples: int
    rank_correlation: float  # Spearman's, of entropies (hence of power weights) with those of all completions
    top_overlap: float  # share of the top decile by all completions that is in the top decile by these
    bias: float  # nats, mean entropy less that of all completions
    still_kept: float  # share that still has a correct and an incorrect completion


@dataclass(frozen=True)
class Sufficiency:
    """`reliability` is the rank correlation to expect between this run's entropies and those of another run like it."""

    questions: int
    num_samples: int
    curve: tuple[CurvePoint, ...]
    reliability: float
    advice: str
    figure: str = ""

    def render(self) -> str:
        """The curve as a table, the reliability, and one sentence of advice."""
        lines = [
            f"{self.questions:,} kept questions with {self.num_samples} completions each",
            "",
            "samples  rank corr.  top decile    bias  still kept",
            *(
                f"{p.num_samples:>7}  {p.rank_correlation:>10.3f}  {p.top_overlap:>10.1%}  {p.bias:>+6.3f}  {p.still_kept:>10.1%}"
                for p in self.curve
            ),
            "",
            f"Two runs of {self.num_samples} samples would agree with rank correlation {self.reliability:.3f} (from two halves).",
            "",
            self.advice,
        ]
        return "\n".join(lines + ([f"Figure: {self.figure}"] if self.figure else []))


def sufficiency(run: RunDirectory, *, grades: str = "round-00/grades") -> Sufficiency:
    """Answer for one set of grades of a run; writes report/sufficiency.png and .csv.

    UserError when there are no grades, or too few completions per question to divide.
    """
    config = run.config()
    shards = run.list(grades, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(grades)} holds no grades; run `east-ray verify CONFIG` first")
    drawn = _read(run, grades, shards)
    if config.selection.exclude_test_questions:
        drawn = drawn.where(~np.isin(drawn.ids, list(in_test_set(run, "questions"))))
    found = assess(drawn, config.selection.keep, seed=config.run.seed)
    run.write_bytes(png(figure(found)), "report", "sufficiency.png")
    run.write_bytes(to_csv([asdict(point) for point in found.curve]), "report", "sufficiency.csv")
    return replace(found, figure=run.uri_of("report", "sufficiency.png"))


def assess(drawn: GradedArrays, keep: str, *, seed: int = 0) -> Sufficiency:
    """The whole answer from questions in memory. UserError when there is too little to divide."""
    num_samples = int(np.quantile(drawn.total_Q, 0.05)) if len(drawn.ids) else 0
    drawn = drawn.where(drawn.total_Q >= num_samples)
    kept = drawn.where(drawn.kept(keep))
    if num_samples <= SIZES[0] or len(kept.ids) < 10:
        raise UserError(
            f"{len(kept.ids)} kept questions with {num_samples} completions each are too few to ask whether fewer would do; "
            f"it takes 10 questions with more than {SIZES[0]}"
        )
    rng = np.random.default_rng(seed)
    sizes, half = [size for size in SIZES if size < num_samples], num_samples // 2
    points: dict[int, list[CurvePoint]] = {size: [] for size in sizes}
    halves = []
    for _ in range(REPEATS):
        shuffled = kept.shuffled(rng)
        for size in sizes:
            points[size].append(_compare(shuffled.part(0, size), kept, size, keep))
        first, second = shuffled.part(0, half), shuffled.part(half, 2 * half)
        halves.append(rank_correlation(first.entropy(), second.entropy()))
    curve = tuple(_mean(points[size]) for size in sizes)
    between_halves = max(_mean_of(halves), 0.0)  # below 0 by chance alone
    return Sufficiency(
        questions=len(kept.ids),
        num_samples=num_samples,
        curve=curve,
        reliability=2 * between_halves / (1 + between_halves),  # Spearman-Brown: from half the completions to all
        advice=advise(curve, num_samples),
    )


def advise(curve: Sequence[CurvePoint], num_samples: int) -> str:
    """One sentence: the smallest number of completions that ranks questions almost as all of them do."""
    good = [p for p in curve if p.rank_correlation >= GOOD_RANKS]
    if good:
        p = good[0]
        return (
            f"{p.num_samples} samples would rank questions almost as well: {num_samples / p.num_samples:.3g}x less sampling, "
            f"rank correlation {p.rank_correlation:.2f}, {p.top_overlap:.0%} of the most uncertain tenth in common, "
            f"{p.still_kept:.0%} of the questions still kept."
        )
    best = curve[-1]
    return (
        f"Keep n = {num_samples} or draw more: with {best.num_samples} samples the rank correlation is already down to "
        f"{best.rank_correlation:.2f}."
    )


def figure(found: Sufficiency) -> Figure:
    """Agreement with all samples against the number of samples."""
    lines = {
        "rank correlation": ("rank_correlation", EAST),
        "top decile in common": ("top_overlap", VANILLA),
        "questions still kept": ("still_kept", NEUTRAL),
    }
    x = {p: math.log2(p.num_samples) for p in found.curve}
    return line_chart(
        "sufficiency",
        f"Would fewer than {found.num_samples} samples have done?",
        f"{found.questions:,} kept questions; means over {REPEATS} random subsamples of what was drawn. Dashed: the rank "
        f"correlation to expect between two runs of {found.num_samples} ({found.reliability:.2f}). {found.advice}",
        "samples per question",
        "agreement with all samples",
        {label: ([(x[p], getattr(p, name)) for p in found.curve], color) for label, (name, color) in lines.items()},
        marks={"": found.reliability},
        x_ticks={x[p]: str(p.num_samples) for p in found.curve},
        y_limits=(0, 1.02),
    )


def _read(run: RunDirectory, grades: str, shards: Sequence[str]) -> GradedArrays:
    """At most about MAX_QUESTIONS questions, from shards spread evenly."""
    first = run.read_table(grades, shards[0], columns=COLUMNS)
    wanted = min(len(shards), max(1, MAX_QUESTIONS // max(len(first), 1)))
    chosen = [shards[i * len(shards) // wanted] for i in range(wanted)]
    return gather([row for name in chosen for row in run.read_table(grades, name, columns=COLUMNS).to_pylist()])


def _compare(part: GradedArrays, whole: GradedArrays, size: int, keep: str) -> CurvePoint:
    few, many = part.entropy(), whole.entropy()
    return CurvePoint(
        num_samples=size,
        rank_correlation=rank_correlation(few, many),
        top_overlap=top_overlap(few, many),
        bias=float(np.mean(few - many)),
        still_kept=float(part.kept(keep).mean()),
    )


def _mean(points: Sequence[CurvePoint]) -> CurvePoint:
    """Field by field."""
    size, *columns = zip(*(astuple(point) for point in points), strict=True)
    return CurvePoint(size[0], *(_mean_of(column) for column in columns))


def _mean_of(values: Sequence[float]) -> float:
    """Mean of the values that are defined; nan where none is (subsamples whose entropies are all equal have no ranks)."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
