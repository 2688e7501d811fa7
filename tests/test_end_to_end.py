"""The whole loop on real parts, once: vLLM, Ray Data, math-verify, Ray Train, DeepSpeed and TRL, on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from east_ray.cli import main
from east_ray.launch import start_ray
from east_ray.runs.directory import RunDirectory

SMALL = """
[run]
dir = "{run}"
[model]
path = "{model}"
dtype = "float32"
[questions]
train = "{questions}/train.jsonl"
test = "{questions}/test.jsonl"
train_limit = 48
test_limit = 32
{extra}
[sampling]
num_samples = 8
max_new_tokens = 96
questions_per_shard = 16
kv_cache_gib = 1
cpus_per_engine = 0.5
[training]
micro_batch_size = 8
epochs = 1
max_length = 4096
cpus_per_worker = 0.5
[training.sft]
learning_rate = 2e-5
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_questions: Path) -> Path:
    root = tmp_path_factory.mktemp("loop")
    path = root / "small.toml"
    path.write_text(
        SMALL.format(run=root / "run", model=tiny_model, questions=tiny_questions, extra='system_prompt = ""')
    )
    return path


@pytest.fixture(scope="module")
def finished(config: Path, ray_session: None) -> Path:
    assert main(["run", str(config)]) == 0
    return config.parent / "run"


def test_the_loop_leaves_every_artefact_complete_and_consistent(finished: Path) -> None:
    run = RunDirectory(str(finished))
    samples = run.read_table("round-00", "samples").to_pylist()
    assert len(samples) == 48
    assert all(len(row["completions"]) == 8 for row in samples)
    grades = {row["question_id"]: row for row in run.read_table("round-00", "grades").to_pylist()}
    assert all(sum(row["cluster_sizes"]) == 8 for row in grades.values())
    weights = json.loads((finished / "round-00" / "weights" / "weights.json").read_text())
    assert weights["funnel"]["questions"]["total"] == 48
    examples = run.read_table("round-00", "examples", "sft.parquet").to_pylist()
    by_id = {row["question_id"]: row for row in samples}
    for row in examples:
        chosen = by_id[row["question_id"]]["completions"].index(row["completion"])
        assert grades[row["question_id"]]["verdicts"][chosen] == "correct"
    for name in ("vanilla", "east"):
        column = next(
            c for c in examples[0] if c.startswith("weight") and c.endswith({"vanilla": "_0", "east": "_1"}[name])
        )
        assert sum(row[column] for row in examples) / len(examples) == pytest.approx(1, abs=1e-9)
        assert (finished / "round-00" / "arms" / name / "model" / "model.safetensors").exists()
        metrics = json.loads((finished / "round-00" / "arms" / name / "evaluation" / "metrics.json").read_text())
        assert metrics["overall"]["num_questions"] == 32


def test_the_report_is_one_page_that_needs_no_server(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "east" in page
    assert 'src="http' not in page
    assert list((finished / "report").glob("*.png"))


def test_running_again_does_nothing(finished: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("a finished run must not start Ray")

    monkeypatch.setattr("east_ray.launch.start_ray", refuse)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.parquet")}
    assert main(["run", str(config)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.parquet")}


def test_a_changed_setting_of_a_finished_step_is_refused_by_name(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(config), "--set", "sampling.temperature=0.5"]) == 2
    message = capsys.readouterr().err
    assert "temperature = 1.0, now it is 0.5" in message
    assert "--restart-from sample" in message


def test_one_step_can_be_done_again_alone(finished: Path, config: Path) -> None:
    before = (finished / "round-00" / "weights" / "weights.json").read_bytes()
    (finished / "round-00" / "weights" / "manifest.json").unlink()
    assert main(["weigh", str(config)]) == 0
    assert (finished / "round-00" / "weights" / "weights.json").read_bytes() == before


@pytest.mark.parametrize("dataset", ["gsm8k", "math"])
def test_real_completions_of_real_models_can_be_imported_weighed_and_trained_on(
    dataset: str, shared_data: Path, tmp_path: Path, tiny_model: Path, ray_session: None
) -> None:
    responses = shared_data / "responses" / f"small_{dataset}_40q.jsonl"
    questions = tmp_path / "questions.jsonl"
    with questions.open("w") as file:
        for line in responses.read_text().splitlines():
            row = json.loads(line)
            file.write(json.dumps({"id": row["id"], "question": row["question"], "answer": row["gold"]}) + "\n")
    config = tmp_path / "import.toml"
    text = SMALL.format(run=tmp_path / "run", model=tiny_model, questions=tmp_path, extra="")
    text = text.replace("train.jsonl", "questions.jsonl").replace(f'test = "{tmp_path}/test.jsonl"\n', "")
    config.write_text(text.replace("train_limit = 48\ntest_limit = 32\n", ""))
    assert main(["import-samples", str(config), str(responses)]) == 0
    settings = [
        "--set",
        "training.max_steps=2",
        "--set",
        "training.micro_batch_size=2",
        "--set",
        "grading.answer_tags=true",
    ]
    for step in ("verify", "weigh", "select", "train"):
        assert main([step, str(config), *settings]) == 0
    funnel = json.loads((tmp_path / "run" / "round-00" / "weights" / "weights.json").read_text())["funnel"]["questions"]
    assert funnel["total"] == 40
    assert funnel["kept"] >= 10


def test_ray_is_joined_once(ray_session: None) -> None:
    start_ray()
    start_ray()
