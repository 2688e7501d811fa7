"""Our verdicts beside the harness's, question by question: `python smollm2/harness/compare.py EVALUATION OUTPUT`.

EVALUATION is an arm's evaluation directory, e.g. runs/smollm2/round-00/arms/east/evaluation; OUTPUT is what run.sh wrote to.
Prints both accuracies over the questions that both have, and every question on which they disagree, with both texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(evaluation: Path, output: Path) -> None:
    ours = {row["question_id"]: row for row in pq.read_table(evaluation / "eval.parquet").to_pylist()}
    texts = {
        row["question_id"]: row["completions"][0]
        for shard in sorted((evaluation / "samples").glob("*.parquet"))
        for row in pq.read_table(shard, columns=["question_id", "completions"]).to_pylist()
    }
    [*_, samples] = sorted(output.rglob("samples_word_problems_*.jsonl"))
    theirs = {row["doc"]["id"]: row for row in map(json.loads, samples.read_text(encoding="utf-8").splitlines())}
    both = sorted(ours.keys() & theirs.keys())
    counts = {"ours": 0, "harness": 0, "same text": 0, "same verdict": 0}
    for name in both:
        said, right = theirs[name]["resps"][0][0], bool(theirs[name]["exact_match"])
        counts["ours"] += ours[name]["correct"]
        counts["harness"] += right
        counts["same text"] += said == texts[name]
        counts["same verdict"] += right == ours[name]["correct"]
        if right != ours[name]["correct"]:
            print(f"{name}: reference {theirs[name]['doc']['answer']}, ours {ours[name]['verdict']}, harness {right}")
            print(f"  ours:    {texts[name]!r}\n  harness: {said!r}")
    print(f"{len(both)} questions", {name: f"{count / len(both):.1%}" for name, count in counts.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
