"""Training examples as token ids: the prompt exactly as it was sampled from, the completion, and the end of sequence.

TRL is handed these ids and never text, so its own templates and end-of-sequence rules cannot change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from east_ray.records import UserError

# The text columns that become completions, and the names TRL's collators know their token ids by.
COMPLETIONS = {
    "sft": {"completion": "completion_ids"},
    "dpo": {"chosen": "chosen_ids", "rejected": "rejected_ids"},
    "kto": {"completion": "completion_ids"},
}


def tokenise_examples(
    examples: pa.Table,
    tokenizer: Any,
    loss: str,
    prompt_token_ids: Mapping[str, Sequence[int]],
) -> pa.Table:
    """Rows of EXAMPLES[loss] -> question_id, prompt_ids, completion ids and (KTO) label, in the same order.

    `prompt_token_ids` holds what the sampler was given, by question id; UserError when this tokenizer makes something
    else of the same prompt. A question that is not in it is tokenised from its text.
    """
    prompts = examples["prompt"].to_pylist()
    question_ids = examples["question_id"].to_pylist()
    prompt_ids_N = _encode(tokenizer, prompts)
    for question_id, prompt_ids in zip(question_ids, prompt_ids_N, strict=True):
        sampled = prompt_token_ids.get(question_id)
        if sampled is not None and list(sampled) != prompt_ids:
            raise UserError(
                f"the prompt of question {question_id} is {len(prompt_ids)} tokens to this model's tokenizer and other "
                f"{len(sampled)} tokens to the one it was sampled with; train the model that was sampled from, or "
                "restart the run from its questions"
            )
    columns: dict[str, Any] = {
        "question_id": pa.array(question_ids, pa.string()),
        "prompt_ids": pa.array(prompt_ids_N, pa.list_(pa.int32())),
    }
    for text, ids in COMPLETIONS[loss].items():
        completion_ids_N = _completion_ids(tokenizer, prompts, prompt_ids_N, examples[text].to_pylist())
        columns[ids] = pa.array(completion_ids_N, pa.list_(pa.int32()))
    if loss == "kto":
        columns["label"] = examples["label"].combine_chunks()
    return pa.table(columns)


def lengths(tokens: pa.Table, loss: str) -> tuple[list[int], list[int]]:
    """Per example: tokens of its longest prompt + completion, and tokens its loss sums over."""
    prompt_N = [len(ids) for ids in tokens["prompt_ids"].to_pylist()]
    completion_NC = list(
        zip(*([len(ids) for ids in tokens[name].to_pylist()] for name in COMPLETIONS[loss].values()), strict=True)
    )
    longest_N = [prompt + max(completions) for prompt, completions in zip(prompt_N, completion_NC, strict=True)]
    return longest_N, [sum(completions) for completions in completion_NC]


def check_lengths(longest_N: Sequence[int], max_length: int) -> None:
    """UserError, with the count and the remedy, when an example is longer than `max_length`: none is ever cut."""
    too_long = sum(length > max_length for length in longest_N)
    if too_long:
        raise UserError(
            f"{too_long} of {len(longest_N)} training examples are longer than training.max_length={max_length} tokens "
            f"(the longest has {max(longest_N)}); set training.max_length={max(longest_N)}, or lower "
            "sampling.max_new_tokens and sample again: examples are never cut"
        )


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _completion_ids(
    tokenizer: Any, prompts: list[str], prompt_ids_N: list[list[int]], completions: list[str]
) -> list[list[int]]:
    """Token ids of each completion as it continues its prompt, ended by one end-of-sequence token.

    Encoded together with the prompt where that leaves the prompt's ids as they are (SentencePiece would put a space
    before a text encoded alone), otherwise alone (a merge across the border never happens while sampling).
    """
    together_N = _encode(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    alone_N = _encode(tokenizer, completions)
    rows = []
    for prompt_ids, together, alone in zip(prompt_ids_N, together_N, alone_N, strict=True):
        ids = together[len(prompt_ids) :] if together[: len(prompt_ids)] == prompt_ids else alone
        rows.append([*ids[: len(ids) - (ids[-1:] == [tokenizer.eos_token_id])], tokenizer.eos_token_id])
    return rows
