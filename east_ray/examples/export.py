"""A run's training examples as a Hugging Face dataset: the Parquet files and a card that says how they were made."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from east_ray.records import EXAMPLES, UserError
from east_ray.runs.directory import RunDirectory
from east_ray.runs.provenance import origin_of_samples

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
FORMATS = {
    "sft": "`prompt`, `completion`: one correct completion",
    "dpo": "`prompt`, `chosen`, `rejected`: a correct and an incorrect completion",
    "kto": "`prompt`, `completion`, `label`: correct ones are true, incorrect ones false",
}


def export_dataset(run: RunDirectory, parent: str, target: str) -> Path:
    """Copy the examples of `parent` (e.g. round-00) to the local directory `target` beside a README.md; returns it.

    `load_dataset(target, "sft")` reads it, `hf upload` publishes it. UserError when there is nothing to export or
    `target` holds something already.
    """
    losses = [name for name in EXAMPLES if run.exists(parent, "examples", f"{name}.parquet")]
    if not losses:
        raise UserError(f"{run.uri_of(parent, 'examples')} holds no examples; run `east-ray select CONFIG` first")
    directory = Path(target).expanduser()
    if directory.is_file() or (directory.exists() and any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty directory; choose another")
    directory.mkdir(parents=True, exist_ok=True)
    rows = {}
    for loss in losses:
        file = directory / f"{loss}.parquet"
        file.write_bytes(run.read_bytes(parent, "examples", f"{loss}.parquet"))
        rows[loss] = pq.read_metadata(file).num_rows
    (directory / "README.md").write_text(dataset_card(run, parent, rows), encoding="utf-8")
    logger.info("exported %s to %s", ", ".join(f"{count} {loss} rows" for loss, count in rows.items()), directory)
    return directory


def dataset_card(run: RunDirectory, parent: str, rows: dict[str, int]) -> str:
    """README.md from what the run says of the examples in `parent`, and their number of rows per loss."""
    weights, config = run.read_json(parent, "weights", "weights.json"), run.read_json("config.json")
    summary = run.read_json(parent, "examples", "manifest.json")["facts"]
    origin = origin_of_samples(run, parent)
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=["self-training", "mathematics", "east-ray"],
        configs=[{"config_name": loss, "data_files": f"{loss}.parquet"} for loss in rows],
    )
    card = DatasetCard.from_template(
        data,
        str(TEMPLATE),
        config=config,
        origin=origin,
        imported="imported" in origin,
        rows=rows,
        own={loss: summary["losses"][loss]["rows"] for loss in rows},
        formats=FORMATS,
        **weights["funnel"],
        mappings=weights["mappings"],
    )
    return str(card)
