"""Question files: every usual format, and one clear message for each way in which a file can be wrong."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.prompts import Prompts
from east_ray.questions.questions import in_test_set, load_questions, prepare
from east_ray.records import UserError, prompt_hash
from east_ray.runs.directory import RunDirectory

COLUMNS = QuestionsConfig(train="unused")


def write(path: Path, *rows: Any) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def test_gsm8k_math_and_bare_references_are_understood(tmp_path: Path) -> None:
    source = write(
        tmp_path / "q.jsonl",
        {"question": "a", "answer": "She has 2+2=4.\n#### 1,234"},
        {"question": "b", "answer": "Thus $x = \\boxed{\\frac{1}{2}}$."},
        {"question": "c", "answer": 7, "level": 3, "type": "Algebra"},
    )
    rows = load_questions(source, COLUMNS)
    assert [q.reference for q in rows] == ["1,234", "\\frac{1}{2}", "7"]
    assert [q.question_id for q in rows] == ["q-000000", "q-000001", "q-000002"]
    assert (rows[2].level, rows[2].subject) == ("3", "Algebra")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"),
        ("\\[\n(2n)! \\cdot 2^{n^2}\n\\]", "\\[ (2n)! \\cdot 2^{n^2} \\]"),
        ("x = 1,\ny = 2\n", "x = 1, y = 2"),
        ("f(n) = \\begin{cases}\n0 & \\text{if } n \\text{ is even} \\\\\n1\n\\end{cases}", None),
        (["2"], "2"),
        (["$2$", "$-2$"], "2, -2"),
        ([3, 4.5], "3, 4.5"),
    ],
)
def test_references_over_several_lines_and_in_lists_are_answers(
    tmp_path: Path, answer: Any, reference: str | None
) -> None:
    (question,) = load_questions(write(tmp_path / "q.jsonl", {"question": "a", "answer": answer}), COLUMNS)
    assert question.reference == (reference or " ".join(answer.split("\n")))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_hold_an_array_an_object_or_lines(tmp_path: Path, indent: int | None) -> None:
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
    array, single, lines = (tmp_path / f"{name}.json" for name in ("array", "single", "lines"))
    array.write_text(json.dumps(rows, indent=indent))
    single.write_text(json.dumps(rows[0], indent=indent))
    write(lines, *rows)
    assert [[q.reference for q in load_questions(str(f), COLUMNS)] for f in (array, single, lines)] == [
        ["1", "2"],
        ["1"],
        ["1", "2"],
    ]


def test_a_json_array_that_ends_early_or_holds_no_objects_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('[\n{"question": "a", "answer": "1"},\n')
    with pytest.raises(UserError, match=r"q\.json: not a JSON array"):
        load_questions(str(tmp_path / "q.json"), COLUMNS)
    (tmp_path / "q.json").write_text('[{"question": "a", "answer": "1"}, 3]')
    with pytest.raises(UserError, match=r"q\.json, row 2: expected a JSON object, got int"):
        load_questions(str(tmp_path / "q.json"), COLUMNS)


def test_numinamath_marks_of_questions_without_answer_are_told_or_skipped(
    tmp_path: Path, log_lines: list[tuple[str, str]]
) -> None:
    answers = ("proof", "3", "notfound", "proof")
    source = write(tmp_path / "q.jsonl", *({"question": f"q{i}", "answer": a} for i, a in enumerate(answers)))
    assert len(load_questions(source, COLUMNS)) == 4
    assert "the reference of 3 questions is proof or notfound" in str(log_lines)
    kept = load_questions(source, COLUMNS.model_copy(update={"skip_without_reference": True}))
    assert [q.reference for q in kept] == ["3"]


def test_an_empty_id_column_numbers_the_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", *({"id": 7, "question": q, "answer": "1"} for q in "ab"))
    numbered = load_questions(source, COLUMNS.model_copy(update={"id_column": ""}))
    assert [q.question_id for q in numbered] == ["q-000000", "q-000001"]


def test_parquet_and_gzip_give_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    rows = [{"id": "x", "question": "a", "answer": "1"}, {"id": "y", "question": "b", "answer": "2"}]
    plain = write(tmp_path / "q.jsonl", *rows)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(Path(plain).read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    expected = [(q.question_id, q.question, q.reference) for q in load_questions(plain, COLUMNS)]
    for name in ("q.jsonl.gz", "q.parquet"):
        assert [
            (q.question_id, q.question, q.reference) for q in load_questions(str(tmp_path / name), COLUMNS)
        ] == expected


def test_a_dataset_directory_loads_through_the_hub_client(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"question": "a", "answer": "#### 5"}, {"question": "b", "answer": "#### 6"})
    rows = load_questions(f"hf://{tmp_path}:train", COLUMNS)
    assert [q.reference for q in rows] == ["5", "6"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (['{"question": "a", "answer": '], ["line 1", "not a JSON object"]),
        ([{"question": "a", "answer": "1"}, "[1, 2]"], ["line 2", "expected a JSON object", "list"]),
        ([{"question": "a"}], ["line 1", "no column 'answer'", "questions.answer_column"]),
        ([{"question": "", "answer": "1"}], ["line 1", "non-empty"]),
        ([{"question": "a", "answer": ""}], ["line 1", "no reference answer"]),
        ([{"question": "a", "answer": "  "}], ["line 1", "no reference answer"]),
        ([{"question": "a", "answer": None}], ["line 1", "no reference answer", "text, a number or a list"]),
        ([{"question": "a", "answer": math.nan}], ["line 1", "no reference answer"]),
        ([{"question": "a", "answer": []}], ["line 1", "no reference answer"]),
        ([{"question": "a", "answer": "We add the terms.\nThe sum is even."}], ["line 1", "no reference answer"]),
        ([{"question": ["a"], "answer": "1"}], ["line 1", "must be non-empty text"]),
        (
            [{"id": "k", "question": "a", "answer": "1"}, {"id": "k", "question": "b", "answer": "2"}],
            ["line 2", "'k' was already used at", "line 1", "questions.id_column"],
        ),
        ([], ["holds no questions"]),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, rows: list[Any], words: list[str]) -> None:
    source = write(tmp_path / "q.jsonl", *rows)
    with pytest.raises(UserError) as caught:
        load_questions(source, COLUMNS)
    assert all(word in str(caught.value) for word in ["q.jsonl", *words])


@pytest.mark.parametrize("name", ["missing.jsonl", "q.txt", ".", "hf://nothing", "s3:///"])
def test_what_is_no_question_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "q.txt").write_text("x")
    source = name if "://" in name else str(tmp_path / name)
    with pytest.raises(UserError):
        load_questions(source, COLUMNS)


def test_a_truncated_gzip_says_after_which_line(tmp_path: Path) -> None:
    body = "".join(json.dumps({"question": f"q {i} {i * 7919}", "answer": str(i)}) + "\n" for i in range(5000))
    whole = gzip.compress(body.encode())
    (tmp_path / "q.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_questions(str(tmp_path / "q.jsonl.gz"), COLUMNS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_escape_as_anything_but_a_user_error(tmp_path: Path, data: bytes) -> None:
    for name in ("q.jsonl", "q.jsonl.gz", "q.parquet"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError):
            load_questions(str(tmp_path / name), COLUMNS)


def test_the_prompt_ids_are_those_of_the_rendered_text_without_a_second_bos(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    source = write(tmp_path / "q.jsonl", {"question": "start 7 +5", "answer": "12"})
    row = (
        Prompts(tokenizer, COLUMNS.model_copy(update={"system_prompt": None}))
        .render(load_questions(source, COLUMNS))
        .to_pylist()[0]
    )
    assert tokenizer.decode(row["prompt_token_ids"]) == row["prompt"]
    assert row["prompt_token_ids"].count(tokenizer.bos_token_id) <= 1
    assert row["prompt_hash"] == prompt_hash(row["prompt_token_ids"])


def test_held_out_questions_are_never_trained_on(tiny_model: Path, tiny_questions: Path, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    section = QuestionsConfig(train=str(tiny_questions / "train.jsonl"), train_limit=200, validation_share=0.25)
    summary = prepare(run, "questions", questions=section, model=ModelConfig(path=str(tiny_model)), seed=1)
    train, held_out = (
        set(run.read_table("questions", f"{s}.parquet")["question_id"].to_pylist()) for s in ("train", "validation")
    )
    assert not train & held_out
    assert summary.train + summary.validation == 200
    assert 25 <= summary.validation <= 75


def test_repeated_texts_stay_on_one_side_of_the_split_and_test_questions_out_of_validation(
    tiny_model: Path, tmp_path: Path, log_lines: list[tuple[str, str]]
) -> None:
    rows = [
        {"id": f"{copy}-{i}", "question": f"Start with {i},{' ' * copy} then +{i}.", "answer": 2 * i}
        for copy in (1, 2, 3)
        for i in range(40)
    ]
    train = write(tmp_path / "a.jsonl", *rows)
    test = write(tmp_path / "b.jsonl", *({**row, "question": row["question"].upper()} for row in rows[:20]))
    run = RunDirectory(str(tmp_path / "run"))
    section = QuestionsConfig(train=train, test=test, validation_share=0.5)
    summary = prepare(run, "questions", questions=section, model=ModelConfig(path=str(tiny_model)), seed=0)

    texts = {
        split: {
            " ".join(text.lower().split())
            for text in run.read_table("questions", f"{split}.parquet")["question"].to_pylist()
        }
        for split in ("train", "validation", "test")
    }
    assert len(texts["train"] | texts["validation"]) == 40
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    assert summary.validation == 3 * len(texts["validation"]) > 0
    assert (summary.repeated_train, summary.repeated_test, summary.in_test) == (80, 0, 60)
    assert "repeats 80 questions" in str(log_lines)
    assert "60 training questions are also test questions" in str(log_lines)


def test_training_questions_that_are_also_test_questions_are_found(tiny_model: Path, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    train = write(
        tmp_path / "a.jsonl",
        {"id": "1", "question": "What is  2+2?", "answer": "4"},
        {"id": "2", "question": "3", "answer": "3"},
    )
    test = write(tmp_path / "b.jsonl", {"question": "what is 2+2?", "answer": "4"})
    prepare(
        run,
        "questions",
        questions=QuestionsConfig(train=train, test=test),
        model=ModelConfig(path=str(tiny_model)),
        seed=0,
    )
    assert in_test_set(run, "questions") == {"1"}


def test_a_model_directory_without_tokenizer_or_template_says_what_to_add(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    settings_ = json.loads((tiny_model / "tokenizer_config.json").read_text())
    settings_.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    (tmp_path / "tokenizer.json").write_text((tiny_model / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_name_that_is_on_no_hub_is_refused_without_a_traceback() -> None:
    with pytest.raises(UserError, match="not a directory here and cannot be fetched from the hub"):
        load_tokenizer(ModelConfig(path="nobody/nothing"))


@pytest.mark.parametrize("path", ["/nowhere/model", "models/llama/1b", "./model"])
def test_a_mistyped_directory_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(UserError, match="no model directory"):
        load_tokenizer(ModelConfig(path=path))


def test_real_gsm8k_and_math_files_load_whole_but_for_the_two_without_reference(shared_data: Path) -> None:
    assert len(load_questions(str(shared_data / "datasets" / "gsm8k_train.jsonl"), COLUMNS)) == 7473
    math = str(shared_data / "datasets" / "math_train.jsonl")
    with pytest.raises(UserError, match=r"line 5342.*skip_without_reference"):
        load_questions(math, COLUMNS)
    assert len(load_questions(math, COLUMNS.model_copy(update={"skip_without_reference": True}))) == 7498
