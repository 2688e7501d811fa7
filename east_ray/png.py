"""The same figures as PNG files, for slides and papers, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from east_ray.figures import NUM_SHADES, Figure, Flow, Forest, Plot, Series, flow_layout
from east_ray.formatting import format_points, format_value

# The light theme's palette of report.html.
COLORS = ("#65625c", "#1f6fb2", "#c2500f", "#08737f", "#8d4fa8", "#8a6a00", "#b3312f", "#557818")
SHADES = ("#b8860b", "#b8741f", "#b05f33", "#a04b4c", "#883f66", "#6b2c73", "#4c1d78", "#2c1173")
INK, FAINT = "#1d1b18", "#dedad2"
MARKERS = ("o", "s", "D", "^")
DPI = 160


def draw(figure: Figure) -> bytes:
    """The figure as PNG, about 1,150 pixels wide; its caption is printed below it."""
    one = {Plot: _plot, Forest: _forest, Flow: _flow}[type(figure)]
    height = max(4.6, 1.8 + 0.3 * len(figure.bars)) if isinstance(figure, Forest) else 4.6
    canvas = Canvas(figsize=(7.2, height), dpi=DPI, facecolor="white")
    canvas.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    axes = canvas.subplots()
    axes.set_title(figure.title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    one(figure, axes)
    canvas.supxlabel(
        textwrap.fill(figure.caption, 118), x=0.01, ha="left", fontsize=7.5, color=COLORS[0], linespacing=1.4
    )
    out = io.BytesIO()
    canvas.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _plot(plot: Plot, axes: Axes) -> None:
    _style(axes)
    # Intervals at the same x stand side by side, as on the page; 0.006 of the axis is about the width of a marker.
    xs = [x for series in plot.series for x in series.x]
    step = 0.006 * (max(xs, default=0) - min(xs, default=0))
    for index, series in enumerate(plot.series):
        _series(series, index, (index - (len(plot.series) - 1) / 2) * step, axes)
    for label, value in plot.marks:
        axes.axhline(value, color=COLORS[0], linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 4), textcoords="offset points",
                      ha="right", fontsize=8, color=COLORS[0])  # fmt: skip
    if plot.x_ticks:
        axes.set_xticks([tick for tick, _ in plot.x_ticks], [label for _, label in plot.x_ticks])
    if plot.from_zero:
        axes.set_ylim(0, plot.y_high and 1.02 * plot.y_high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, plot.percent)))
    axes.set_xlabel(plot.x_label, fontsize=9, color=INK)
    axes.set_ylabel(plot.y_label, fontsize=9, color=INK)
    if plot.shade_label:
        _ramp(plot.shade_label, axes)
    elif len(plot.series) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")


def _series(series: Series, index: int, shift: float, axes: Axes) -> None:
    color, marker = COLORS[series.color], MARKERS[index % len(MARKERS)]
    if series.kind == "dots":
        axes.scatter(series.x, series.y, s=11, c=[SHADES[shade] for shade in series.shades], alpha=0.75, linewidths=0)
    elif series.kind == "step":
        edges = [*series.x, 2 * series.x[-1] - series.x[-2]]
        axes.stairs(series.y, edges, color=color, linewidth=1.6, label=series.label)
        axes.stairs(series.y, edges, color=color, alpha=0.15, fill=True)
    elif series.low:
        errors = [
            [y - low for y, low in zip(series.y, series.low, strict=True)],
            [high - y for y, high in zip(series.y, series.high, strict=True)],
        ]
        axes.errorbar([x + shift for x in series.x], series.y, errors, color=color, marker=marker, markersize=5.5, linewidth=1.6,
                      elinewidth=1, label=series.label)  # fmt: skip
    else:
        axes.plot(series.x, series.y, color=color, linewidth=1.6, label=series.label,
                  marker=marker if len(series.x) <= 24 else "")  # fmt: skip


def _ramp(label: str, axes: Axes) -> None:
    marks = [Line2D([], [], marker="s", linestyle="", color=SHADES[shade]) for shade in range(NUM_SHADES)]
    names = [f"{shade / NUM_SHADES:g}-{(shade + 1) / NUM_SHADES:g}" for shade in range(NUM_SHADES)]
    legend = axes.legend(marks, names, title=label, ncols=4, frameon=False, fontsize=7, title_fontsize=7.5,
                         loc="lower right", labelcolor=INK)  # fmt: skip
    legend.get_title().set_color(INK)


def _forest(forest: Forest, axes: Axes) -> None:
    _style(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    for i, bar in enumerate(forest.bars):
        axes.plot([bar.low, bar.high], [i, i], color=COLORS[bar.color], linewidth=2.5, solid_capstyle="round")
        axes.plot(bar.value, i, "o", color=COLORS[bar.color], markersize=7)
        value = format_value(round(bar.value, 4), True) if forest.percent else format_points(bar.value)
        axes.annotate(value, (bar.high, i), xytext=(8, 0),
                      textcoords="offset points", va="center", fontsize=8, color=INK)  # fmt: skip
    for _, value in forest.marks:
        axes.axvline(value, color=COLORS[0], linestyle=(0, (4, 3)), linewidth=1.2, zorder=1.5)
    axes.margins(x=0.1)
    axes.set_yticks(range(len(forest.bars)), [bar.label for bar in forest.bars], fontsize=9)
    axes.set_ylim(len(forest.bars) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, forest.percent)))
    axes.set_xlabel(forest.x_label, fontsize=9, color=INK)


def _flow(flow: Flow, axes: Axes) -> None:
    axes.set_axis_off()
    spans, bands = flow_layout(flow, 100, 6)
    bar = 0.025
    for band in bands:
        x0, x1 = band.column + bar, band.column + 1
        middle = (x0 + x1) / 2
        points = [(x0, band.top), (middle, band.top), (middle, band.to_top), (x1, band.to_top), (x1, band.to_bottom),
                  (middle, band.to_bottom), (middle, band.bottom), (x0, band.bottom), (x0, band.top)]  # fmt: skip
        codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
        axes.add_patch(PathPatch(Path(points, codes), facecolor=COLORS[band.node.color], alpha=0.3, linewidth=0))
    for c, column in enumerate(flow.columns):
        for (top, bottom), node in zip(spans[c], column, strict=True):
            axes.add_patch(Rectangle((c, top), bar, bottom - top, facecolor=COLORS[node.color], linewidth=0))
            if node.count:
                label = f"{node.count:,} {node.label}"
                axes.annotate(label, (c + bar, (top + bottom) / 2), xytext=(5, 0), textcoords="offset points",
                              va="center", fontsize=8, color=INK)  # fmt: skip
        if flow.headings:
            axes.annotate(flow.headings[c], (c, 0), xytext=(0, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xlim(-0.05, len(flow.columns) - 0.4)
    axes.set_ylim(104, -4)


def _style(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
