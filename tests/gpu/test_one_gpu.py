"""Does this installation do on its GPU what it promises? `make test-gpu`, in under ten minutes with the benchmark after it.

The order matters: what runs in processes of its own comes first, because this process keeps what memory it used.

| test | on a GPU so far |
|---|---|
| probes of the engine (seeds, token ids) | one H200, as a script of an earlier revision |
| probe of the exchange of weights, against a fresh engine | not run; exchanging there and back was, on one H200 |
| probes of the gradient and of the weights' type | one H200, as a script of an earlier revision |
| a whole run with report | one H200 up to training; evaluation and report not run |
| the gradient within 1e-5 of the explicit loss | one H200, as a script of an earlier revision |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from east_ray.cli import main
from east_ray.config.load import from_dict
from east_ray.preflight.probe import probe
from east_ray.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
PROBES = ("grading", "seeds", "token ids", "exchange", "weights", "multipliers")
EXACT = 1e-5  # relative L2 in float32, CUDA against the CPU's oracles


@pytest.fixture(scope="module")
def findings(sampling: dict[str, Any], use_gpu: bool) -> list[Any]:
    config = from_dict(
        {
            "model": {"path": str(ROOT / "east_ray/tiny/model")},
            "questions": {"train": str(ROOT / "east_ray/tiny/train.jsonl")},
            "sampling": sampling,
            "training": {"use_gpu": use_gpu},
        },
        "tests/gpu",
    )
    return list(probe(config))


@pytest.mark.parametrize("name", PROBES)
def test_the_probes_find_what_they_expect(name: str, findings: list[Any]) -> None:
    found = [finding for finding in findings if finding.name.split(",")[0] == name]
    assert found, [finding.name for finding in findings]
    assert [finding.status for finding in found] == ["ok"] * len(found), found


def test_a_whole_run_ends_in_a_report(
    sampling: dict[str, Any], use_gpu: bool, tmp_path: Path, tiny_model: Path, tiny_questions: Path, ray_session: None
) -> None:
    settings: dict[str, Any] = {
        "run.dir": str(tmp_path / "run"),
        "model.path": str(tiny_model),
        "questions.train": str(tiny_questions / "train.jsonl"),
        "questions.test": str(tiny_questions / "test.jsonl"),
        "questions.train_limit": 96,
        "questions.test_limit": 64,
        "sampling.num_samples": 16,
        "training.epochs": 1,
        "training.use_gpu": use_gpu,
        "training.cpus_per_worker": 0.5,
        **{f"sampling.{key}": value for key, value in sampling.items() if key != "engine_args"},
        **{f"sampling.engine_args.{key}": value for key, value in sampling.get("engine_args", {}).items()},
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["run", str(ROOT / "jobs" / "configs" / "tiny.toml"), *changes]) == 0
    run = RunDirectory(settings["run.dir"])
    assert run.exists("report.html")
    for arm in ("vanilla", "east"):
        assert run.read_json("round-00", "arms", arm, "evaluation", "metrics.json")["overall"]["num_questions"] == 64


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["all parameters", "LoRA"])
@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_the_gradient_is_that_of_the_explicit_weighted_loss(
    loss: str, lora: dict[str, Any] | None, use_gpu: bool, tmp_path: Path
) -> None:
    from tests.support.training_rows import config, distance, explicit_gradient, one_step

    training = config(loss, max_steps=1, lora=lora, use_gpu=use_gpu)
    actual, rows, weights, policy = one_step(16, training, tmp_path)
    assert distance(actual, explicit_gradient(training, policy(), rows, weights)) <= EXACT
