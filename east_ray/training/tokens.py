"""Training examples as token ids: the prompt exactly as it was sampled from, and the completion exactly as it was sampled.

TRL gets these ids and never text, so its own templates and end-of-sequence rules cannot change them. Only completions that
were imported as text are tokenised here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from east_ray.config.sections import ModelConfig
from east_ray.models import load_tokenizer, local_model
from east_ray.records import EXAMPLES, UserError, check_schema
from east_ray.runs.directory import RunDirectory, fingerprint, fingerprint_source
from east_ray.training.job import ArmTraining

# The text columns that become completions, and the names TRL's collators expect for their token ids.
COMPLETIONS = {
    "sft": {"completion": "completion_ids"},
    "dpo": {"chosen": "chosen_ids", "rejected": "rejected_ids"},
    "kto": {"completion": "completion_ids"},
}


@dataclass(frozen=True)
class PreparedExamples:
    """The driver's record of N examples: weights, tokens their loss sums over, questions, a fingerprint of the ids.

    `tokens` and `reference` are the files of the token ids and of DPO's reference log-probabilities, shared by every arm with
    these examples and this model. `tokenised_from_text` counts completions that came without ids.
    """

    tokens: str
    weight_N: np.ndarray
    tokens_N: np.ndarray
    question_ids: list[str]
    content: str
    reference: str | None
    tokenised_from_text: int


def prepare_arms(
    run: RunDirectory, arms: Sequence[ArmTraining], *, questions: str, model: ModelConfig
) -> list[PreparedExamples | UserError]:
    """`prepare_examples` of each arm, or the UserError that it raises."""
    prepared = list[PreparedExamples | UserError]()
    for arm in arms:
        try:
            prepared.append(prepare_examples(run, arm, questions=questions, model=model))
        except UserError as error:
            prepared.append(error)
    return prepared


def prepare_examples(run: RunDirectory, arm: ArmTraining, *, questions: str, model: ModelConfig) -> PreparedExamples:
    """Check an arm's examples and weights, tokenise them unless another arm has, and return what planning needs.

    UserError for a missing or invalid weight, for examples longer than training.max_length, and for prompts whose token ids
    differ from those that were sampled from.
    """
    training, base_model = arm.training, arm.base_model
    where = run.uri_of(arm.examples)
    table = run.read_table(arm.examples)
    rows = check_schema(table, EXAMPLES[training.loss], where)
    if rows.num_rows == 0:
        raise UserError(f"{where} holds no examples: no question was kept; see the funnel in weights.json")
    weight_N = _weights(table, arm.weight_column, where)
    place, base = "/".join(arm.examples.split("/")[:-1]), fingerprint_source(base_model, model.revision)
    tokens = f"{place}/tokens/{training.loss}-{fingerprint([base, _content(rows)])}.parquet"
    if not run.exists(tokens):
        tokenizer = load_tokenizer(model.model_copy(update={"path": base_model}))
        generation = Path(local_model(base_model, model.revision, weights=False), "generation_config.json")
        end = end_token(tokenizer, json.loads(generation.read_bytes()) if generation.is_file() else {})
        made = tokenise_examples(rows, tokenizer, training.loss, _sampled_prompts(run, questions), end)
        run.write_table(made, tokens)
    tokenised = run.read_table(tokens)
    longest_N, tokens_N = lengths(tokenised, training.loss)
    check_lengths(longest_N, training.max_length)
    content = _content(tokenised)
    reference = None
    if training.precompute_reference:
        if training.loss != "dpo":
            raise UserError("training.precompute_reference needs training.loss = dpo; remove it")
        reference = f"{place}/reference/{fingerprint([base, model.dtype, content])}.parquet"
    from_text = sum(rows[name].null_count for name in COMPLETIONS[training.loss].values())
    questions_N = rows["question_id"].to_pylist()
    return PreparedExamples(tokens, weight_N, np.array(tokens_N), questions_N, content, reference, from_text)


def tokenise_examples(
    examples: pa.Table,
    tokenizer: Any,
    loss: str,
    prompt_token_ids: Mapping[str, Sequence[int]],
    end: int,
) -> pa.Table:
    """Rows of EXAMPLES[loss] -> question_id, prompt_ids, completion ids and (KTO) label, in the same order.

    Sampled ids are taken as they are. Text without ids is tokenised, and ended by the token `end` unless it was cut.
    `prompt_token_ids` holds what the sampler was given, by question id; UserError when this tokenizer gives other ids for
    the same prompt. The prompt of a question that is not in it is tokenised from its text.
    """
    prompts = examples["prompt"].to_pylist()
    question_ids = examples["question_id"].to_pylist()
    prompt_ids_N = _encode(tokenizer, prompts)
    for question_id, prompt_ids in zip(question_ids, prompt_ids_N, strict=True):
        sampled = prompt_token_ids.get(question_id)
        if sampled is not None and list(sampled) != prompt_ids:
            raise UserError(
                f"the prompt of question {question_id} is {len(prompt_ids)} tokens with this model's tokenizer and "
                f"{len(sampled)} different ones with the one it was sampled with; train the model that was sampled from, or "
                "start the run again from its questions"
            )
    columns: dict[str, Any] = {
        "question_id": pa.array(question_ids, pa.string()),
        "prompt_ids": pa.array(prompt_ids_N, pa.list_(pa.int32())),
    }
    for text, ids in COMPLETIONS[loss].items():
        sampled_N = examples[ids].to_pylist()
        missing = [n for n, sampled in enumerate(sampled_N) if sampled is None]
        cut_N = examples["cut"].to_pylist() if ids == "rejected_ids" or loss == "kto" else [False] * len(prompts)
        texts = examples[text].take(missing).to_pylist() if missing else []
        made = _tokenised(tokenizer, [prompts[n] for n in missing], [prompt_ids_N[n] for n in missing], texts)
        for n, made_ids in zip(missing, made, strict=True):
            sampled_N[n] = made_ids if cut_N[n] or made_ids[-1:] == [end] else [*made_ids, end]
        columns[ids] = pa.array(sampled_N, pa.list_(pa.int32()))
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
    """UserError, with the count and the remedy, when an example is longer than `max_length`; none is ever cut."""
    too_long = sum(length > max_length for length in longest_N)
    if too_long:
        raise UserError(
            f"{too_long} of {len(longest_N)} training examples are longer than training.max_length={max_length} tokens "
            f"(the longest has {max(longest_N)}); set training.max_length={max(longest_N)}, or lower "
            "sampling.max_new_tokens and sample again: examples are never cut"
        )


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _tokenised(
    tokenizer: Any, prompts: list[str], prompt_ids_N: list[list[int]], completions: list[str]
) -> list[list[int]]:
    """Token ids of each completion as it continues its prompt.

    Encoded together with the prompt where that leaves the prompt's ids as they are (SentencePiece would put a space
    before a text encoded alone), otherwise alone (sampling never merges across the border).
    """
    together_N = _encode(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    alone_N = _encode(tokenizer, completions)
    return [
        together[len(prompt_ids) :] if together[: len(prompt_ids)] == prompt_ids else alone
        for prompt_ids, together, alone in zip(prompt_ids_N, together_N, alone_N, strict=True)
    ]


def end_token(tokenizer: Any, generation: Mapping[str, Any]) -> int:
    """The token that ends the model's turns: of those `generation` stops at, the one its chat template writes after one.

    Gemma, Phi-3.5 and Llama 3 end turns with another token than the tokenizer's eos. UserError when there is none at all.
    """
    stops = generation.get("eos_token_id")
    stops = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id} - {None}
    if not stops:
        raise UserError(
            f"neither the tokenizer of {tokenizer.name_or_path} nor its generation_config.json has an end-of-sequence "
            "token; add eos_token_id"
        )
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
    except TemplateError:
        after = ""
    default = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(stops)
    return next((token for token in _encode(tokenizer, [after])[0] if token in stops), default)


def _weights(table: pa.Table, column: str | None, where: str) -> np.ndarray:
    if column is None:
        return np.ones(table.num_rows)
    if column not in table.column_names:
        raise UserError(
            f"{where} has no weights {column!r}, only the columns {table.column_names}; run `weigh` and `select` again"
        )
    weight_N = table[column].to_numpy().astype(np.float64)
    invalid = int((~np.isfinite(weight_N) | (weight_N < 0)).sum())
    if invalid or not weight_N.any():
        raise UserError(
            f"{where}: {invalid} of {len(weight_N)} weights in {column!r} are missing, negative or not finite, and "
            f"{int((weight_N == 0).sum())} are zero; run `weigh` and `select` again"
        )
    return weight_N


def _sampled_prompts(run: RunDirectory, questions: str) -> Mapping[str, list[int]]:
    if not run.exists(questions):
        return {}
    table = run.read_table(questions, columns=["question_id", "prompt_token_ids"])
    return dict(zip(table["question_id"].to_pylist(), table["prompt_token_ids"].to_pylist(), strict=True))


def _content(table: pa.Table) -> str:
    """16 hex digits that differ for tables with other ids or another order."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]
