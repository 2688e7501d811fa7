"""Numbers as the terminal, the page and the figures show them."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share as 61.2%."""
    return f"{100 * share:.1f}%"


def interval(low: float, high: float) -> str:
    """Shares as [61.2, 64.0]."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: float) -> str:
    """A difference of accuracies in points, with its sign: +1.4, −0.3, 0.0."""
    return format_points(100 * difference)


def points_interval(low: float, high: float) -> str:
    """Differences of accuracies as [−0.3, +1.4]."""
    return f"[{points(low)}, {points(high)}]"


def probability(p_value: float) -> str:
    """`= 0.03`, or `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"


def counted(number: int, noun: str) -> str:
    """1 round, 1,319 questions."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as 12.3 s, 3 min 20 s or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_points(value: float) -> str:
    """A difference already in points, with its sign."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def format_value(value: float, percent: bool) -> str:
    """A tick or label: 12.5%, 1,500, 0.002, 2e-06."""
    if percent:
        return f"{100 * value:.6g}%"
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.6g}".replace("-", "\u2212")
