"""A real language model from the package registry through every step, as its users have them: BPE, chat template, prose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from east_ray.cli import main
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from smollm2.prepare import check_engines, prepare

ROOT = Path(__file__).resolve().parents[2]
FEW = {
    "questions.train_limit": 8,
    "questions.test_limit": 4,
    "sampling.num_samples": 8,
    "sampling.max_new_tokens": 64,
    "sampling.questions_per_shard": 8,
    "sampling.max_engines": 1,
    "sampling.cpus_per_engine": 0.5,
    "training.max_steps": 2,
    "training.batch_size": 4,
    "training.micro_batch_size": 2,
    "training.cpus_per_worker": 0.5,
    "arms": '[{name = "east"}]',
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model with the shipped adapter, and its questions; fetched once a session."""
    directory = tmp_path_factory.mktemp("smollm2")
    try:
        prepare(directory, check=0)
    except UserError as error:
        pytest.skip(str(error))
    return directory


def run(directory: Path, built: Path, **more: object) -> RunDirectory:
    """The config of `make real` on a handful of questions."""
    settings = {
        "run.dir": directory,
        "model.path": built / "model",
        "questions.train": built / "questions" / "train.jsonl",
        "questions.test": built / "questions" / "test.jsonl",
        **FEW,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert main(["run", str(ROOT / "jobs" / "configs" / "smollm2.toml"), *changes]) == 0
    return RunDirectory(str(directory))


def greedy_texts(model: str, prompt_token_ids: Sequence[Sequence[int]]) -> list[str]:
    """What transformers answers, in the type the model is stored in."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    texts = []
    for ids in prompt_token_ids:
        out = reader.generate(torch.tensor([ids]), max_new_tokens=FEW["sampling.max_new_tokens"], do_sample=False)
        texts.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    return texts


def test_a_real_model_goes_through_every_step(built: Path, tmp_path: Path, ray_session: None) -> None:
    finished = run(tmp_path / "run", built, model__dtype='"float32"')
    samples = finished.read_table("round-00", "samples").to_pylist()
    grades = {row["question_id"]: row for row in finished.read_table("round-00", "grades").to_pylist()}
    assert [len(row["completions"]) for row in samples] == [8] * 8
    found = [answer for row in grades.values() for answer in row["answers"]]
    assert sum(answer is not None for answer in found) > 0.8 * len(found)  # the warm-up taught it to box its answers

    # A completion that stopped was sampled with the token that ends the model's turn, and is trained with it.
    end = 2
    for row in samples:
        for ids, reason in zip(row["completion_ids"], row["finish_reasons"], strict=True):
            assert (ids[-1] == end) == (reason == "stop")
    examples = finished.read_table("round-00", "examples", "sft.parquet").to_pylist()
    assert examples
    assert all(row["completion_ids"][-1] == end for row in examples)
    assert all(grades[row["question_id"]]["num_correct"] not in (0, 8) for row in examples)

    # What was exported is another model, which transformers and vLLM, both in float32, answer with alike.
    arm = ("round-00", "arms", "east")
    evaluated = finished.read_table(*arm, "evaluation", "samples").to_pylist()
    asked = {
        row["question_id"]: row["prompt_token_ids"]
        for row in finished.read_table("questions", "test.parquet").to_pylist()
    }
    said = greedy_texts(finished.path(*arm, "model"), [asked[row["question_id"]] for row in evaluated])
    assert said == [text for row in evaluated for text in row["completions"]]


@pytest.mark.slow
def test_transformers_and_vllm_answer_ten_questions_alike(built: Path) -> None:
    check_engines(built / "model", 10)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["all parameters", "LoRA"])
@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_a_real_model_trains_with_every_loss(
    loss: str, lora: bool, built: Path, tmp_path: Path, ray_session: None
) -> None:
    more = {"training__lora": "{rank = 4}"} if lora else {}
    finished = run(tmp_path / "run", built, training__loss=f'"{loss}"', **more)
    before, after = (
        (Path(model) / "model.safetensors").read_bytes()
        for model in (str(built / "model"), finished.path("round-00", "arms", "east", "model"))
    )
    assert len(before) == len(after)
    assert before != after
