"""Secrets stay where they were given: in no file a run writes and nothing it prints. Code from hubs runs only when asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from east_ray.cli import main
from east_ray.config.load import from_dict, load
from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.questions import load_questions
from east_ray.records import UserError
from east_ray.runs.provenance import provenance
from east_ray.training.model_card import write_model_card
from tests.support.run_factory import make_run
from tests.support.small_run import ROOT, write_config

SECRETS = {
    "HF_TOKEN": "hf_Kept0Secret1Kept0Secret1Kept0Secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_Kept0Secret2Kept0Secret2Kept0Secret",
    "WANDB_API_KEY": "kept0secret3kept0secret3kept0secret3kept",
    "MLFLOW_TRACKING_PASSWORD": "kept-secret-4-kept-secret",
    "AWS_ACCESS_KEY_ID": "KEPTSECRET5KEPTSECRET5",
    "AWS_SECRET_ACCESS_KEY": "kept/secret/6/kept/secret/6",
    "RAY_AUTH_TOKEN": "kept-secret-7-kept-secret",
}


def leaks(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


def test_no_secret_of_the_environment_is_written_or_printed(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.toml", str(tmp_path / "run"))
    make_run(tmp_path / "made", num_train=20, num_test=20)
    lines = (ROOT / "east_ray" / "tiny" / "train.jsonl").read_text().splitlines()
    samples = [{"question": json.loads(line)["question"], "responses": ["\\boxed{1}"]} for line in lines[:160]]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    commands = [
        ["config", str(config)],
        ["plan", str(config)],
        ["questions", "-v", str(config)],
        ["import-samples", "-v", str(config), str(tmp_path / "samples.jsonl")],
        ["doctor", str(config)],
        ["report", "-v", str(tmp_path / "made")],
        ["train", str(config)],  # refused: nothing is weighed yet
    ]
    code = f"import sys; from east_ray.cli import main; [main(command) for command in {commands!r}]"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | SECRETS, cwd=ROOT, capture_output=True, text=True
    )
    assert "imported" in (tmp_path / "run" / "round-00" / "samples" / "manifest.json").read_text(), done.stderr
    assert leaks(done.stdout + done.stderr) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.json", "provenance.json", "manifest.json", "report.html"} <= {path.name for path in files}
    assert {path: found for path in files if (found := leaks(path.read_bytes().decode("latin-1")))} == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sampling.engine_args.hf_token", "anything"),
        ("sampling.engine_args.nested.api_key", "anything"),
        ("model.path", "s3://KEY:hush-hush@bucket/model"),
        ("questions.train", "s3://KEY:hush-hush@bucket/questions.jsonl"),
        ("run.dir", "s3://KEY:hush-hush@bucket/run?region=eu-west-1"),
        ("model.revision", SECRETS["HF_TOKEN"]),
        ("training.token", "hush-hush-and-not-a-setting"),
    ],
)
def test_a_secret_among_the_settings_is_refused_without_repeating_it(
    setting: str, value: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.toml", str(tmp_path / "run"))
    assert main(["questions", str(config), "--set", f"{setting}={value}"]) == 2
    shown = capfd.readouterr().err
    assert f"{setting} holds a secret" in shown
    assert "in the environment" in shown
    assert value not in shown
    assert "hush" not in shown
    assert not (tmp_path / "run").exists()


def test_a_secret_in_an_arm_is_refused_too() -> None:
    arm = {"name": "a", "set": {"training.loss": "s3://KEY:hush@bucket"}}
    with pytest.raises(UserError, match=r"arms\.0\.set\.training\.loss holds a secret") as caught:
        from_dict({"model": {"path": "m"}, "questions": {"train": "q"}, "arms": [arm]}, "here")
    assert "hush" not in str(caught.value)


def test_settings_that_only_look_like_secrets_are_taken(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.toml", str(tmp_path / "run"))
    harmless = ["sampling.engine_args.max_num_batched_tokens=512", "run.dir=s3://bucket/a@b", "sampling.labels.zone=a"]
    assert load(config, harmless).run.dir == "s3://bucket/a@b"


def test_a_model_card_and_provenance_name_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    run = make_run(tmp_path / "run", num_train=20, num_test=20)
    facts: dict[str, Any] = {
        "base_model": "owner/model",
        "title": "east",
        "weight_column": None,
        "training": load(write_config(tmp_path / "c.toml", "x")).training.model_dump(mode="json"),
        "versions": {"trl": "1"},
    } | dict.fromkeys(("examples", "steps", "tokens", "seed", "dtype", "data", "weights"), 1)
    run.write_json(facts, "round-00/arms/east/model", "training.json")
    write_model_card(run, "round-00/arms/east/model")
    card = run.read_bytes("round-00/arms/east/model", "README.md").decode()
    assert "self-trained" in card
    assert leaks(card + json.dumps(provenance(load(tmp_path / "c.toml")))) == []


def test_code_that_comes_with_a_model_runs_only_when_asked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "mine.py").write_text(
        f"open({str(tmp_path / 'it-ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    with pytest.raises(UserError, match=r"read it, .*model\.trust_remote_code=true"):
        load_tokenizer(ModelConfig(path=str(model)))
    assert not (tmp_path / "it-ran").exists()
    load_tokenizer(ModelConfig(path=str(model), trust_remote_code=True))
    assert (tmp_path / "it-ran").exists()


def test_code_that_comes_with_a_data_set_never_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    (data / "train.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    with pytest.raises(UserError, match="scripts are no longer supported"):
        load_questions(f"hf://{data}:train", QuestionsConfig(train="unused"))
    assert not (tmp_path / "it-ran").exists()


def test_nothing_in_the_package_trusts_remote_code_by_itself() -> None:
    assert ModelConfig(path="m").trust_remote_code is False
    for path in (ROOT / "east_ray").rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path
