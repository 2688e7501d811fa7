"""What a figure is: numbers as a plot, a forest or a flow, with its words and the rows of its CSV file.

Nothing is drawn here: `svg.py` draws these values into the page, `png.py` into files, so both always agree; `charts.py`
makes them.
Colours are slots of one colour-blind-safe palette (0 neutral, 1 vanilla's blue, 2 EAST's orange, 3 and on: others).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NEUTRAL, VANILLA, EAST = 0, 1, 2
NUM_COLORS = 8
NUM_SHADES = 8  # steps of the sequential palette


@dataclass(frozen=True)
class Series:
    """One line, or one cloud of dots. `low` and `high` are the ends of intervals, empty where there are none."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    color: int = NEUTRAL
    kind: Literal["line", "step", "dots"] = "line"
    shades: tuple[int, ...] = ()  # per dot: 0 .. NUM_SHADES - 1, in place of `color`
    keys: tuple[str, ...] = ()  # per dot: the question it stands for


@dataclass(frozen=True)
class Plot:
    """Numbers against numbers. A mark is a labelled horizontal line at a value of y."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[tuple[str, float], ...] = ()
    x_ticks: tuple[tuple[float, str], ...] = ()
    percent: bool = False
    from_zero: bool = False
    y_high: float | None = None  # where the axis ends; None: a little above the data
    shade_label: str = ""

    def rows(self) -> list[dict[str, object]]:
        """One row per point, then one per mark."""
        rows: list[dict[str, object]] = []
        for series in self.series:
            for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                row: dict[str, object] = {"series": series.label, "x": x, "y": y}
                if series.low:
                    row |= {"low": series.low[i], "high": series.high[i]}
                if series.keys:
                    row["question_id"] = series.keys[i]
                rows.append(row)
        return rows + [{"series": label, "x": None, "y": y} for label, y in self.marks]


@dataclass(frozen=True)
class Bar:
    """One row of a forest: an estimate with its interval."""

    label: str
    value: float
    low: float
    high: float
    color: int = NEUTRAL


@dataclass(frozen=True)
class Forest:
    """Estimates with intervals, one under the other: shares when `percent`, else points. A mark is a labelled vertical line."""

    name: str
    title: str
    caption: str
    x_label: str
    bars: tuple[Bar, ...]
    marks: tuple[tuple[str, float], ...] = ()
    percent: bool = True

    def rows(self) -> list[dict[str, object]]:
        """One row per bar."""
        return [{"label": b.label, "value": b.value, "low": b.low, "high": b.high} for b in self.bars]


@dataclass(frozen=True)
class Node:
    """One bar of a flow's column: `count` questions in the state `label`."""

    label: str
    count: int
    color: int = NEUTRAL


@dataclass(frozen=True)
class Flow:
    """Counts that divide and meet again: columns of nodes, and links (column, from node, to node of the next, count)."""

    name: str
    title: str
    caption: str
    columns: tuple[tuple[Node, ...], ...]
    links: tuple[tuple[int, int, int, int], ...]
    headings: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        """One row per link."""
        return [
            {"step": column, "from": self.columns[column][a].label, "to": self.columns[column + 1][b].label, "count": n}
            for column, a, b, n in self.links
        ]


Figure = Plot | Forest | Flow


@dataclass(frozen=True)
class Band:
    """One link of a flow as drawn: it runs from [top, bottom] at the right of its column to [to_top, to_bottom] at the next."""

    column: int
    top: float
    bottom: float
    to_top: float
    to_bottom: float
    node: Node  # where it leads to


def flow_layout(flow: Flow, height: float, gap: float) -> tuple[list[list[tuple[float, float]]], list[Band]]:
    """Top and bottom of every node (by column), and the bands between them, for a drawing `height` high.

    Nodes of a column stand `gap` apart and are at least 2 high, so that a reason with one question stays visible.
    """
    most = max(len(column) for column in flow.columns)
    total = max(sum(node.count for node in column) for column in flow.columns) or 1
    scale = (height - gap * (most - 1)) / total
    spans: list[list[tuple[float, float]]] = []
    for column in flow.columns:
        y = 0.0
        spans.append([])
        for node in column:
            bottom = y + max(node.count * scale, 2.0)
            spans[-1].append((y, bottom))
            y = bottom + gap
    used = {(c, i, side): spans[c][i][0] for c, column in enumerate(spans) for i in range(len(column)) for side in "<>"}
    bands = []
    for column, a, b, count in sorted(flow.links):
        start, end = used[column, a, ">"], used[column + 1, b, "<"]
        thick = count * scale
        used[column, a, ">"], used[column + 1, b, "<"] = start + thick, end + thick
        bands.append(Band(column, start, start + thick, end, end + max(thick, 1.0), flow.columns[column + 1][b]))
    return spans, bands


def to_csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    """CSV with the union of the rows' keys as header, in order of appearance; numbers in full precision."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def wrap_color(slot: int) -> int:
    """A slot of the palette for any number; beyond its end the colours after EAST's come round again."""
    return slot if slot < NUM_COLORS else EAST + 1 + (slot - EAST - 1) % (NUM_COLORS - EAST - 1)


def distinct_colors(colors: Sequence[int]) -> list[int]:
    """These colours where all differ; else one each in the palette's order, so that lines in one figure can be told apart."""
    return list(colors) if len(set(colors)) == len(colors) else [wrap_color(VANILLA + i) for i in range(len(colors))]


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
