"""Figures: the numbers behind them, their drawings for page and file, and colours that every reader can tell apart."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import east_ray
from east_ray.figures import charts, drawing
from east_ray.figures.drawing import Estimate, Figure

PAGE = (Path(east_ray.__file__).parent / "report" / "report.html").read_text(encoding="utf-8")
HOSTILE = "</svg><script>alert(1)</script>$\\frac{x$"


def every_figure() -> list[Figure]:
    draw = np.random.default_rng(0)
    rows = [
        Estimate(name, 0.3 + i / 20, 0.25 + i / 20, 0.36 + i / 20, i) for i, name in enumerate(["default", HOSTILE])
    ]
    dots = [draw.random(50) for _ in range(3)]
    return [
        charts.accuracy_forest(rows, 0.95, 100),
        charts.difference_forest(rows, 0.95),
        charts.accuracy_by_exponent({"sft": [(a, rows[1]) for a in (1.0, -1.0, 0.0)], HOSTILE: [(0.5, rows[0])]}, 0.31),
        charts.accuracy_by_round({"east": [(0, rows[0]), (1, rows[1])], HOSTILE: [(0, rows[0])]}),
        charts.uncertainty_map([f'"{i}' for i in range(50)], *dots, name="figure5"),
        charts.weight_histogram({"east": draw.random(80) * 2, HOSTILE: np.ones(3)}, "weights"),
        charts.funnel_flow(100, 70, {"all wrong": 29, HOSTILE: 1}, "funnel"),
        charts.state_flow("east", [np.array([[1, 2, 0], [3, 40, 1], [0, 5, 6]])] * 2),
        drawing.line_chart("loss", "Loss", "", "step", "loss", {"east": ([(1, 0.5), (2, 0.4), (3, 0.3)], 2)}),
        charts.pass_at_k_curve({"default": ({1: 0.3, 2: 0.4, 4: 0.5}, 0), "east": ({1: 0.5, 2: 0.6, 4: 0.6}, 2)}),
    ]


EVERY_FIGURE = {figure.name: figure for figure in every_figure()}


@pytest.mark.parametrize("figure", EVERY_FIGURE.values(), ids=EVERY_FIGURE.keys())
@pytest.mark.parametrize("width", [drawing.FULL, drawing.HALF, drawing.NARROW])
def test_a_drawing_is_well_formed_and_shows_hostile_labels_as_text(figure: Figure, width: int) -> None:
    drawn = drawing.svg(figure, width)
    root = ElementTree.fromstring(drawn)
    assert {element.tag for element in root.iter()} <= {
        "svg",
        "g",
        "defs",
        "clipPath",
        "rect",
        "path",
        "use",
        "text",
        "a",
    }
    assert not re.search(r"\bnan\b|\binf\b", drawn), "a coordinate is not a number"
    texts = [element.text for element in root.iter("text")]
    assert any(HOSTILE in (text or "") for text in texts) == ("script" in str(figure.rows))


@pytest.mark.parametrize("figure", EVERY_FIGURE.values(), ids=EVERY_FIGURE.keys())
def test_a_drawing_takes_its_colours_and_fonts_from_the_page(figure: Figure) -> None:
    drawn = drawing.svg(figure, drawing.HALF)
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|https?:", drawn)
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(drawing.PALETTE)


def test_no_two_drawings_share_an_id() -> None:
    widths = (drawing.HALF, drawing.NARROW)
    drawn = [drawing.svg(figure, width) for figure in EVERY_FIGURE.values() for width in widths]
    ids = [found for one in drawn for found in re.findall(r' id="([^"]+)"', one)]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.parametrize("figure", EVERY_FIGURE.values(), ids=EVERY_FIGURE.keys())
def test_a_figure_is_also_a_png_and_a_csv_of_the_same_numbers(figure: Figure) -> None:
    assert drawing.png(figure).startswith(b"\x89PNG")
    read = list(csv.DictReader(io.StringIO(drawing.to_csv(figure.rows).decode())))
    assert len(read) == len(figure.rows) > 0
    for written, row in zip(read, figure.rows, strict=True):
        for name, value in row.items():
            assert (float(written[name]) if isinstance(value, float) else written[name]) == (
                value if isinstance(value, float) else "" if value is None else str(value)
            )


def test_dots_stand_where_their_numbers_say_and_link_to_their_questions() -> None:
    ids = ["a", "b</a>#", "c"]
    corners = charts.uncertainty_map(
        ids, np.array([0.0, 2.0, 1.0]), np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.5]), "f"
    )
    links = ElementTree.fromstring(drawing.svg(corners, drawing.HALF)).iter("a")
    dots = {link.attrib["href"]: use.attrib for link in links for use in link.iter("use")}
    assert dots.keys() == {f"#{name}" for name in ids}
    first, last = dots["#a"], dots["#b</a>#"]
    assert float(first["x"]) < float(last["x"]), "more entropy is further right"
    assert float(first["y"]) > float(last["y"]), "more inaccuracy is further up"
    assert "var(--s0)" in first["style"]
    assert f"var(--s{len(drawing.SHADES) - 1})" in last["style"]


def test_a_flow_keeps_every_count() -> None:
    links = [(0, 0, 0, 70), (0, 0, 1, 20), (0, 0, 2, 10)]
    spans, bands = drawing.flow_layout([[100], [70, 20, 10]], links, height=120.0, gap=10.0)
    heights = [bottom - top for top, bottom in spans[1]]
    assert heights == pytest.approx([70, 20, 10])
    assert [bottom - top for _, _, top, bottom, *_ in bands] == pytest.approx(heights)
    assert [top for top, _ in spans[1]] == pytest.approx([0, 80, 110])
    funnel = charts.funnel_flow(100, 70, {"all wrong": 20, "all correct": 10}, "funnel")
    assert sum(row["count"] for row in funnel.rows) == 100  # type: ignore[misc]


def test_a_reason_with_one_question_among_a_million_stays_visible() -> None:
    spans, _ = drawing.flow_layout([[10**6], [10**6 - 1, 1]], [(0, 0, 0, 10**6 - 1), (0, 0, 1, 1)], 100.0, 10.0)
    assert spans[1][1][1] - spans[1][1][0] == 2.0


def test_a_large_run_draws_some_of_its_dots_and_says_so() -> None:
    count = 3 * charts.MAX_DOTS
    values = np.linspace(0, 1, count)
    figure = charts.uncertainty_map([str(i) for i in range(count)], values, values, values, "figure5")
    assert len(figure.rows) == charts.MAX_DOTS
    assert f"{charts.MAX_DOTS:,} of {count:,}" in figure.caption
    assert len(drawing.svg(figure, drawing.FULL)) < 500_000


def test_the_histogram_counts_every_question_once_even_the_heaviest() -> None:
    figure = charts.weight_histogram({"east": np.array([0.0, 0.5, 1.0, 1.0, 500.0])}, "weights")
    assert sum(row["y"] for row in figure.rows) == pytest.approx(1.0)  # type: ignore[misc]


def test_a_far_away_default_is_named_instead_of_squeezing_the_curve() -> None:
    points = [(a, Estimate("x", 0.5, 0.48, 0.52)) for a in (0.0, 1.0, 2.0)]
    near, far = (charts.accuracy_by_exponent({"sft": points}, default) for default in (0.49, 0.1))
    assert [row["y"] for row in near.rows if row["series"] == "default"] == [0.49]
    assert "default" not in [row["series"] for row in far.rows]
    assert "10.0%" in far.caption


def palette() -> dict[str, tuple[str, str]]:
    """Custom property -> its colour on light and on dark, as the page defines them."""
    return {
        name: (light, dark)
        for name, light, dark in re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", PAGE)
    }


def linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio."""
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (first, second)), reverse=True)
    return float((light + 0.05) / (dark + 0.05))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_have_enough_contrast(theme: int) -> None:
    colors = {name: pair[theme] for name, pair in palette().items()}
    for ground in ("paper", "card"):
        for text in ("ink", "muted", "link", *(f"c{i}" for i in range(len(drawing.COLORS)))):
            assert contrast(colors[text], colors[ground]) >= 4.5, f"{text} on {ground}"
        for shade in range(len(drawing.SHADES)):
            assert contrast(colors[f"s{shade}"], colors[ground]) >= 3, f"s{shade} on {ground}"


# Viénot, Brettel, Mollon 1999: what a dichromat sees of a linear RGB colour.
DICHROMATS = {
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", DICHROMATS)
@pytest.mark.parametrize(("first", "second"), [("c1", "c2"), ("c0", "c2"), ("c3", "c6"), ("s0", "s7")])
def test_colours_that_carry_meaning_stay_apart_for_colour_blind_eyes(
    first: str, second: str, eyes: str, theme: int
) -> None:
    seen = [lab(np.clip(DICHROMATS[eyes] @ linear(palette()[name][theme]), 0, 1)) for name in (first, second)]
    assert np.linalg.norm(seen[0] - seen[1]) > 15


def test_drawings_use_the_pages_light_colours() -> None:
    assert {name: light for name, (light, _) in palette().items() if name in drawing.PALETTE} == drawing.PALETTE
