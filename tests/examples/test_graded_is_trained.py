"""Graded text is trained text: on real responses, row by row, the ids trained are those of the text that was graded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from east_ray.answers.extraction import continues, extract_answer, reference_answer
from east_ray.examples.choice import choose, training_rows
from east_ray.records import EXAMPLES, check_schema
from east_ray.training.tokens import tokenise_examples
from tests.support.graded import grades_row

QUESTIONS = 150
END = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that equal ids are equal texts, whatever the characters."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def test_every_chosen_completion_of_real_responses_ends_where_its_grading_ended(shared_data: Path) -> None:
    tokenizer, compared, run_on = byte_tokenizer(), 0, 0
    with gzip.open(shared_data / "responses" / "responses_math_ei56.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line, number in zip(lines, range(QUESTIONS), strict=False):
            row = json.loads(line)
            texts, gold = row["responses"], reference_answer(row["gold"])
            found = [extract_answer(text) for text in texts]
            beyond = [continues(text, one.end) for text, one in zip(texts, found, strict=True)]
            run_on += sum(beyond)
            grades = grades_row(f"q{number}", [one.answer for one in found], gold=str(gold)) | {"run_on": beyond}
            choice = choose(grades, texts, negative="random", pairs=len(texts), seed=0, round_index=0)
            assert not any(beyond[i] for i in (*choice.positives, *choice.negatives))
            rows = training_rows("kto", "prompt", texts, choice)
            if not rows:
                continue
            table = pa.Table.from_pylist([{"question_id": f"q{number}", **one} for one in rows])
            made = tokenise_examples(check_schema(table, EXAMPLES["kto"], "test"), tokenizer, "kto", {}, END)
            chosen = [i for pair in zip(choice.positives, choice.negatives, strict=False) for i in pair]
            for i, ids in zip(chosen, made["completion_ids"].to_pylist(), strict=True):
                graded = tokenizer(texts[i][: found[i].end], add_special_tokens=False)["input_ids"]
                assert ids == [*graded, END]
                compared += 1
    assert compared > 1000
    assert run_on > 0  # else nothing was left out, and the test shows nothing
