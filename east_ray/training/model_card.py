"""The README.md of a trained model: what it was trained from, on what, and how accurate it is; rewritten after each evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from east_ray.runs.directory import RunDirectory
from east_ray.runs.provenance import origin_of_samples

FACTS = "training.json"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
SPLITS = {"evaluation": "test questions", "validation": "held-out training questions"}


def write_model_card(run: RunDirectory, output: str) -> None:
    """Write `output`/README.md from `output`/training.json and the metrics.json of the evaluations made so far.

    A model directory without training.json was not written here and is left alone.
    """
    if not run.exists(output, FACTS):
        return
    facts, arm = run.read_json(output, FACTS), output.rpartition("/")[0]
    measured = {}
    for directory, split in SPLITS.items():
        for name, parent in ((split, arm), (f"{split}, before training", "base")):
            if run.exists(parent, directory, "metrics.json"):
                measured[name] = run.read_json(parent, directory, "metrics.json")["overall"]
    origin = origin_of_samples(run, facts.get("examples_from", ""))
    run.write_bytes(model_card(facts, origin, measured).encode(), output, "README.md")


def model_card(facts: Mapping[str, Any], origin: str, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown with the metadata block the Hugging Face hub reads, accuracies included.

    `measured`: by name of the questions, `num_questions`, `accuracy` and its interval's `low` and `high`.
    """
    base, training = facts["base_model"], facts["training"]
    name = f"{base.rstrip('/').rpartition('/')[2]}, self-trained ({facts['title']})"
    data = ModelCardData(
        library_name="transformers",
        tags=["self-training", "east", "math"],
        base_model=None if base.startswith("/") or "://" in base else base,
        model_name=name,
        eval_results=[
            EvalResult("text-generation", "math", split, "accuracy", round(100 * measured[split]["accuracy"], 1))
            for split in SPLITS.values()
            if split in measured
        ]
        or None,
    )
    shown = {name: facts[name] for name in ("examples", "steps", "tokens", "seed", "dtype", "data", "weights")}
    settings = {key: value for key, value in training.items() if key not in {"sft", "dpo", "kto"} - {training["loss"]}}
    card = ModelCard.from_template(
        data,
        str(TEMPLATE),
        model_name=name,
        facts=facts,
        origin=origin,
        measured=measured,
        settings={**shown, **settings, **facts["versions"]},
    )
    return str(card)
