"""The README.md of a trained model: how it was made, from what, and how well it does; written again when that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from east_ray.runs.directory import RunDirectory

FACTS = "training.json"
SPLITS = {"evaluation": "test questions", "validation": "held-out training questions"}


def write_model_card(run: RunDirectory, output: str) -> None:
    """Write `output`/README.md from `output`/training.json and the metrics.json of the evaluations made so far.

    A model directory without training.json was not written here and is left alone.
    """
    if not run.exists(output, FACTS):
        return
    arm = output.rpartition("/")[0]
    measured = {}
    for directory, split in SPLITS.items():
        for name, place in ((split, arm), (f"{split}, before training", "base")):
            if run.exists(place, directory, "metrics.json"):
                measured[name] = run.read_json(place, directory, "metrics.json")["overall"]
    run.write_bytes(model_card(run.read_json(output, FACTS), measured).encode(), output, "README.md")


def model_card(facts: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown with the metadata block the Hugging Face hub reads.

    `measured`: by name of the questions, `num_questions`, `accuracy` and its interval's `low` and `high`.
    """
    base, training = facts["base_model"], facts["training"]
    lines = ["---", "library_name: transformers", "tags: [self-training, east, math]"]
    lines += [] if base.startswith("/") or "://" in base else [f"base_model: {base}"]
    lines += ["---", "", f"# {base.rstrip('/').rpartition('/')[2]}, self-trained ({facts['title']})", ""]
    lines += [
        f"{base} fine-tuned on its own correct answers ({training['loss'].upper()}), each question weighted by "
        f"`{facts['weight_column'] or '1'}`: entropy-based adaptive weighting for self-training "
        "([EAST](https://arxiv.org/abs/2503.23913)).",
        "",
        "## Accuracy",
        "",
    ]
    lines += (
        ["| questions | number | accuracy | interval |", "|---|---|---|---|"] if measured else ["Not measured yet."]
    )
    for name, overall in measured.items():
        low, high = 100 * overall["low"], 100 * overall["high"]
        lines.append(
            f"| {name} | {overall['num_questions']} | {100 * overall['accuracy']:.1f}% | {low:.1f} to {high:.1f}% |"
        )
    lines += ["", "## Training", "", "| | |", "|---|---|"]
    shown = {name: facts[name] for name in ("examples", "steps", "tokens", "seed", "dtype", "data", "weights")}
    settings = {key: value for key, value in training.items() if key not in {"sft", "dpo", "kto"} - {training["loss"]}}
    lines += [f"| {name} | {_short(value)} |" for name, value in {**shown, **settings, **facts["versions"]}.items()]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return "`none`" if value is None else f"`{value}`"
