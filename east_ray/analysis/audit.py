"""Sensitivity of a run's weights to the way answers are clustered: `east-ray audit RUN`.

The released scripts cluster by string, we by meaning; completions without an answer are a cluster, or are ignored.
The audit clusters the recorded answers each way, compares the weights, and counts what the grader could not decide and
what had no answer. It reads a shard at a time and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from east_ray.analysis.subsamples import rank_correlation, top_overlap
from east_ray.answers.grading import Grader, group
from east_ray.config.load import Config
from east_ray.questions.questions import in_test_set
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.keep import drop_codes
from east_ray.weighting.mappings import WeightMapping, entropy, weights

WAYS = (("canonical", "cluster"), ("canonical", "ignore"), ("string", "cluster"), ("string", "ignore"))


@dataclass(frozen=True)
class Way:
    """One way to cluster, compared with the run's own over the kept questions. Weights have exponent 1 (eq. 3)."""

    cluster: str
    unanswered: str
    mean_clusters: float
    mean_entropy: float
    spearman: float  # of the weights with the run's own; nan where either never varies
    top_overlap: float  # share of the top decile by weight that is also in the run's own top decile
    moved: float  # half the mean absolute change of a weight: the share of all weight that changes questions


@dataclass(frozen=True)
class AuditReport:
    """Findings of `audit`; `render` is what the command prints."""

    num_questions: int
    num_kept: int
    num_completions: int
    verdicts: dict[str, int]
    rules: dict[str, int]  # extraction rule, or why there was no answer -> completions
    changed_verdicts: int  # completions whose verdict today differs from the recorded one
    own: tuple[str, str]
    ways: tuple[Way, ...]

    def render(self) -> str:
        """A page of text for the terminal."""
        completions = max(self.num_completions, 1)
        verdicts, rules = sorted(self.verdicts.items()), sorted(self.rules.items(), key=lambda r: -r[1])
        lines = [
            f"{self.num_questions:,} questions, {self.num_kept:,} kept; {self.num_completions:,} completions",
            f"verdicts   {'  '.join(f'{name} {count / completions:.2%}' for name, count in verdicts)}",
            f"answers    {'  '.join(f'{name} {count / completions:.2%}' for name, count in rules)}",
            f"{self.changed_verdicts:,} verdicts would change if the answers were judged again",
            "",
            f"{'clusters by':<12}{'no answer':<11}{'clusters':>9}{'entropy':>9}{'Spearman':>10}{'top 10%':>9}{'moved':>8}",
        ]
        for way in self.ways:
            mark = "   this run" if (way.cluster, way.unanswered) == self.own else ""
            lines.append(
                f"{way.cluster:<12}{way.unanswered:<11}{way.mean_clusters:>9.2f}{way.mean_entropy:>9.3f}"
                f"{way.spearman:>10.3f}{way.top_overlap:>9.1%}{way.moved:>8.1%}{mark}"
            )
        return "\n".join([*lines, "", LEGEND])


LEGEND = """\
clusters, entropy  mean per kept question, clustered this way
Spearman, top 10%  agreement with the run's own weights: of the ranks, and share of the heaviest tenth in common
moved              share of all weight that would go to other questions than in the run"""


def audit(run: RunDirectory, *, samples: str = "round-00/samples", grades: str = "round-00/grades") -> AuditReport:
    """Cluster a run's recorded answers every way and compare their weights over the questions that the run keeps."""
    shards = run.list(grades, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(grades)} holds no grades; run `east-ray verify CONFIG` first")
    config: Config = run.config()
    own = (config.grading.cluster, config.grading.unanswered)
    excluded = in_test_set(run, "questions") if config.selection.exclude_test_questions else frozenset()
    verdicts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    sizes: dict[tuple[str, str], list[list[int]]] = {way: [] for way in WAYS}
    num_questions = num_changed = 0
    with Grader(config.grading) as grader:
        for shard in shards:
            table = run.read_table(grades, shard)
            kept = drop_codes(table, config.selection.keep, excluded) == 0
            num_questions += len(table)
            asked = run.read_table(samples, shard, columns=["question_id", "reference"]).to_pydict()
            references = dict(zip(asked["question_id"], asked["reference"], strict=True))
            for row, is_kept in zip(table.to_pylist(), kept, strict=True):
                judgements = grader.judge(references[row["question_id"]], row["answers"])  # today's
                verdicts.update(row["verdicts"])
                rules.update(row["rules"])
                num_changed += sum(old != new.verdict for old, new in zip(row["verdicts"], judgements, strict=True))
                if is_kept:
                    for way in WAYS:
                        sizes[way].append(group(row["answers"], judgements, *way)[1])
    return AuditReport(
        num_questions=num_questions,
        num_kept=len(sizes[own]),
        num_completions=verdicts.total(),
        verdicts=dict(verdicts),
        rules=dict(rules),
        changed_verdicts=num_changed,
        own=own,
        ways=tuple(_compare(way, sizes[way], sizes[own]) for way in WAYS) if sizes[own] else (),
    )


def _compare(way: tuple[str, str], sizes: list[list[int]], own_sizes: list[list[int]]) -> Way:
    """Entropies and weights of the kept questions, clustered one way, against those of the run's own way."""
    entropy_Q = np.array([entropy(row) for row in sizes])
    own_entropy_Q = np.array([entropy(row) for row in own_sizes])
    weight_Q, own_weight_Q = (weights(values, WeightMapping(mapping="mean")) for values in (entropy_Q, own_entropy_Q))
    return Way(
        cluster=way[0],
        unanswered=way[1],
        mean_clusters=float(np.mean([len(row) for row in sizes])),
        mean_entropy=float(entropy_Q.mean()),
        spearman=rank_correlation(entropy_Q, own_entropy_Q),
        top_overlap=top_overlap(entropy_Q, own_entropy_Q),
        moved=float(np.abs(weight_Q - own_weight_Q).mean() / 2),
    )
