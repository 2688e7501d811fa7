"""The workload of a config: questions of each split, tokens per prompt and completion, before anything is rendered.

The sizes of the sets that the shipped configs use are in `known.toml`, so that planning for them needs neither network nor
login. Local files are read, other hub sets are asked of the hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from east_ray.config.load import Config
from east_ray.config.sections import QuestionsConfig
from east_ray.preflight.model_size import KNOWN, Architecture
from east_ray.questions.questions import load_questions
from east_ray.questions.sources import parse_hub
from east_ray.records import UserError


@dataclass(frozen=True)
class Workload:
    """Questions in each split, and mean tokens per question: sampled completions, and greedy ones in evaluation."""

    train: int
    validation: int
    test: int
    prompt_tokens: float
    longest_prompt_tokens: int
    completion_tokens: float
    greedy_tokens: float
    bytes_per_token: float


@dataclass(frozen=True)
class Split:
    """Questions of one split; mean and longest question, characters."""

    questions: int
    mean_chars: float
    longest_chars: int


HUB_SETS = {(name, split): Split(*size) for name, splits in KNOWN["sets"].items() for split, size in splits.items()}
OTHER_SET = Split(0, 250, 2000)  # characters of sets whose texts were not counted
OTHER_COMPLETION_TOKENS = (400, 400)

CHARACTERS_PER_TOKEN = 3.5
TEMPLATE_TOKENS = 40  # headers and the date that Llama 3's chat template adds
CHARACTER_LEVEL_VOCABULARY = 1000  # smaller ones hold little more than single characters


def measure_workload(config: Config, architecture: Architecture) -> Workload:
    """Count the questions and estimate their tokens. UserError when a file cannot be read or a set not be counted."""
    questions = config.questions
    characters_per_token, template = CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS
    if architecture.vocabulary < CHARACTER_LEVEL_VOCABULARY:
        characters_per_token, template = 1.0, 4
    train = count_questions(questions, questions.train, "train_limit")
    test = count_questions(questions, questions.test, "test_limit") if questions.test else Split(0, 0, 0)
    fixed = template + len(questions.system_prompt or "") / characters_per_token
    words = re.split(r"\W+|_", questions.train.lower())
    sampled, greedy = next(
        (n for key, n in KNOWN["completion_tokens"].items() if key in words), OTHER_COMPLETION_TOKENS
    )
    validation = round(train.questions * questions.validation_share)
    return Workload(
        train=train.questions - validation,
        validation=validation,
        test=test.questions,
        prompt_tokens=fixed + train.mean_chars / characters_per_token,
        longest_prompt_tokens=round(fixed + max(train.longest_chars, test.longest_chars) / characters_per_token),
        completion_tokens=min(sampled, config.sampling.max_new_tokens),
        greedy_tokens=min(greedy, config.evaluation.max_new_tokens or config.sampling.max_new_tokens),
        bytes_per_token=characters_per_token,
    )


def count_questions(questions: QuestionsConfig, source: str, limit_key: str) -> Split:
    """Number of questions in a source, within its limit. UserError when the hub does not say and no limit is set."""
    limit = getattr(questions, limit_key)
    if source.startswith("hf://"):
        path, name, split = parse_hub(source)
        known = HUB_SETS.get((path.lower(), split)) if name in (None, "main", "default") else None
        found = known or _ask_hub(source, path, name, split, limit, limit_key)
    else:
        lengths = [len(question.question) for question in load_questions(source, questions)]
        found = Split(len(lengths), sum(lengths) / max(len(lengths), 1), max(lengths, default=0))
    return Split(min(found.questions, limit or found.questions), found.mean_chars, found.longest_chars)


def _ask_hub(source: str, path: str, name: str | None, split: str, limit: int | None, limit_key: str) -> Split:
    """The size that a hub set's page states for this split, without fetching its rows."""
    from datasets import load_dataset_builder

    try:
        size = (load_dataset_builder(path, name).info.splits or {})[split].num_examples
    except Exception as error:  # no network, no such set, no access, a page that states no sizes
        if limit is None:
            raise UserError(
                f"{source}: the hub does not say how many questions it has ({type(error).__name__}); set "
                f"questions.{limit_key}, or plan with a local file"
            ) from None
        size = limit
    return Split(size, OTHER_SET.mean_chars, OTHER_SET.longest_chars)
