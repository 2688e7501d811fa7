"""Workloads: what is known of published sets, asked of the hub, read from files, held out for validation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from east_ray.config.load import Config, from_dict
from east_ray.preflight.model_size import Architecture, read_architecture
from east_ray.preflight.workload import HUB_SETS, Workload, measure_workload
from east_ray.records import UserError

WORDS = Architecture(0, 0, 0, 1.0, 1, 8, 8, 1, 1, 8, 32000, 16, ())


def measured(train: str, test: str | None = None, **settings: Any) -> Workload:
    data = {"model": {"path": "m"}, "questions": {"train": train, "test": test, **settings}}
    return measure_workload(from_dict(data, "test"), WORDS)


def hub_that_says(sizes: dict[str, dict[str, int]]) -> Any:
    def load_dataset_builder(path: str, name: str | None) -> Any:
        if path not in sizes:
            raise ConnectionError("offline")
        splits = {split: SimpleNamespace(num_examples=count) for split, count in sizes[path].items()}
        return SimpleNamespace(info=SimpleNamespace(splits=splits or None))

    return load_dataset_builder


@pytest.mark.parametrize(
    ("train", "test", "sizes"),
    [
        ("hf://openai/gsm8k/main:train", "hf://openai/gsm8k/main:test", (7473, 1319)),
        ("hf://openai/gsm8k/main:train", "hf://HuggingFaceH4/MATH-500:test", (7473, 500)),
        ("hf://openai/gsm8k/main:test", None, (1319, 0)),
        ("hf://DigitalLearningGmbH/MATH-lighteval:train", "hf://DigitalLearningGmbH/MATH-lighteval:test", (7500, 5000)),
        ("hf://meta-math/MetaMathQA:train", "hf://HuggingFaceH4/MATH-500:test", (395000, 500)),
    ],
)
def test_each_split_has_its_own_size(
    train: str, test: str | None, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset_builder", hub_that_says({"meta-math/MetaMathQA": {"train": 395000}}))
    workload = measured(train, test)
    assert (workload.train, workload.test) == sizes


@pytest.mark.parametrize("pages", [{}, {"open-r1/OpenR1-Math-220k": {}}, {"open-r1/OpenR1-Math-220k": {"test": 5}}])
def test_a_set_whose_size_is_not_known_is_refused_unless_a_limit_is_set(
    pages: dict[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset_builder", hub_that_says(pages))
    with pytest.raises(UserError, match=r"OpenR1-Math-220k:train.*questions\.train_limit"):
        measured("hf://open-r1/OpenR1-Math-220k:train")
    assert measured("hf://open-r1/OpenR1-Math-220k:train", train_limit=1000).train == 1000


def test_the_known_sizes_are_those_of_the_sets(shared_data: Path) -> None:
    for (name, split), known in HUB_SETS.items():
        file = "gsm8k" if "gsm8k" in name else "math"
        lines = (shared_data / "datasets" / f"{file}_{split}.jsonl").read_bytes().splitlines()
        rows = [row for row in map(json.loads, lines) if "500" not in name or row["in_math500"]]
        lengths = [len(row["question"]) for row in rows]
        mean = round(sum(lengths) / len(lengths))
        assert (len(rows), mean, max(lengths)) == (known.questions, round(known.mean_chars), known.longest_chars), name


def test_held_out_questions_are_neither_trained_nor_tested_on(tiny_questions: Path) -> None:
    workload = measured(str(tiny_questions / "train.jsonl"), validation_share=0.2)
    assert (workload.train, workload.validation, workload.test) == (400, 100, 0)


def test_local_questions_are_counted_within_their_limits(tiny_questions: Path) -> None:
    train, test = str(tiny_questions / "train.jsonl"), str(tiny_questions / "test.jsonl")
    assert (measured(train, test).train, measured(train, test).test) == (500, 1000)
    assert (measured(train, test, train_limit=30, test_limit=20).train) == 30
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        measured("absent.jsonl")


def test_a_character_level_models_prompts_are_as_long_as_their_text(tiny_questions: Path) -> None:
    data = {
        "model": {"path": str(tiny_questions / "model")},
        "questions": {"train": str(tiny_questions / "train.jsonl"), "system_prompt": ""},
    }
    config: Config = from_dict(data, "test")
    workload = measure_workload(config, read_architecture(config.model))
    assert workload.longest_prompt_tokens == 46
    assert workload.bytes_per_token == 1
