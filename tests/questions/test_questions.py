"""Question files: every usual format, and one clear message for each way in which a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.questions import in_test_set, load_questions, prepare, render
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
        ([{"question": "a", "answer": None}], ["line 1", "must be text or a number"]),
        ([{"question": ["a"], "answer": "1"}], ["line 1", "must be non-empty text"]),
        (
            [{"id": "k", "question": "a", "answer": "1"}, {"id": "k", "question": "b", "answer": "2"}],
            ["line 2", "'k' was already used at", "line 1"],
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
    row = render(load_questions(source, COLUMNS), tokenizer, None).to_pylist()[0]
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
