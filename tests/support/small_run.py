"""A whole run in about a minute on the bundled model, and what it left, to compare two of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from east_ray.runs.storage import Directory

ROOT = Path(__file__).resolve().parents[2]
ARM = "round-00/arms/east"
RESULTS = ("model.safetensors", "weights.json", "metrics.json")


def write_config(path: Path, run_dir: str, more: str = "") -> Path:
    """A config file for a run small in everything but its shape; `more` is TOML that comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""
        run.dir = "{run_dir}"
        model = {{ path = "{ROOT}/east_ray/tiny/model", dtype = "float32" }}
        questions.train = "{ROOT}/east_ray/tiny/train.jsonl"
        questions.test = "{ROOT}/east_ray/tiny/test.jsonl"
        questions.train_limit = 160
        questions.test_limit = 96
        questions.system_prompt = ""
        sampling.num_samples = 16
        sampling.max_new_tokens = 96
        sampling.questions_per_shard = 8
        sampling.kv_cache_gib = 1
        training.epochs = 2
        training.micro_batch_size = 4
        training.max_length = 256
        training.checkpoint_steps = 4
        training.sft.learning_rate = 2e-5
        arms = [{{ name = "east" }}]
        {more}
        """
    )
    return path


def artefacts(run: str) -> dict[str, str]:
    """File -> digest, for all that a run is made for; tables by content, since their files may name who wrote them."""
    directory = Directory(run)
    digests = {}
    for info in directory.files(recursive=True):
        name = info.path.removeprefix(directory.root).lstrip("/")
        if name.endswith(".parquet") and "training" not in name:
            table = pq.read_table(pa.BufferReader(directory.read_bytes(name)))
            digests[name] = hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()
        elif info.base_name in RESULTS and "checkpoint" not in name:
            digests[name] = hashlib.sha256(directory.read_bytes(name)).hexdigest()
    return digests


def is_whole(digests: dict[str, str]) -> bool:
    """Whether every stage left its files, so that equal artefacts mean something."""
    return digests.keys() >= {
        "questions/train.parquet",
        "round-00/samples/shard-00019.parquet",
        "round-00/grades/shard-00019.parquet",
        "round-00/weights/weights.json",
        "round-00/examples/sft.parquet",
        f"{ARM}/model/model.safetensors",
        f"{ARM}/evaluation/eval.parquet",
    }
