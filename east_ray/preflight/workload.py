"""The workload of a config, planned (questions, tokens per prompt and completion) and as measured in its run.

Sizes of GSM8K and MATH are known here, so that planning for them needs neither network nor login; other files are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from east_ray.config.load import Config
from east_ray.preflight.model_size import Architecture
from east_ray.questions.questions import load_questions
from east_ray.runs.directory import RunDirectory


@dataclass(frozen=True)
class Workload:
    """Questions in each split and mean tokens per question."""

    train: int
    test: int
    prompt_tokens: float
    longest_prompt_tokens: int
    completion_tokens: float
    bytes_per_token: float


@dataclass(frozen=True)
class HubSet:
    """A published set as counted once: split sizes; mean and longest question, characters."""

    train: int
    test: int
    mean_chars: float
    longest_chars: int


HUB_SETS = {"gsm8k": HubSet(7473, 1319, 235, 985), "math": HubSet(7500, 5000, 210, 4309)}

# Mean completion, tokens. Instruct models' public answers average 780 (GSM8K) and 1,080 (MATH) characters; MATH's are
# rounded up for those that ramble on at temperature 1. The bundled tiny model's were counted.
COMPLETION_TOKENS = {"gsm8k": 220, "math": 450, "tiny": 23}
OTHER_COMPLETION_TOKENS = 400

CHARACTERS_PER_TOKEN = 3.5
TEMPLATE_TOKENS = 40  # headers and the date that Llama 3's chat template adds
CHARACTER_LEVEL_VOCABULARY = 1000  # smaller ones hold little more than single characters


def measure_workload(config: Config, architecture: Architecture) -> Workload:
    """Count the questions and estimate their tokens without rendering any. UserError when a file cannot be read."""
    questions = config.questions
    characters_per_token, template = CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS
    if architecture.vocabulary < CHARACTER_LEVEL_VOCABULARY:
        characters_per_token, template = 1.0, 4
    hub_set = next(
        (s for key, s in HUB_SETS.items() if questions.train.startswith("hf://") and _names(questions.train, key)), None
    )
    if hub_set:
        train, test = hub_set.train, hub_set.test if questions.test else 0
        mean, longest = hub_set.mean_chars, hub_set.longest_chars
    else:
        lengths = [len(q.question) for q in load_questions(questions.train, questions)]
        train, test = len(lengths), len(load_questions(questions.test, questions)) if questions.test else 0
        mean, longest = sum(lengths) / train, max(lengths)
    fixed = template + len(questions.system_prompt or "") / characters_per_token
    completion = next(
        (n for key, n in COMPLETION_TOKENS.items() if _names(questions.train, key)), OTHER_COMPLETION_TOKENS
    )
    return Workload(
        train=min(train, questions.train_limit or train),
        test=min(test, questions.test_limit or test),
        prompt_tokens=fixed + mean / characters_per_token,
        longest_prompt_tokens=round(fixed + longest / characters_per_token),
        completion_tokens=min(completion, config.sampling.max_new_tokens),
        bytes_per_token=characters_per_token,
    )


def _names(source: str, key: str) -> bool:
    return key in source.lower().replace("\\", "/").split("://")[-1].replace("/", "-").replace("_", "-").split("-")


@dataclass(frozen=True)
class Actual:
    """What a run has measured so far; None for what it has not reached. Seconds by phase, under the estimate's names."""

    train: int
    test: int
    prompt_tokens: float
    completion_tokens: float | None
    kept_share: float | None
    seconds: dict[str, float]


def read_actual(run: RunDirectory) -> Actual | None:
    """The measured figures, from narrow columns of a run's tables; None before the run."""
    if not run.exists("questions", "train.parquet"):
        return None
    prompts = run.read_table("questions", "train.parquet", columns=["prompt_token_ids"])["prompt_token_ids"]
    test = run.read_table("questions", "test.parquet", columns=["question_id"]).num_rows
    completion = kept = None
    if run.exists("round-00", "weights", "weights.json"):
        weights = run.read_table("round-00", "weights", columns=["mean_tokens", "reason"])
        completion = float(np.mean(weights["mean_tokens"].to_numpy()))
        kept = weights["reason"].null_count / max(weights.num_rows, 1)
    return Actual(
        train=len(prompts),
        test=test,
        prompt_tokens=float(np.mean([len(ids) for ids in prompts])),
        completion_tokens=completion,
        kept_share=kept,
        seconds=_seconds_by_phase(run),
    )


def _seconds_by_phase(run: RunDirectory) -> dict[str, float]:
    """Wall seconds of each phase, e.g. "round 0: sample", summed over the commands that worked on it."""
    seconds: dict[str, float] = {}
    for row in run.finished_steps():
        rounds = [int(part[6:8]) for part in row["parts"] if part.startswith("round-")]
        name = f"round {max(rounds, default=0)}: {row['step']}"
        seconds[name] = seconds.get(name, 0.0) + row["seconds"]
    return seconds
