"""GSM8K's own solutions as completions to import: `python -m smollm2.human_solutions QUESTIONS FILE`.

QUESTIONS is a file or hf://openai/gsm8k/main:train. The calculator's marks (<<3*4=12>>) go, and the last line gives the
answer as the default prompt asks for it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from east_ray.questions.sources import read_rows


def as_completion(solution: str) -> str:
    """The solution as a model is to write it: no marks, the answer in a box."""
    work, _, answer = re.sub(r"<<[^>]*>>", "", solution).rpartition("####")
    return f"{work.strip()}\nThe answer is \\boxed{{{answer.strip()}}}."


def main(questions: str, target: Path) -> None:
    rows = [
        {"question": row["question"], "completions": [as_completion(row.get("solution") or row["answer"])]}
        for _, row in read_rows(questions)
    ]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
