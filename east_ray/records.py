"""Arrow schemas of what flows between steps, and UserError.

Every table has one row per question until `select`, so no step needs a shuffle. Schemas are explicit because Arrow types
a block whose answers are all null as `null`, which cannot be written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa


class UserError(ValueError):
    """An error the user can fix. The message names the thing, its value and the remedy; no traceback is shown."""


class Unavailable(UserError):
    """One that may pass by itself, or not be there on another machine: the hub does not answer, a disk is full."""


CORRECT = "correct"
INCORRECT = "incorrect"
ERROR = "error"
VERDICTS = (CORRECT, INCORRECT, ERROR)

# One row per question, with the prompt rendered once for the whole run: Llama 3.x chat templates insert the date, so
# sampling, training and evaluation all read these ids instead of rendering again.
QUESTIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("level", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_hash", pa.string(), nullable=False),
    ]
)

# One row per question: exactly num_samples completions, or fewer and the reason in `shortfall`.
SAMPLES = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completions", pa.list_(pa.string()), nullable=False),
        pa.field("finish_reasons", pa.list_(pa.string()), nullable=False),  # "stop" | "length" | "unknown" (imported)
        pa.field("completion_tokens", pa.list_(pa.int32()), nullable=False),
        # As sampled, with the token the engine stopped on; null: imported, or sampled before ids were kept.
        pa.field("completion_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("shortfall", pa.string()),
    ]
)

# One row per question, without completion text: all that `weigh` reads.
GRADES = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("answers", pa.list_(pa.string()), nullable=False),  # null: no extractable answer
        pa.field("rules", pa.list_(pa.string()), nullable=False),  # which extraction rule fired
        pa.field("verdicts", pa.list_(pa.string()), nullable=False),  # one of VERDICTS per completion
        pa.field("clusters", pa.list_(pa.int32()), nullable=False),  # per completion; -1: ignored (unanswered="ignore")
        pa.field("cluster_sizes", pa.list_(pa.int32()), nullable=False),  # completions; by size, then key
        pa.field("cluster_verdicts", pa.list_(pa.string()), nullable=False),
        pa.field("truncated", pa.list_(pa.bool_()), nullable=False),
        pa.field("run_on", pa.list_(pa.bool_()), nullable=False),  # another turn follows the answer: not for training
        pa.field("num_samples", pa.int32(), nullable=False),
        pa.field("num_correct", pa.int32(), nullable=False),
        pa.field("num_incorrect", pa.int32(), nullable=False),
        pa.field("num_errors", pa.int32(), nullable=False),
        pa.field("num_unanswered", pa.int32(), nullable=False),
        pa.field("num_truncated", pa.int32(), nullable=False),
        pa.field("num_positives", pa.int32(), nullable=False),  # correct, finished, not run on
        pa.field("num_negatives", pa.int32(), nullable=False),  # incorrect, not empty, not run on
        pa.field("largest_wrong", pa.int32(), nullable=False),  # completions in the largest incorrect cluster
        pa.field("mean_tokens", pa.float64(), nullable=False),  # mean completion length, tokens
        pa.field("shortfall", pa.string()),
    ]
)

# One row per question; `reason` is null for kept questions. Then one float64 column per mapping, `WeightMapping.column`,
# null where the question is not kept.
MEASURES = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("num_clusters", pa.int32(), nullable=False),
        pa.field("entropy", pa.float64(), nullable=False),
        pa.field("inaccuracy", pa.float64(), nullable=False),
        pa.field("dominant_wrong", pa.float64(), nullable=False),
        pa.field("mean_tokens", pa.float64(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)

# The question, TRL's own column names, then one float64 column per mapping as in MEASURES. Ids are those that were sampled;
# null: imported as text, to be tokenised once and, unless `cut` (the rejected one) at the sampler's limit, given the model's end token.
_TEXT, _IDS = pa.string(), pa.list_(pa.int32())
_QUESTION = {"question_id": _TEXT, "prompt": _TEXT}
_ANSWERED = _QUESTION | {"completion": _TEXT}
EXAMPLES = {
    "sft": pa.schema(_ANSWERED | {"completion_ids": _IDS}),
    "dpo": pa.schema(
        _QUESTION | {"chosen": _TEXT, "rejected": _TEXT, "chosen_ids": _IDS, "rejected_ids": _IDS, "cut": pa.bool_()}
    ),
    "kto": pa.schema(_ANSWERED | {"label": pa.bool_(), "completion_ids": _IDS, "cut": pa.bool_()}),
}
ADDED_COLUMNS = ("completion_ids", "chosen_ids", "rejected_ids", "cut")  # that finished runs may lack: null there


def prompt_hash(prompt_token_ids: Sequence[int]) -> str:
    """16 hex digits that identify a rendered prompt by its token ids."""
    data = b"".join(int(token).to_bytes(4, "little") for token in prompt_token_ids)
    return hashlib.sha256(data).hexdigest()[:16]


def check_schema(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return `table` with exactly the columns of `schema`, cast; UserError names what is missing and where.

    ADDED_COLUMNS are filled with nulls.
    """
    for name in ADDED_COLUMNS:
        if name in schema.names and name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(
            f"{where} lacks the columns {missing}; another version wrote it: restart from the step before it"
        )
    return table.select(schema.names).cast(schema)
