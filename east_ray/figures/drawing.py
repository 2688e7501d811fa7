"""Figures drawn by matplotlib: as inline SVG in the page's own colours, as PNG files, and their numbers as CSV.

A figure is drawn once for every width it is shown at, because text in a scaled-down drawing is too small to read.
`charts.py` holds the report's figures.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from east_ray.formatting import format_points, format_value

FULL, HALF, NARROW, FILE = 1028, 484, 326, 600  # px: across the page, one of two side by side, on a phone, in a file
NEUTRAL, VANILLA, EAST = 0, 1, 2
# A colour-blind-safe palette, and the ramp of a third dimension: the page's custom properties in its light theme.
COLORS = ("#65625c", "#1f6fb2", "#c2500f", "#08737f", "#8d4fa8", "#8a6a00", "#b3312f", "#557818")
SHADES = ("#b8860b", "#b8741f", "#b05f33", "#a04b4c", "#883f66", "#6b2c73", "#4c1d78", "#2c1173")
INK, LINE = "#1d1b18", "#e2ded6"
PALETTE = {f"{kind}{i}": color for kind, ramp in (("c", COLORS), ("s", SHADES)) for i, color in enumerate(ramp)}
PALETTE |= {"ink": INK, "line": LINE}
MARKERS = ("o", "s", "D", "^")  # a shape per series, so that the figure can be read without colours
STEPS = (1, 2, 2.5, 5, 10)  # ticks are this many powers of ten apart
TICKS = {FULL: 12, HALF: 7, NARROW: 4, FILE: 8}  # at most so many along the x axis
MAX_MARKED = 24  # points of a curve without intervals; more are drawn as a bare line
CHARACTER = 6.7  # px, mean width of a character at the figures' 12 px
STYLE: Any = {
    "font.size": 12,
    "svg.fonttype": "none",
    "text.parse_math": False,  # arm names may hold dollar signs
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "legend.frameon": False,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **{f"axes.{part}color": COLORS[NEUTRAL] for part in ("edge", "label", "title")},
    **{f"{axis}.color": COLORS[NEUTRAL] for axis in ("xtick", "ytick")},
    **{f"{axis}.major.size": 0 for axis in ("xtick", "ytick")},
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its words and the rows of its CSV file. `draw` and `height` take the width in px."""

    name: str
    title: str
    caption: str
    rows: Sequence[Mapping[str, object]]
    draw: Callable[[Axes, int], None]
    height: Callable[[int], int] = {FULL: 440, HALF: 300, NARROW: 270, FILE: 400}.__getitem__
    is_wide: bool = False  # across the page even where other figures stand two in a row


class Estimate(NamedTuple):
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float
    color: int = NEUTRAL


def svg(figure: Figure, width: int) -> str:
    """The drawing as inline SVG. Colours become the page's custom properties and fonts the page's, so it follows both themes."""
    out = io.StringIO()
    # The salt keeps the ids of marker shapes apart from those of every other drawing on the page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{figure.name} {width}"}):
        canvas = _canvas(figure, width, figure.height(width))
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    box, body = re.findall(r'<svg[^>]* (viewBox="[^"]*")[^>]*>(.*)</svg>', out.getvalue(), re.S)[0]
    names = {color: name for name, color in PALETTE.items()}
    body = re.sub(r"(fill|stroke): (#\w{6})", lambda m: f"{m[1]}: var(--{names.get(m[2], 'ink')})", body)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r' id="[A-Za-z0-9.]+_\d+"|font-family: [^;"]*; ?| transform="rotate\(-0 [^)]*\)"', "", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("xlink:href", "href")
    return f'<svg {box} role="img" aria-label="{escape(figure.title)}">{body}</svg>'


def png(figure: Figure) -> bytes:
    """The drawing as PNG, about 1,170 pixels wide, with its title above and its caption below."""
    caption = textwrap.fill(figure.caption, 108)
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        canvas = _canvas(figure, FILE, figure.height(FILE) + 60 + 13 * len(caption.splitlines()))
        canvas.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
        canvas.suptitle(figure.title, x=0.015, ha="left", fontsize=15, fontweight="bold")
        canvas.supxlabel(caption, x=0.015, ha="left", fontsize=9.5, color=COLORS[NEUTRAL], linespacing=1.35)
        canvas.savefig(out, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def to_csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    """CSV with the union of the rows' keys as header, in order of appearance; numbers in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def line_chart(
    name: str,
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, tuple[Sequence[tuple[float, ...]], int]],
    *,
    marks: Mapping[str, float] | None = None,
    x_ticks: Mapping[float, str] | None = None,
    percent: bool = False,
    y_limits: tuple[float, float] | None = None,
    is_wide: bool = False,
) -> Figure:
    """Curves: label -> (points, colour); a point is (x, y) or, with its interval, (x, y, low, high).

    A mark is a horizontal line at a value of y, with a label unless it is empty.
    """
    marks = marks or {}

    def draw(axes: Axes, width: int) -> None:
        shown = distinct_colors([color for _, color in curves.values()])
        xs = [point[0] for points, _ in curves.values() for point in points]
        step = 0.006 * (max(xs, default=0) - min(xs, default=0))  # intervals at the same x stand side by side
        handles = []
        for i, ((points, _), color) in enumerate(zip(curves.values(), shown, strict=True)):
            x, y, *ends = (list(column) for column in zip(*points, strict=True))
            shape: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)]} if ends or len(x) <= MAX_MARKED else {}
            # Wider below, so that of two equal lines both show.
            line_width = 2 + 1.5 * max(0, min(len(curves), 4) - 1 - i)
            if ends:
                x = [value + (i - (len(curves) - 1) / 2) * step for value in x]
                axes.vlines(x, ends[0], ends[1], color=COLORS[color], linewidth=1.5, alpha=0.6)
            axes.plot(x, y, color=COLORS[color], linewidth=line_width, markersize=7, **shape)
            handles.append(Line2D([], [], color=COLORS[color], linewidth=2, markersize=7, **shape))
        for label, value in marks.items():
            axes.axhline(value, color=COLORS[NEUTRAL], linestyle=(0, (4, 3)), linewidth=1)
            shown_value = f"{100 * value:.1f}%" if percent else f"{value:.4g}"
            axes.annotate(label and f"{label} {shown_value}", (1, value), xycoords=("axes fraction", "data"),
                          xytext=(-2, 4), textcoords="offset points", ha="right", color=COLORS[NEUTRAL])  # fmt: skip
        label_axes(axes, width, x_label, y_label, percent)
        if x_ticks:
            axes.set_xticks(list(x_ticks), list(x_ticks.values()))
        elif all(float(value).is_integer() for value in xs):
            axes.xaxis.set_major_locator(MaxNLocator(TICKS[width], steps=STEPS, integer=True))
        axes.set_ylim(y_limits)
        if len(curves) > 1:
            legend(axes, width, handles, list(curves))

    keys = ("x", "y", "low", "high")
    rows = [{"series": label, **dict(zip(keys, point))} for label, (points, _) in curves.items() for point in points]  # noqa: B905
    rows += [{"series": label, "x": None, "y": value} for label, value in marks.items()]
    return Figure(name, title, caption, rows, draw, is_wide=is_wide)


def forest(
    name: str, title: str, caption: str, x_label: str, estimates: Sequence[Estimate], mark: float, *, percent: bool
) -> Figure:
    """Estimates with intervals, one under the other: shares when `percent`, else points. `mark` is a vertical line."""

    def draw(axes: Axes, width: int) -> None:
        axes.axvline(mark, color=COLORS[NEUTRAL], linestyle=(0, (4, 3)), linewidth=1.2)
        for i, (label, value, low, high, color) in enumerate(estimates):
            axes.plot([low, high], [i, i], color=COLORS[color], linewidth=4, alpha=0.55, solid_capstyle="round")
            axes.plot(value, i, "o", color=COLORS[color], markersize=9)
            text = f"{100 * value:.1f}%" if percent else format_points(value)
            axes.annotate(text, (1, i), xycoords=("axes fraction", "data"), xytext=(54, 0), va="center", ha="right",
                          textcoords="offset points", fontweight="bold")  # fmt: skip
            if width == NARROW:
                axes.annotate(label, (0, i), xycoords=("axes fraction", "data"), xytext=(0, 14), va="center",
                              textcoords="offset points")  # fmt: skip
        label_axes(axes, width, x_label, "", False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, percent)))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.set_yticks(range(len(estimates)), ["" if width == NARROW else row.label for row in estimates], color=INK)
        axes.set_ylim(len(estimates) - 0.4, -0.6)

    rows = [{"label": row.label, "value": row.value, "low": row.low, "high": row.high} for row in estimates]
    return Figure(name, title, caption, rows, draw, lambda px: 60 + (46 if px == NARROW else 34) * len(rows), True)


def flow(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[Sequence[tuple[str, int, int]]],
    links: Sequence[tuple[int, int, int, int]],
    headings: Sequence[str] = (),
) -> Figure:
    """Counts that divide and meet again: columns of (label, count, colour), and links (column, from, to, count)."""
    gap, top, bar = 26, 34, 12

    def inner(width: int) -> int:
        return gap * (max(map(len, columns)) - 1) + (150 if width == NARROW else 190)

    def draw(axes: Axes, width: int) -> None:
        spans, bands = flow_layout([[count for _, count, _ in column] for column in columns], links, inner(width), gap)
        room = 12 + CHARACTER * max(len(f"{count:,} {label}") for label, count, _ in columns[-1])
        step = (width - room - bar) / max(len(columns) - 1, 1)
        axes.set_axis_off()
        along = np.linspace(0, 1, 32)
        bend = along**2 * (3 - 2 * along)  # level at both ends
        for column, target, y0, y1, to0, to1 in bands:
            axes.fill_between(column * step + bar + along * (step - bar), top + y0 + (to0 - y0) * bend, top + y1 + (to1 - y1) * bend,
                              color=COLORS[columns[column + 1][target][2]], alpha=0.26, linewidth=0)  # fmt: skip
        for c, column in enumerate(columns):
            is_last = c == len(columns) - 1
            for (y0, y1), (label, count, color) in zip(spans[c], column, strict=True):
                axes.bar(c * step, y1 - y0, bar, top + y0, align="edge", color=COLORS[color])
                if c == 0 and len(column) == 1:
                    axes.text(0, 16, f"{count:,} {label}")
                elif count or is_last:
                    text = f"{count:,} {label}" if is_last else f"{count:,}"
                    axes.text(c * step + bar + 6, top + (y0 + y1) / 2, text, va="center")
        for c, heading in enumerate(headings):
            axes.text(c * step, 16, heading, color=COLORS[NEUTRAL])
        axes.set_xlim(0, width)
        axes.set_ylim(top + max(span[-1][1] for span in spans) + 6, 0)

    rows = [
        {"step": c, "from": columns[c][a][0], "to": columns[c + 1][b][0], "count": count} for c, a, b, count in links
    ]
    return Figure(name, title, caption, rows, draw, lambda width: inner(width) + top + 12)


def flow_layout(
    columns: Sequence[Sequence[int]], links: Sequence[tuple[int, int, int, int]], height: float, gap: float
) -> tuple[list[list[tuple[float, float]]], list[tuple[int, int, float, float, float, float]]]:
    """Top and bottom of every node, and the bands (column, to, top, bottom, top and bottom at the next column).

    Nodes of a column stand `gap` apart and are at least 2 high, so that a reason with one question stays visible.
    """
    scale = (height - gap * (max(map(len, columns)) - 1)) / (max(map(sum, columns)) or 1)
    spans: list[list[tuple[float, float]]] = []
    for column in columns:
        y = 0.0
        spans.append([])
        for count in column:
            spans[-1].append((y, y + max(count * scale, 2.0)))
            y = spans[-1][-1][1] + gap
    used = {(c, i, side): spans[c][i][0] for c, column in enumerate(spans) for i in range(len(column)) for side in "<>"}
    bands = []
    for c, a, b, count in sorted(links):
        start, end, thick = used[c, a, ">"], used[c + 1, b, "<"], count * scale
        used[c, a, ">"], used[c + 1, b, "<"] = start + thick, end + thick
        bands.append((c, b, start, start + thick, end, end + max(thick, 1.0)))
    return spans, bands


def label_axes(axes: Axes, width: int, x_label: str, y_label: str, percent: bool) -> None:
    """Axis labels, and a few round ticks; the y label stands above the axis, where it can be read."""
    axes.set_xlabel(x_label)
    axes.set_title(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(TICKS[width], steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, False)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, percent)))


def legend(axes: Axes, width: int, handles: Sequence[Any], labels: Sequence[str], **options: Any) -> None:
    """A legend above the y label, in as many columns as fit."""
    columns = max(1, min(len(labels), int(width / (60 + CHARACTER * max(map(len, labels))))))
    above = axes.transAxes + ScaledTranslation(0, 24 / 72, axes.figure.dpi_scale_trans)
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=above, borderaxespad=0, borderpad=0,
                ncols=columns, **options)  # fmt: skip


def wrap_color(slot: int) -> int:
    """A slot of the palette for any number; past its end, the colours after EAST's repeat."""
    return slot if slot < len(COLORS) else EAST + 1 + (slot - EAST - 1) % (len(COLORS) - EAST - 1)


def distinct_colors(colors: Sequence[int]) -> list[int]:
    """These colours where all differ; else one each in the palette's order, so that no two lines look alike."""
    return list(colors) if len(set(colors)) == len(colors) else [wrap_color(VANILLA + i) for i in range(len(colors))]


def _canvas(figure: Figure, width: int, height: int) -> Canvas:
    canvas = Canvas(figsize=(width / 72, height / 72), facecolor="none", layout="constrained")
    figure.draw(canvas.subplots(), width)
    return canvas
