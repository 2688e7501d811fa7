"""Everything a report is made from: a run's config, its evaluations compared, and where its weights lie.

`results.py` and `process.py` turn it into chapters, `page.py` turns chapters into a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from east_ray.arms import weight_mapping
from east_ray.config.load import Arm, Config
from east_ray.evaluation.comparison import (
    DEFAULT,
    Comparison,
    Measured,
    at_round,
    compare,
    read_measured,
    seed_groups,
    vanilla_arms,
)
from east_ray.figures.drawing import EAST, NEUTRAL, VANILLA, Estimate, Figure
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import WeightMapping

MAX_PLOTTED = 4  # arms of the last round that get figures of their own
METHOD_COLORS = {"entropy": EAST, "inaccuracy": 3, "dominant_wrong": 4, "wpo": 5, "perplexity": 6}


@dataclass(frozen=True)
class Table:
    """A table of the page: headings, rows of text, and a caption. Cells are numbers and stand right, unless `words`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True)
class Chapter:
    """`id` is its anchor and `short` its name in the page's navigation."""

    id: str
    short: str
    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def chapter(
    id: str, short: str, title: str, text: str = "", figures: Sequence[Figure] = (), tables: Sequence[Table | None] = ()
) -> Chapter | None:
    """A chapter of the figures and the tables with rows; None without any."""
    filled = tuple(table for table in tables if table and table.rows)
    return Chapter(id, short, title, text, tuple(figures), filled) if figures or filled else None


@dataclass(frozen=True)
class ReportData:
    """The data that every chapter starts from. `metrics` holds the metrics.json of everything measured on the test questions."""

    run: RunDirectory
    config: Config
    measured: tuple[Measured, ...]  # after every round
    metrics: Mapping[Measured, dict[str, Any]]
    compared: Mapping[str, Measured]  # after the same number of rounds
    comparisons: tuple[Comparison, ...]
    held_out: tuple[Comparison, ...]  # the same arms on the validation questions, when there are any
    vanilla: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]  # arms that differ in their seed alone

    def arm(self, name: str) -> Arm:
        """The config's arm of that name."""
        return next(arm for arm in self.config.arms if arm.name == name)

    def color(self, name: str) -> int:
        """By what weights an arm's questions: grey before training, blue for vanilla, orange for entropy, then the others."""
        if name == DEFAULT:
            return NEUTRAL
        if self.vanilla.get(name) == name:
            return VANILLA
        own = self.config.for_arm(self.arm(name))
        local = own.training.local_weight
        return METHOD_COLORS[own.weighting.measure if local == "none" else local]

    def estimate(self, row: Comparison) -> Estimate:
        """An arm's accuracy with its interval, in the arm's colour."""
        return Estimate(row.name, row.accuracy, row.low, row.high, self.color(row.members[0]))

    def weight_directories(self) -> dict[str, str]:
        """Name for readers -> directory in which weights were computed. All arms share round 0."""
        found = {"round 1" if self.config.run.rounds > 1 else "all arms": "round-00"}
        for t in range(1, self.config.run.rounds):
            found |= {f"round {t + 1}, {arm.name}": f"round-{t:02d}/arms/{arm.name}" for arm in self.config.arms}
        return {name: path for name, path in found.items() if self.run.exists(path, "weights", "weights.json")}

    def weight_columns(self, directory: str) -> dict[str, str]:
        """Weight column -> its name for readers, of the arms that share this directory; equal weights last."""
        arms = [arm for arm in self.config.arms if directory == "round-00" or directory.endswith(f"/arms/{arm.name}")]
        users: dict[WeightMapping, list[str]] = {}
        for arm in arms:
            group = next(group for group, members in self.groups.items() if arm.name in members)
            users.setdefault(weight_mapping(self.config, arm), []).append(group)
        ordered = sorted(users.items(), key=lambda item: _is_equal(item[0]))
        return {mapping.column: _name(mapping, list(dict.fromkeys(names))) for mapping, names in ordered}

    def plotted_directories(self) -> dict[str, str]:
        """The first round's directory and those of the last round, one seed of each arm; the tables have them all."""
        found = self.weight_directories()
        last = max((path.split("/")[0] for path in found.values()), default="")
        firsts = {f"{last}/arms/{members[0]}" for members in self.groups.values()}
        plotted = ["round-00", *[path for path in found.values() if path in firsts][:MAX_PLOTTED]]
        return {name: path for name, path in found.items() if path in plotted}


def gather_report_data(run: RunDirectory, config: Config) -> ReportData:
    """Read every evaluation of a run and compare its arms."""
    measured = read_measured(run, config, "evaluation")
    compared = at_round(config, measured)
    held_out = at_round(config, read_measured(run, config, "validation"))
    return ReportData(
        run=run,
        config=config,
        measured=tuple(measured),
        metrics={m: run.read_json(m.directory, "metrics.json") for m in measured},
        compared=compared,
        comparisons=tuple(compare(run, config, compared)),
        held_out=tuple(compare(run, config, held_out)),
        vanilla=vanilla_arms(config),
        groups=seed_groups(config),
    )


def _name(mapping: WeightMapping, arms: list[str]) -> str:
    """The arms that train with a mapping, or the mapping itself where they are many."""
    if len(arms) <= 2:
        return ", ".join(arms)
    if _is_equal(mapping):
        return "equal weights"
    if mapping.mapping == "power" and mapping.clip is None:
        return f"{mapping.measure.replace('_', ' ')}, a = {mapping.exponent:g}"
    return mapping.column.removeprefix("weight_").replace("_", " ")


def _is_equal(mapping: WeightMapping) -> bool:
    return mapping.mapping == "power" and mapping.exponent == 0


def titled(figure: Figure, name: str, several: bool) -> Figure:
    """The figure with the name of its weights in its title, where there are several sets of them."""
    return replace(figure, title=f"{figure.title}: {name}") if several else figure


def figure5_name(directory: str) -> str:
    """Name of the file that holds a directory's uncertainty map."""
    return f"figure5_uncertainty_{slug(directory)}"


def slug(text: str) -> str:
    """Text as part of a file name: letters and digits, all else an underscore."""
    return "".join(c if c.isalnum() else "_" for c in text)
