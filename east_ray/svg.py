"""Figures as inline SVG for the report: colours and fonts come from the page's style sheet, so they follow dark and light.

Every figure is drawn twice, for its place on a desk and for a phone, because text in a scaled-down drawing cannot be
read; the page shows the one that fits. Labels may hold anything (arm names, drop reasons), so all text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from east_ray.figures import NUM_SHADES, Figure, Flow, Forest, Plot, Series, flow_layout, nice_ticks
from east_ray.formatting import format_points, format_value

FULL, HALF, NARROW = 1028, 484, 326  # px: a card across the page, one of two side by side, and a card on a phone
CHARACTER = 6.7  # px, mean width of a character at the figures' 12 px
SHAPES = ("circle", "square", "diamond", "triangle")


def draw(figure: Figure, width: int) -> str:
    """The figure's legend and both its drawings, as HTML; `width` is FULL or HALF."""
    one = {Plot: _plot, Forest: _forest, Flow: _flow}[type(figure)]
    wide, narrow = one(figure, width), one(figure, NARROW)
    return f'{_legend(figure)}<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _plot(plot: Plot, width: int) -> str:
    height = {FULL: 440, HALF: 300, NARROW: 270}[width]
    x_low, x_high, y_low, y_high = _limits(plot)
    y_ticks = nice_ticks(y_low, y_high, 6)
    labels = [format_value(tick, plot.percent) for tick in y_ticks]
    left = 12 + CHARACTER * max(map(len, labels), default=1)
    right, top, bottom = width - 14, 30, height - 44
    x = _scale(x_low, x_high, left + 8, right - 8)
    y = _scale(y_low, y_high, bottom, top)
    room = {FULL: 12, HALF: 7, NARROW: 5}[width]
    counts = all(value.is_integer() for series in plot.series for value in map(float, series.x))
    ticks = [tick for tick in nice_ticks(x_low, x_high, room) if not counts or float(tick).is_integer()]
    x_ticks = plot.x_ticks or tuple((tick, format_value(tick, False)) for tick in ticks)
    parts = [_text(0, 12, plot.y_label, "axis")]
    for tick, label in zip(y_ticks, labels, strict=True):
        parts.append(f'<path class="rule" d="M{left:.1f} {y(tick):.1f}H{right}"/>')
        parts.append(_text(left - 8, y(tick) + 4, label, "tick end"))
    parts.append(f'<path class="base" d="M{left:.1f} {bottom}H{right}"/>')
    for tick, label in _spaced(x_ticks, x, CHARACTER):
        parts.append(_text(x(tick), bottom + 18, label, "tick middle"))
    parts.append(_text((left + right) / 2, height - 6, plot.x_label, "axis middle"))
    for label, value in plot.marks:
        parts.append(f'<path class="mark" d="M{left:.1f} {y(value):.1f}H{right}"/>')
        parts.append(_text(right - 2, y(value) - 6, f"{label} {_short(value, plot.percent)}", "tick end halo"))
    for index, series in enumerate(plot.series):
        shift = (index - (len(plot.series) - 1) / 2) * 5 if series.low else 0.0
        parts.append(_series(series, index, lambda v, s=shift: x(v) + s, y, plot))
    return _svg(width, height, plot.title, parts)


def _series(series: Series, index: int, x: Callable[[float], float], y: Callable[[float], float], plot: Plot) -> str:
    if series.kind == "dots":
        return _dots(series, x, y)
    points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    if series.kind == "step":
        wide = x(series.x[1]) - x(series.x[0]) if len(series.x) > 1 else 8.0
        tops = "".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}h{wide:.1f}" for i, (a, b) in enumerate(points))
        area = f"{tops}V{y(0):.1f}H{points[0][0]:.1f}Z"
        return f'<g class="c{series.color}"><path class="area" d="{area}"/><path class="line" d="{tops}"/></g>'
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    width = 2 + 1.5 * max(0, min(len(plot.series), 4) - 1 - index)  # wider below, so that equal lines both show
    parts = [f'<path class="line" style="stroke-width:{width}" d="{path}"/>'] if len(points) > 1 else []
    for low, high, (a, _) in zip(series.low, series.high, points, strict=bool(series.low)):
        parts.append(f'<path class="whisker" d="M{a:.1f} {y(low):.1f}V{y(high):.1f}"/>')
    if series.low or len(points) <= 24:
        for i, (a, b) in enumerate(points):
            note = f"{series.label}: {_short(series.y[i], plot.percent)}"
            if series.low:
                note += f" [{_short(series.low[i], plot.percent)}, {_short(series.high[i], plot.percent)}]"
            parts.append(_marker(a, b, index, f"{note}, {plot.x_label} {format_value(series.x[i], False)}"))
    return f'<g class="c{series.color}">{"".join(parts)}</g>'


def _dots(series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    groups = {}
    for i, shade in enumerate(series.shades):
        circle = (
            f'<circle cx="{x(series.x[i]):.1f}" cy="{y(series.y[i]):.1f}" r="3.2" data-q="{escape(series.keys[i])}"/>'
        )
        groups.setdefault(shade, []).append(circle)
    return "".join(f'<g class="dots s{shade}">{"".join(groups[shade])}</g>' for shade in sorted(groups))


def _forest(forest: Forest, width: int) -> str:
    narrow = width == NARROW
    step = 46 if narrow else 34
    left = 8.0 if narrow else 16 + CHARACTER * max((len(bar.label) for bar in forest.bars), default=1)
    right, top = width - (56 if narrow else 62), 26
    height = top + step * len(forest.bars) + 44
    bottom = height - 40
    low, high = _padded([v for bar in forest.bars for v in (bar.low, bar.high)])
    x = _scale(low, high, left, right)
    parts = []
    for tick in nice_ticks(low, high, 4 if narrow else 8):
        parts.append(f'<path class="rule" d="M{x(tick):.1f} {top}V{bottom}"/>')
        parts.append(_text(x(tick), bottom + 16, format_value(tick, forest.percent), "tick middle"))
    for label, value in forest.marks:
        parts.append(f'<path class="mark" d="M{x(value):.1f} {top - 6}V{bottom}"/>')
        parts.append("" if narrow else _text(x(value), top - 12, label, "tick middle"))
    for i, bar in enumerate(forest.bars):
        y = top + step * (i + 0.5) + (9 if narrow else 0)
        label_at = (left, y - 12, "label halo") if narrow else (left - 14, y + 4, "label end")
        parts.append(_text(label_at[0], label_at[1], bar.label, label_at[2]))
        value, *ends = (_short(v, True) if forest.percent else format_points(v) for v in (bar.value, bar.low, bar.high))
        note = f"{bar.label}: {value} [{', '.join(ends)}]"
        whisker = f'<path class="whisker thick" d="M{x(bar.low):.1f} {y:.1f}H{x(bar.high):.1f}"/>'
        parts.append(f'<g class="c{bar.color}">{whisker}{_marker(x(bar.value), y, 0, note, 5.5)}</g>')
        parts.append(_text(width - 2, y + 4, value, "value end"))
    parts.append(_text((left + right) / 2, height - 4, forest.x_label, "axis middle"))
    return _svg(width, height, forest.title, parts)


def _flow(flow: Flow, width: int) -> str:
    most = max(len(column) for column in flow.columns)
    gap, top = 26.0, 34.0
    inner = gap * (most - 1) + (150 if width == NARROW else 190)
    spans, bands = flow_layout(flow, inner, gap)
    label_room = 12 + CHARACTER * max(len(_node_label(node.label, node.count)) for node in flow.columns[-1])
    bar = 12
    distance = (width - label_room - bar) / max(len(flow.columns) - 1, 1)
    parts = []
    for band in bands:
        x0, x1 = band.column * distance + bar, (band.column + 1) * distance
        middle = (x0 + x1) / 2
        parts.append(
            f'<path class="band c{band.node.color}" d="M{x0:.1f} {top + band.top:.1f}C{middle:.1f} {top + band.top:.1f} {middle:.1f} '
            f"{top + band.to_top:.1f} {x1:.1f} {top + band.to_top:.1f}V{top + band.to_bottom:.1f}C{middle:.1f} "
            f'{top + band.to_bottom:.1f} {middle:.1f} {top + band.bottom:.1f} {x0:.1f} {top + band.bottom:.1f}Z"/>'
        )
    for c, column in enumerate(flow.columns):
        x = c * distance
        for (y0, y1), node in zip(spans[c], column, strict=True):
            parts.append(
                f'<rect class="fill c{node.color}" x="{x:.1f}" y="{top + y0:.1f}" width="{bar}" height="{y1 - y0:.1f}" rx="1.5"/>'
            )
            if c == 0 and len(column) == 1:
                parts.append(_text(0, 16, _node_label(node.label, node.count), "label"))
            elif node.count or c == len(flow.columns) - 1:
                size = "tick" if c < len(flow.columns) - 1 else "label"
                text = f"{node.count:,}" if c < len(flow.columns) - 1 else _node_label(node.label, node.count)
                parts.append(_text(x + bar + 6, top + (y0 + y1) / 2 + 4, text, f"{size} halo"))
    for c, heading in enumerate(flow.headings):
        parts.append(_text(c * distance, 16, heading, "axis"))
    return _svg(width, math.ceil(top + max(span[-1][1] for span in spans) + 12), flow.title, parts)


def _legend(figure: Figure) -> str:
    if isinstance(figure, Plot) and figure.shade_label:
        steps = "".join(f'<i class="s{shade}"></i>' for shade in range(NUM_SHADES))
        return f'<p class="legend"><span>{escape(figure.shade_label)}</span><span class="ramp">0{steps}1</span></p>'
    if not isinstance(figure, Plot) or len(figure.series) < 2:
        return ""
    shaped = any(series.kind == "line" for series in figure.series)
    items = []
    for index, series in enumerate(figure.series):
        mark = _marker(8, 8, index if shaped else 1, "")
        items.append(
            f'<span><svg class="key c{series.color}" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{escape(series.label)}</span>'
        )
    return f'<p class="legend">{"".join(items)}</p>'


def _marker(x: float, y: float, index: int, note: str, r: float = 4.5) -> str:
    """One shape per series beside its colour, so that the figure can be read without colours."""
    title = f"<title>{escape(note)}</title>" if note else ""
    shape = SHAPES[index % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    path = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        "diamond": f"M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {-1.4 * r:.1f}Z",
        "triangle": f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {2.3 * r:.1f}h{-2.6 * r:.1f}Z",
    }[shape]
    return f'<path class="dot" d="{path}">{title}</path>'


def _limits(plot: Plot) -> tuple[float, float, float, float]:
    xs = [v for series in plot.series for v in series.x] + [v for v, _ in plot.x_ticks]
    if any(series.kind == "step" for series in plot.series):
        xs += [2 * s.x[-1] - s.x[-2] for s in plot.series if len(s.x) > 1]
    ys = [v for series in plot.series for v in (*series.y, *series.low, *series.high)] + [v for _, v in plot.marks]
    y_low, y_high = _padded(ys)
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if plot.from_zero:
        y_low = 0.0
        x_low = min(x_low, 0.0)
    y_high = plot.y_high or y_high
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_high + 1
    return x_low, x_high, y_low, y_high


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Limits a little outside the values; never empty, even for one value or none."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _spaced(
    ticks: Sequence[tuple[float, str]], x: Callable[[float], float], character: float
) -> list[tuple[float, str]]:
    """The ticks whose labels do not run into the label before them."""
    kept: list[tuple[float, str]] = []
    for tick, label in ticks:
        half = character * len(label) / 2
        if not kept or x(tick) - half > x(kept[-1][0]) + character * len(kept[-1][1]) / 2 + 6:
            kept.append((tick, label))
    return kept


def _short(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}%" if percent else format_value(float(f"{value:.4g}"), False)


def _node_label(label: str, count: int) -> str:
    return f"{count:,} {label}"


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
