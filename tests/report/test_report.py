"""The report page: complete for every kind of run, safe whatever a model wrote, and working in a real browser."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from east_ray.arms import paper_arms
from east_ray.config.load import Arm, from_dict
from east_ray.records import CORRECT, INCORRECT, UserError
from east_ray.report import process, question_browser
from east_ray.report.page import write_report
from east_ray.runs.artifacts import Artifact
from east_ray.runs.directory import RunDirectory
from tests.support.browser import CHROMIUM, Page, open_page
from tests.support.run_factory import make_run

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--<script>\u2028&amp;${alert(1)}"

VANILLA = {"weighting.exponent": 0.0}
SWEEP = [
    Arm(name="vanilla", set=VANILLA),
    *(Arm(name=f"a{a:g}", set={"weighting.exponent": a}) for a in (-1.0, 1.0, 2.0)),
    *(Arm(name=f"{m}-1", set={"weighting.measure": m}) for m in ("inaccuracy", "dominant_wrong")),
]
LOSSES = [
    Arm(name="vanilla", set=VANILLA, rounds=2),
    Arm(name="east", rounds=2),
    Arm(name="dpo-vanilla", set={"training.loss": "dpo", **VANILLA}, rounds=1),
    Arm(name="dpo-east", set={"training.loss": "dpo"}, rounds=1),
    Arm(name="kto-east", set={"training.loss": "kto"}, rounds=1),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """One round, two arms, a model that writes HTML into questions, answers and completions."""
    run = make_run(tmp_path_factory.mktemp("plain"), hostile=HOSTILE, num_train=64)
    write_report(run)
    return run


def page_of(run: RunDirectory) -> str:
    return run.read_bytes("report.html").decode()


def data_of(run: RunDirectory) -> dict[str, Any]:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page_of(run), re.S)[0])


def chapters_of(run: RunDirectory) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page_of(run))


def test_one_round_gives_every_chapter_but_those_of_sweeps_and_rounds(plain: RunDirectory) -> None:
    assert chapters_of(plain) == [
        "result",
        "uncertainty",
        "weights",
        "training",
        "details",
        "questions",
        "cost",
        "provenance",
    ]


def test_a_sweep_gets_figure_3_and_the_three_measures(tmp_path: Path) -> None:
    run = make_run(tmp_path, arms=SWEEP, num_train=48, validation=True, pass_at_k=True)
    write_report(run)
    assert "exponents" in chapters_of(run)
    page = page_of(run)
    assert "chosen on 12 held-out training questions" in page
    assert re.search(r"SFT, entropy</th><td class=\"n\">-?\d", page)
    with Path(run.path("report", "differences.csv")).open() as file:
        differences = {row["label"]: float(row["value"]) for row in csv.DictReader(file)}
    plain = run.read_json("round-00/arms/vanilla/evaluation/metrics.json")["overall"]["accuracy"]
    other = run.read_json("round-00/arms/a2/evaluation/metrics.json")["overall"]["accuracy"]
    assert differences["a2"] == pytest.approx(100 * (other - plain))
    assert "pass@k" in page
    with Path(run.path("report", "figure3_exponents.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "SFT, entropy"]
    assert [float(row["x"]) for row in rows] == [-1, 0, 1, 2]
    evaluated = run.read_json("round-00/arms/a2/evaluation/metrics.json")["overall"]
    assert float(rows[-1]["y"]) == evaluated["accuracy"]
    assert "weights from</th>" in page


def test_without_held_out_questions_the_report_warns_against_choosing_an_exponent(tmp_path: Path) -> None:
    run = make_run(tmp_path, arms=SWEEP[:4], num_train=32)
    write_report(run)
    assert "no exponent may be chosen" in page_of(run)


def test_rounds_and_losses_are_compared_after_the_rounds_that_all_arms_have(tmp_path: Path) -> None:
    run = make_run(tmp_path, arms=LOSSES, rounds=2, num_train=48)
    write_report(run)
    assert "rounds" in chapters_of(run)
    with Path(run.path("report", "accuracy.csv")).open() as file:
        shown = {row["label"]: float(row["value"]) for row in csv.DictReader(file)}
    assert shown["east"] == run.read_json("round-00/arms/east/evaluation/metrics.json")["overall"]["accuracy"]
    with Path(run.path("report", "figure4_rounds.csv")).open() as file:
        last = [row for row in csv.DictReader(file) if row["series"] == "east"][-1]
    assert float(last["x"]) == 2
    assert float(last["y"]) == run.read_json("round-01/arms/east/evaluation/metrics.json")["overall"]["accuracy"]
    names = [source["name"] for source in data_of(run)["sources"]]
    assert names == ["round 1", "round 2, vanilla", "round 2, east"]
    assert "then trains that model on this round" in page_of(run)
    used = {c["use"] for q in data_of(run)["sources"][0]["questions"] for c in q["completions"]}
    assert used == {"positive", "negative", None}, "DPO's pair is marked"


def test_a_reproduction_puts_the_paper_s_table_beside_its_own(tmp_path: Path) -> None:
    base = {
        "model": {"path": "meta-llama/Llama-3.2-1B-Instruct"},
        "questions": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
    }
    few = {"losses": ["sft"], "exponents": [2.0], "ablation_exponents": [1.0], "rounds": 1, "seeds": [0, 1]}
    arms = paper_arms(from_dict(base | {"reproduce": few}, "test")).arms
    run = make_run(tmp_path, arms=list(arms), num_train=32, num_test=60)
    write_report(run)
    assert "table1" in chapters_of(run)
    assert "of another model and data set" in page_of(run), "the tiny model is not the paper's"
    run.write_json(run.read_json("config.json") | base, "config.json")
    write_report(run)
    page = page_of(run)
    assert "of another model and data set" not in page
    assert re.search(r"sft-east</th>.*?51\.8%</td><td class=\"n\">\+1\.7<", page, re.S)
    assert "mean of 2 seeds" in page
    assert "Seeds differ in the order of training alone" in page
    assert "s 2 seeds the first is drawn." in page
    assert "95% CI in brackets, means of 2 seeds, p Holm-adjusted over " in page


def test_a_run_with_a_base_evaluation_alone_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=32)
    shutil.rmtree(tmp_path / "round-00")
    write_report(run)
    assert chapters_of(run) == ["result", "details", "cost", "provenance"]
    assert "Before training: " in page_of(run)


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=32)
    for name in ("round-00", "base", "metrics.jsonl"):
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    write_report(run)
    assert "Nothing has been evaluated yet" in page_of(run)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        write_report(RunDirectory(str(tmp_path)))


def test_every_figure_has_its_files_beside_the_page(plain: RunDirectory) -> None:
    named = set(re.findall(r'href="(report/[^"]+)"', page_of(plain)))
    assert {f"report/{name}" for name in plain.list("report")} == named | {"report/comparisons.csv"}
    assert len(named) >= 10


def test_the_page_loads_nothing(plain: RunDirectory) -> None:
    page = re.sub(r'<script type="application/json".*?</script>', "", page_of(plain), flags=re.S)
    page = re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    assert not re.search(r"https?://|\bsrc=|@import|url\((?!#)|<link|<iframe", page)


def test_only_the_pages_own_script_may_run(plain: RunDirectory) -> None:
    page = page_of(plain)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]+)"', page)[0])
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_what_a_model_wrote_is_only_ever_text(plain: RunDirectory) -> None:
    page = page_of(plain)
    assert "<img" not in page
    assert page.count("</script>") == 2
    question = data_of(plain)["sources"][0]["questions"][0]
    assert question["question"].endswith(HOSTILE), "and it comes back exactly"
    assert any(HOSTILE in c["text"] for q in data_of(plain)["sources"][0]["questions"] for c in q["completions"])


def test_the_drill_down_shows_what_the_run_holds(plain: RunDirectory) -> None:
    source = data_of(plain)["sources"][0]
    assert source["mappings"] == ["east", "vanilla"]
    shown = {q["id"]: q for q in source["questions"]}
    grades = {row["question_id"]: row for row in plain.read_table("round-00", "grades").to_pylist()}
    weights = {row["question_id"]: row for row in plain.read_table("round-00", "weights").to_pylist()}
    examples = {row["question_id"]: row for row in plain.read_table("round-00", "examples", "sft.parquet").to_pylist()}
    assert shown.keys() == grades.keys()
    for question_id, q in shown.items():
        assert (
            sum(cluster["size"] for cluster in q["clusters"]) == grades[question_id]["num_samples"] == q["num_samples"]
        )
        assert q["reason"] == weights[question_id]["reason"]
        if q["reason"] is None:
            assert q["weights"][0] == pytest.approx(weights[question_id]["weight_entropy_power_1"], abs=1e-4)
            assert [c["text"] for c in q["completions"] if c["use"] == "positive"] == [
                examples[question_id]["completion"]
            ]


def test_the_cost_of_every_step_is_told_in_seconds_and_tokens(plain: RunDirectory) -> None:
    cost = page_of(plain).partition('<section id="cost">')[2].partition("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", cost)][1:]
    tokens = sum(sum(row) for row in plain.read_table("round-00", "samples")["completion_tokens"].to_pylist())
    assert rows[1] == ["sample, round-00", "1", "12.5 s", f"{tokens:,}", f"{tokens / 12.5:,.0f}"]
    metrics = plain.read_json("base", "evaluation", "metrics.json")
    evaluated = round(metrics["overall"]["num_questions"] * metrics["mean_tokens"])
    assert rows[0] == ["evaluate", "1", "3.0 s", f"{evaluated:,}", f"{evaluated / 3:,.0f}"]


def test_a_large_run_keeps_its_page_small_and_says_what_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=question_browser.MAX_QUESTIONS + 400, num_test=50, num_samples=8)
    write_report(run)
    source = data_of(run)["sources"][0]
    assert len(source["questions"]) == question_browser.MAX_QUESTIONS
    assert source["left_out"].startswith("400 more were sampled")
    with_completions = sum(bool(q["completions"]) for q in source["questions"])
    assert f"Completions of {with_completions:,} are on this page" in source["left_out"]
    assert len(page_of(run)) < 4_000_000
    lightest, heaviest = (
        f(w for q in source["questions"] for w in q["weights"][:1] if w is not None) for f in (min, max)
    )
    every = run.read_table("round-00", "weights")["weight_entropy_power_1"].drop_null().to_pylist()
    assert (lightest, heaviest) == pytest.approx((min(every), max(every)), abs=1e-3), "the list spans all weights"


def test_a_question_with_many_answers_still_shows_the_correct_one() -> None:
    wrong = [str(i) for i in range(30) for _ in range(2)]
    grade = {
        "answers": [*wrong, "right"],
        "clusters": [int(a) for a in wrong] + [30],
        "cluster_sizes": [2] * 30 + [1],
        "cluster_verdicts": [INCORRECT] * 30 + [CORRECT],
    }
    shown = question_browser._clusters(grade)
    assert [c["answer"] for c in shown if c["verdict"] == CORRECT] == ["right"]
    assert len(shown) == question_browser.MAX_CLUSTERS + 1


def test_json_inside_a_script_cannot_end_it() -> None:
    text = question_browser.embed_json({"text": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["text"] == HOSTILE


def browse(run: RunDirectory, look: Any) -> None:
    async def visit() -> None:
        async with open_page(Path(run.path("report.html"))) as page:
            await look(page)
            assert page.errors == []
            assert {url.split(":")[0] for url in page.requests} == {"file"}
            assert len(page.requests) == 1

    asyncio.run(visit())


@needs_browser
def test_in_a_browser_the_questions_can_be_searched_sorted_and_opened(plain: RunDirectory) -> None:
    async def look(page: Page) -> None:
        assert await page.run("document.querySelectorAll('.q').length") == 40
        await page.run("document.querySelector('#more').click()")
        assert await page.run("document.querySelectorAll('.q').length") == 64

        await page.run(
            "{ const s = document.querySelector('#search'); s.value = 'TAKE train-0001'; s.dispatchEvent(new Event('input')); }"
        )
        found = await page.run("document.querySelectorAll('.q').length")
        assert found == 10
        assert await page.run("document.querySelector('#count').textContent.startsWith('10 of 64 questions')")

        await page.run(
            "{ const s = document.querySelector('#sort'); s.value = 1; s.dispatchEvent(new Event('input')); }"
        )
        weights = await page.run("[...document.querySelectorAll('.q .meta:last-child b')].map((e) => +e.textContent)")
        assert weights == sorted(weights)

        await page.run("document.querySelector('.q button').click()")
        assert await page.run("document.querySelectorAll('.open .completion').length") > 1
        assert "onerror" in await page.run("document.querySelector('.open pre').textContent")
        assert await page.run("document.images.length") == 0
        assert "owned" not in await page.run("document.title")

    browse(plain, look)


@needs_browser
def test_in_a_browser_a_dot_leads_to_its_question(plain: RunDirectory) -> None:
    async def look(page: Page) -> None:
        await page.run(
            "document.querySelector('figure .wide a[href=\"#train-00007\"] use').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
        )
        assert await page.run("document.querySelectorAll('.q').length") == 1
        assert "train-00007" in await page.run("document.querySelector('.open .note').textContent")

    browse(plain, look)


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_in_a_browser_the_page_fits_its_window_and_its_figures_can_be_read(plain: RunDirectory, width: int) -> None:
    async def look(page: Page) -> None:
        await page.resize(width, 800)
        assert await page.run("document.documentElement.scrollWidth") <= width
        shown = "[...document.querySelectorAll('figure svg')].filter((e) => e.getBoundingClientRect().width)"
        assert await page.run(f"{shown}.length") == await page.run("document.querySelectorAll('figure').length")
        smallest = await page.run(
            f"Math.min(...{shown}.map((e) => 12 * e.getBoundingClientRect().width / e.viewBox.baseVal.width))"
        )
        assert smallest >= 9, "text of the figures, px"
        small = "[...document.querySelectorAll('button, select, input')].filter((e) => e.offsetWidth && e.offsetHeight < 24 && !e.classList.contains('link'))"
        assert await page.run(f"{small}.length") == 0, "WCAG 2.5.8: targets are at least 24 px high"

    browse(plain, look)


@needs_browser
def test_in_a_browser_the_theme_follows_the_system_and_the_button(plain: RunDirectory) -> None:
    async def look(page: Page) -> None:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = await page.run(ground)
        await page.resize(1280, 900, dark=True)
        dark = await page.run(ground)
        assert light != dark
        await page.run("document.querySelector('#theme').click()")
        assert await page.run(ground) == light

    browse(plain, look)


def table_of(page: str, heading: str) -> list[list[str]]:
    """Rows of the table whose first column has this heading, as text."""
    body = next(part for part in page.split("<table")[1:] if f"{heading}</th>" in part).partition("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)][1:]


def test_the_page_counts_verdicts_and_names_the_questions_left_out(plain: RunDirectory) -> None:
    grades = plain.read_table("round-00", "grades").to_pydict()
    share = sum(grades["num_correct"]) / sum(grades["num_samples"])
    row = table_of(page_of(plain), "completions of")[0]
    eligible = (sum(grades["num_positives"]) + sum(grades["num_negatives"])) / sum(grades["num_samples"])
    assert row[-1] == f"{100 * eligible:.1f}%"
    assert row[:3] == ["all arms", f"{sum(grades['num_samples']):,}", f"{100 * share:.1f}%"]
    left_out = [row for row in plain.read_table("round-00", "weights").to_pylist() if row["reason"]]
    shown = {
        reason: (count, which.removesuffix(", ...").split(", "))
        for reason, count, which in table_of(page_of(plain), "left out because")
    }
    for reason, (count, which) in shown.items():
        ids = [row["question_id"] for row in left_out if row["reason"] == reason]
        assert int(count) == len(ids)
        assert which == ids[: process.MAX_IDS]
    assert sum(int(count) for count, _ in shown.values()) == len(left_out)


def test_the_page_says_where_imported_completions_come_from(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=32)
    Artifact(run, "round-00/samples", settings={"imported": "theirs.jsonl"}).complete()
    write_report(run)
    assert "They were imported from theirs.jsonl" in page_of(run)


def test_the_page_names_settings_that_differ_from_vanillas(tmp_path: Path) -> None:
    arms = [Arm(name="vanilla", set=VANILLA), Arm(name="east", set={"training.epochs": 10.0})]
    run = make_run(tmp_path, num_train=40, gains={"vanilla": 0.05, "east": 0.4}, arms=arms)
    write_report(run)
    page = html.unescape(page_of(run))
    assert "not of the weights alone: east: training.epochs 10.0 (vanilla: 3.0)" in page
    assert "All other training settings are equal" not in page


def test_the_page_says_that_settings_are_equal_where_they_are(plain: RunDirectory) -> None:
    assert "All other training settings are equal." in page_of(plain)


def test_the_page_shows_how_exactly_weights_reached_the_gradient(plain: RunDirectory) -> None:
    rows = table_of(page_of(plain), "trained")
    assert rows == [[arm, "48", "60", "41,000", "0", "0.0028", "0"] for arm in ("vanilla", "east")]


def test_an_arm_without_a_vanilla_of_its_seeds_is_named(tmp_path: Path) -> None:
    seeds = [Arm(name=f"east-seed{i}", set={"run.seed": i}) for i in range(2)]
    run = make_run(tmp_path, num_train=32, arms=[Arm(name="vanilla", set=VANILLA), *seeds])
    write_report(run)
    assert "hence without a difference to it: east." in page_of(run)


def test_a_seed_group_whose_short_name_is_another_arms_has_a_report(tmp_path: Path) -> None:
    seeds = [Arm(name=f"east-seed{i}", set={"run.seed": i}) for i in range(2)]
    run = make_run(tmp_path, num_train=32, arms=[*seeds, Arm(name="east", set={"weighting.clip": 3.0})])
    write_report(run)
    assert {row["name"] for row in csv.DictReader(io.StringIO(run.read_bytes("report", "comparisons.csv").decode()))} == {
        "default", "east-seed0", "east",
    }  # fmt: skip


def test_the_recorded_plan_stands_next_to_what_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=32, num_test=50)
    plan = [["training questions", 40], ["round 0: sample", 25.0], ["round 0: validate", 3.0]]
    run.write_json({"pool": "2xCPU", "figures": plan}, "plan.json")
    write_report(run)
    assert table_of(page_of(run), "plan") == [
        ["training questions", "40", "32"],
        ["round 0: sample", "25.0 s", "12.5 s"],
        ["round 0: validate", "3.0 s", ""],
    ]
    assert "The plan for 2xCPU" in page_of(run)
