"""A run's training examples as a Hugging Face dataset: the Parquet files and a card that says how they were made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from east_ray.records import EXAMPLES, UserError
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

FORMATS = {
    "sft": "`prompt`, `completion`: one correct completion",
    "dpo": "`prompt`, `chosen`, `rejected`: a correct and an incorrect completion",
    "kto": "`prompt`, `completion`, `label`: correct ones are true, incorrect ones false",
}


def export_dataset(run: RunDirectory, *, examples: str, weights: str, target: str) -> Path:
    """Copy a round's examples to the local directory `target` beside a README.md; returns it.

    `load_dataset(target, "sft")` reads it, `hf upload` publishes it. UserError when there is nothing to export or
    `target` holds something already.
    """
    losses = [name for name in EXAMPLES if run.exists(examples, f"{name}.parquet")]
    if not losses:
        raise UserError(f"{run.uri_of(examples)} holds no examples; run `east-ray select` first")
    directory = Path(target).expanduser()
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    rows = {}
    for loss in losses:
        file = directory / f"{loss}.parquet"
        file.write_bytes(run.read_bytes(examples, f"{loss}.parquet"))
        rows[loss] = pq.read_metadata(file).num_rows
    card = dataset_card(run.read_json("config.json"), run.read_json(weights, "weights.json"), rows)
    (directory / "README.md").write_text(card, encoding="utf-8")
    logger.info("exported %s to %s", ", ".join(f"{count} {loss} rows" for loss, count in rows.items()), directory)
    return directory


def dataset_card(config: dict[str, Any], weights: dict[str, Any], rows: dict[str, int]) -> str:
    """README.md from the run's config.json and weights.json and the number of rows per loss."""
    questions, completions = weights["funnel"]["questions"], weights["funnel"]["completions"]
    sampling, model, selection = config["sampling"], config["model"]["path"], config["selection"]
    dropped = "; ".join(f"{count} {reason}" for reason, count in questions["dropped"].items()) or "none"
    lines = [
        "---",
        "task_categories:\n- text-generation",
        "tags:\n- self-training\n- mathematics\n- east-ray",
        "configs:",
        *(f"- config_name: {loss}\n  data_files: {loss}.parquet" for loss in rows),
        "---",
        "",
        f"# Self-training examples of {model}, weighted by uncertainty",
        "",
        f"Sampled from `{model}` on the questions of `{config['questions']['train']}`: {sampling['num_samples']} completions "
        f"per question at temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']} new tokens. Each completion's final answer was judged by mathematical equivalence. "
        f"One correct and one incorrect completion was drawn per question (seed {config['run']['seed']}, "
        f"{selection['pairs_per_question']} each, negatives: {selection['negative']}).",
        "",
        "Weights follow *Entropy-Based Adaptive Weighting for Self-Training* (arXiv 2503.23913): questions whose sampled "
        "answers disagree weigh more; the mean over questions is 1.",
        "",
        "| | |",
        "|---|---|",
        f"| questions sampled | {questions['total']:,} |",
        f"| questions kept (`keep = {selection['keep']}`) | {questions['kept']:,} |",
        f"| dropped | {dropped} |",
        f"| completions | {completions['total']:,}, of which {completions['all']['correct']:,} correct |",
        f"| mean entropy of kept questions | {weights['funnel']['mean_entropy']:.3f} nats |",
        "",
        "## Files",
        *(f"- `{loss}` ({count:,} rows): {FORMATS[loss]}" for loss, count in rows.items()),
        "",
        "Every row has its `question_id`, the prompt exactly as the model saw it, and these weights:",
        "",
        "| column | effective sample size | largest weight |",
        "|---|---|---|",
        *(
            f"| `{column}` | {entry['health']['effective_sample_size']:,.0f} of {entry['health']['kept']:,} "
            f"| {entry['health']['max_weight']:.3g} |"
            for column, entry in weights["mappings"].items()
        ),
        "",
        f"The completions are outputs of `{model}` and the questions come from the dataset named above: the licences of "
        "both apply.",
    ]
    return "\n".join(lines) + "\n"
