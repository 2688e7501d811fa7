"""Every link and every file that the documentation names exists; the tutorial runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
]
PAGES = [path for path in TRACKED if path.suffix == ".md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w./{},*-]+\.(?:py|md|toml|yaml|sh|html|txt))`")
# Files that a reader writes, or that a run writes.
NOT_OURS = {"mine.toml", "report.html", "config.toml", "requirements.txt", "README.md", "RUN/report.html"}


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spelled_out(name: str) -> list[str]:
    """`a/{b,c}.py` as `a/b.py` and `a/c.py`."""
    if not (choice := re.search(r"\{([^{}]+)\}", name)):
        return [name]
    return [full for option in choice[1].split(",") for full in spelled_out(name.replace(choice[0], option.strip(), 1))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


# docs/compatibility.md names files of other projects; tests/preflight holds its tests and probes to what exists.
OUR_PAGES = [page for page in PAGES if page.name != "compatibility.md"]


@pytest.mark.parametrize("page", OUR_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_named_exists(page: Path) -> None:
    relative = {str(path.relative_to(ROOT)) for path in TRACKED}
    missing = []
    for named in NAMED.findall(page.read_text(encoding="utf-8")):
        for name in spelled_out(named):
            pattern = re.compile(r"(?:.*/)?" + re.escape(name).replace(r"\*", "[^/]*"))
            if name not in NOT_OURS and not any(pattern.fullmatch(file) for file in relative):
                missing.append(name)
    assert missing == []


def test_the_index_and_the_readme_lead_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in PAGES if path.parent == ROOT / "docs"} - {"index.md"}
    assert pages <= set(LINK.findall(index))
    assert "docs/index.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readmes_python_does_what_its_comments_say() -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    verdicts, entropy, weights = done.stdout.strip().splitlines()
    assert verdicts == "['correct', 'correct', 'incorrect', 'incorrect'] [2, 1, 1]"
    assert entropy.startswith("1.03")
    assert sum(map(float, re.findall(r"[\d.]+", weights.replace("np.float64", "")))) == pytest.approx(3)


@pytest.mark.timeout(300)
def test_the_tutorial_trains_a_better_model() -> None:
    done = subprocess.run(
        [sys.executable, "tutorials/101_east_by_hand.py", "--questions", "20", "--samples", "16", "--test", "50"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    before, vanilla, east = (float(share) for share in re.findall(r"([\d.]+)%", done.stdout))
    assert before < vanilla
    assert before < east
