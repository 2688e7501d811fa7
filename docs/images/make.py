"""Screenshots of the report for the documentation: `.venv/bin/python docs/images/make.py RUN_DIR`.

Needs Chromium. They show the page of a real run, exactly as it is.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.support.browser import Page, open_page  # noqa: E402


async def section(page: Page, name: str, width: int, height: int, chapter: str, dark: bool = False) -> None:
    """The page from the top of one chapter ("" for the top of the page), `height` pixels of it."""
    await page.resize(width, 900, dark)
    top = await page.run(f"document.getElementById('{chapter}').offsetTop") if chapter else 0
    await page.picture(HERE / f"{name}.png", x=0, y=top, width=width, height=height)


async def main(run: Path) -> None:
    async with open_page(run.resolve() / "report.html") as page:
        await section(page, "report", 1280, 1000, "")
        await section(page, "report-uncertainty", 1280, 820, "uncertainty", dark=True)
        await section(page, "report-phone", 390, 1480, "")
        await page.run(
            "{ const s = document.querySelector('#sort'); s.value = 4; s.dispatchEvent(new Event('input')); }"
        )
        await page.run("document.querySelectorAll('.q button')[2].click()")
        await section(page, "report-questions", 1280, 1040, "questions")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
