"""Was n enough? How entropies and their ranks change when only some of the drawn completions are used.

Subsamples of what was drawn are compared with all of it, the plug-in entropy beside Miller and Madow's correction; two
disjoint halves say how far all of it can be trusted; every question's entropy gets a bootstrap interval; and adaptive
sampling is replayed. All on the grades of a finished run: nothing is sampled, no completion is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from east_ray.analysis.subsamples import GradedArrays, entropy_intervals, gather, plug_in_entropy
from east_ray.config.load import from_dict
from east_ray.config.sections import AdaptiveConfig
from east_ray.figures.drawing import EAST, NEUTRAL, VANILLA, Figure, line_chart, png, to_csv
from east_ray.records import UserError
from east_ray.rollouts.adaptive import levels, wanted_samples
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import miller_madow

T = TypeVar("T", "CurvePoint", "Replay")

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
REPEATS = 20  # random subsamples per size
MAX_QUESTIONS = 10_000  # more would not move the third digit; they are taken evenly over the shards
GOOD_RANKS = 0.95  # rank correlation from which on fewer completions are "almost as good"
COLUMNS = ["question_id", "clusters", "verdicts"]


@dataclass(frozen=True)
class CurvePoint:
    """What `num_samples` completions say about the questions kept with all of theirs; means over random subsamples."""

    num_samples: int
    rank_correlation: float  # Spearman's, of entropies (hence of power weights) with those of all completions
    rank_correlation_corrected: float  # the same with Miller-Madow entropies on both sides
    top_overlap: float  # share of the top decile by all completions that is in the top decile by these
    top_overlap_corrected: float
    bias: float  # nats, mean entropy less that of all completions
    bias_corrected: float
    still_kept: float  # share that still has a correct and an incorrect completion


@dataclass(frozen=True)
class Replay:
    """An adaptive run replayed on these completions, and the same budget spent evenly."""

    mean_samples: float
    saving: float  # full / adaptive number of completions
    rank_correlation: float
    still_kept: float
    weight_change: float  # mean |w - w_all| at exponent 1, over the questions kept with all completions
    even_rank_correlation: float  # of a run that draws the same mean number for every question
    even_still_kept: float
    even_weight_change: float


@dataclass(frozen=True)
class Sufficiency:
    """`reliability` is the rank correlation to expect between this run's entropies and those of another run like it."""

    questions: int
    num_samples: int
    curve: tuple[CurvePoint, ...]
    reliability: float
    median_interval: float  # nats, width of the 95% bootstrap interval of a question's entropy
    replay: Replay
    adaptive: AdaptiveConfig
    advice: str
    figure: str = ""

    def render(self) -> str:
        """The curve as a table, the replay, and one sentence of advice."""
        head = "samples  rank corr.  (corrected)  top decile  (corrected)    bias  (corrected)  still kept"
        lines = [f"{self.questions:,} kept questions with {self.num_samples} completions each", "", head]
        for p in self.curve:
            lines.append(
                f"{p.num_samples:>7}  {p.rank_correlation:>10.3f}  {p.rank_correlation_corrected:>11.3f}  {p.top_overlap:>10.1%}"
                f"  {p.top_overlap_corrected:>11.1%}  {p.bias:>+6.3f}  {p.bias_corrected:>+11.3f}  {p.still_kept:>10.1%}"
            )
        r = self.replay
        lines += [
            "",
            f"Two runs of {self.num_samples} samples would agree with rank correlation {self.reliability:.3f} (from two halves).",
            f"The 95% interval of a question's entropy is {self.median_interval:.2f} nats wide (median).",
            f"Adaptive sampling (from {self.adaptive.min_samples}, width {self.adaptive.width:g}) would draw "
            f"{r.mean_samples:.1f} per question, {r.saving:.1f}x less: rank correlation {r.rank_correlation:.3f}, weights off "
            f"by {r.weight_change:.3f}, {r.still_kept:.1%} still kept. As many for every question alike: "
            f"{r.even_rank_correlation:.3f}, {r.even_weight_change:.3f}, {r.even_still_kept:.1%}.",
            "",
            self.advice,
        ]
        return "\n".join(lines + ([f"Figure: {self.figure}"] if self.figure else []))


def sufficiency(run: RunDirectory, *, grades: str = "round-00/grades") -> Sufficiency:
    """Answer for one set of grades of a run; writes report/sufficiency.png, .csv and per-question intervals beside them.

    UserError when there are no grades, or too few completions per question to divide.
    """
    config = from_dict(run.read_json("config.json"), run.uri_of("config.json"))
    shards = run.list(grades, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(grades)} holds no grades; run `east-ray verify` first")
    drawn = _read(run, grades, shards)
    found = assess(drawn, config.selection.keep, config.sampling.adaptive or AdaptiveConfig(), seed=config.run.seed)
    run.write_bytes(png(figure(found)), "report", "sufficiency.png")
    run.write_bytes(to_csv([asdict(point) for point in found.curve]), "report", "sufficiency.csv")
    low, high = entropy_intervals(drawn.counts(), seed=config.run.seed)
    rows = [
        {"question_id": name, "entropy": h, "low": below, "high": above}
        for name, h, below, above in zip(drawn.ids, drawn.entropy().tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    run.write_bytes(to_csv(rows), "report", "entropy_intervals.csv")
    return replace(found, figure=run.uri_of("report", "sufficiency.png"))


def assess(drawn: GradedArrays, keep: str, adaptive: AdaptiveConfig, *, seed: int = 0) -> Sufficiency:
    """The whole answer from questions in memory. UserError when there is too little to divide."""
    num_samples = int(np.quantile(drawn.total_Q, 0.05)) if len(drawn.ids) else 0
    drawn = drawn.where(drawn.total_Q >= num_samples)
    kept_Q = drawn.kept(keep)
    kept = drawn.where(kept_Q)
    if num_samples <= SIZES[0] or len(kept.ids) < 10:
        raise UserError(
            f"{len(kept.ids)} kept questions with {num_samples} completions each are too few to ask whether fewer would do; "
            f"it takes 10 questions with more than {SIZES[0]}"
        )
    rng = np.random.default_rng(seed)
    sizes, half = [size for size in SIZES if size < num_samples], num_samples // 2
    points: dict[int, list[CurvePoint]] = {size: [] for size in sizes}
    replays, halves = [], []
    for _ in range(REPEATS):
        shuffled = drawn.shuffled(rng)
        replays.append(_replay(shuffled, kept_Q, keep, adaptive))
        shuffled = shuffled.where(kept_Q)
        for size in sizes:
            points[size].append(_compare(shuffled.part(0, size), kept, size, keep))
        halves.append(_ranks_agree(shuffled.part(0, half).entropy(), shuffled.part(half, 2 * half).entropy()))
    curve = tuple(_mean(points[size]) for size in sizes)
    low, high = entropy_intervals(kept.counts(), seed=seed)
    between_halves = float(np.mean(halves))
    return Sufficiency(
        questions=len(kept.ids),
        num_samples=num_samples,
        curve=curve,
        reliability=2 * between_halves / (1 + between_halves),  # Spearman-Brown: from half the completions to all
        median_interval=float(np.median(high - low)),
        replay=_mean(replays),
        adaptive=adaptive,
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
        "rank correlation, bias-corrected": ("rank_correlation_corrected", 4),
        "top decile in common": ("top_overlap", VANILLA),
        "questions still kept": ("still_kept", NEUTRAL),
    }
    x = {point: math.log2(point.num_samples) for point in found.curve}
    return line_chart(
        "sufficiency",
        f"Would fewer than {found.num_samples} samples have done?",
        f"{found.questions:,} kept questions; means over {REPEATS} random subsamples of what was drawn. Dashed: the rank "
        f"correlation to expect between two runs of {found.num_samples} ({found.reliability:.2f}). {found.advice}",
        "samples per question",
        "agreement with all samples",
        {label: [(x[point], getattr(point, name)) for point in found.curve] for label, (name, _) in lines.items()},
        [color for _, color in lines.values()],
        marks={"": found.reliability},
        x_ticks={x[point]: str(point.num_samples) for point in found.curve},
        y_limits=(0, 1.02),
    )


def _read(run: RunDirectory, grades: str, shards: Sequence[str]) -> GradedArrays:
    """At most about MAX_QUESTIONS questions, from shards spread evenly."""
    first = run.read_table(grades, shards[0], columns=COLUMNS)
    wanted = min(len(shards), max(1, MAX_QUESTIONS // max(len(first), 1)))
    chosen = [shards[i * len(shards) // wanted] for i in range(wanted)]
    return gather([row for name in chosen for row in run.read_table(grades, name, columns=COLUMNS).to_pylist()])


def _compare(part: GradedArrays, whole: GradedArrays, size: int, keep: str) -> CurvePoint:
    few, many = part.counts(), whole.counts()
    plain = plug_in_entropy(few), plug_in_entropy(many)
    corrected = _corrected(few), _corrected(many)
    return CurvePoint(
        num_samples=size,
        rank_correlation=_ranks_agree(*plain),
        rank_correlation_corrected=_ranks_agree(*corrected),
        top_overlap=_top_overlap(*plain),
        top_overlap_corrected=_top_overlap(*corrected),
        bias=float(np.mean(plain[0] - plain[1])),
        bias_corrected=float(np.mean(corrected[0] - corrected[1])),
        still_kept=float(part.kept(keep).mean()),
    )


def _mean(found: Sequence[T]) -> T:
    """Field by field; a field that is the same in all stays as it is."""
    columns = zip(*(astuple(one) for one in found), strict=True)
    values: list[Any] = [column[0] if len(set(column)) == 1 else float(np.mean(column)) for column in columns]
    return type(found[0])(*values)


def _replay(drawn: GradedArrays, kept_Q: np.ndarray, keep: str, adaptive: AdaptiveConfig) -> Replay:
    """What adaptive sampling would have drawn of these completions: the budget over all questions, the rest over kept ones."""
    used_Q = np.zeros(len(drawn.ids), dtype=np.int64)
    most = int(drawn.total_Q.max())
    for _ in levels(adaptive.min_samples, most):
        counts = drawn.part(0, used_Q).counts()
        limits = {"min_samples": adaptive.min_samples, "max_samples": most, "width": adaptive.width}
        used_Q = np.minimum(wanted_samples(counts, used_Q, **limits), drawn.total_Q)
    even_Q = np.full(len(used_Q), round(float(used_Q.mean())))
    kept = drawn.where(kept_Q)
    whole, part, even = kept.entropy(), kept.part(0, used_Q[kept_Q]), kept.part(0, even_Q[kept_Q])
    return Replay(
        mean_samples=float(used_Q.mean()),
        saving=float(drawn.total_Q.sum() / used_Q.sum()),
        rank_correlation=_ranks_agree(part.entropy(), whole),
        still_kept=float(part.kept(keep).mean()),
        weight_change=_weight_change(part.entropy(), whole),
        even_rank_correlation=_ranks_agree(even.entropy(), whole),
        even_still_kept=float(even.kept(keep).mean()),
        even_weight_change=_weight_change(even.entropy(), whole),
    )


def _corrected(count_Q_K: np.ndarray) -> np.ndarray:
    return miller_madow(plug_in_entropy(count_Q_K), (count_Q_K > 0).sum(axis=1), count_Q_K.sum(axis=1))


def _ranks_agree(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation; 1 where either side has no ranks to disagree about."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 1.0
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def _top_overlap(few: np.ndarray, many: np.ndarray) -> float:
    """Share of the top decile of `many` that is in the top decile of `few`; ties are broken by position."""
    size = max(len(many) // 10, 1)
    top = [set(np.argsort(-values, kind="stable")[:size].tolist()) for values in (few, many)]
    return len(top[0] & top[1]) / size


def _weight_change(few: np.ndarray, many: np.ndarray) -> float:
    """Mean |w - w_all| at exponent 1."""
    return float(np.mean(np.abs(few / max(few.mean(), 1e-12) - many / max(many.mean(), 1e-12))))
