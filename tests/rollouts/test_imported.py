"""Completions from elsewhere: every line finds its question or is counted, every question has a row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.prompts import Prompts
from east_ray.questions.questions import load_questions
from east_ray.records import SAMPLES, UserError
from east_ray.rollouts import shards
from east_ray.rollouts.imported import ImportSummary, import_samples
from east_ray.runs.directory import RunDirectory
from tests.support.rollout_runs import make_run


@pytest.fixture
def bring(tmp_path: Path, tiny_model: Path) -> Any:
    """Import lines into a run of seven questions, three to a shard: returns the rows by question, and the summary."""

    def call(lines: list[Any], name: str = "file.jsonl") -> tuple[dict[str, Any], ImportSummary]:
        run = make_run(tmp_path, 7)
        file = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(lines), file)
        else:
            text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
            file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        summary = import_into(run, file, tiny_model, 3)
        tables = [shards.read_shard_and_footer(run, "samples", i)[0] for i in range(3)]
        assert all(table.schema.remove_metadata().equals(SAMPLES) for table in tables)
        return {row["question_id"]: row for table in tables for row in table.to_pylist()}, summary

    return call


def import_into(run: RunDirectory, file: Path, tiny_model: Path, questions_per_shard: int) -> ImportSummary:
    return import_samples(
        run,
        str(file),
        questions="questions/train.parquet",
        samples="samples",
        model=ModelConfig(path=str(tiny_model)),
        questions_per_shard=questions_per_shard,
    )


@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz", "file.parquet"])
def test_lines_in_any_order_fill_the_shards_in_question_order(bring: Any, name: str) -> None:
    rows, summary = bring([{"id": f"q{i}", "responses": [f"a{i}", f"b{i}"]} for i in (6, 0, 3, 1)], name)
    assert list(rows) == [f"q{i}" for i in range(7)]
    assert rows["q6"]["completions"] == ["a6", "b6"]
    assert rows["q6"]["finish_reasons"] == ["unknown", "unknown"]
    assert rows["q6"]["completion_tokens"] == [2, 2]  # the bundled tokenizer knows characters
    assert summary == ImportSummary(4, 0, 0, 4, 3, 8, 2, 2)


def test_question_without_completions_has_a_row_with_the_reason(bring: Any) -> None:
    rows, _ = bring([{"id": "q0", "responses": ["a"]}])
    assert rows["q5"]["completions"] == []
    assert rows["q5"]["shortfall"] == "file.jsonl has no completion of it"
    assert rows["q0"]["shortfall"] is None


def test_numbers_of_completions_may_differ_and_are_recorded(bring: Any) -> None:
    _, summary = bring([{"id": "q0", "responses": ["a"] * 5}, {"id": "q1", "responses": ["b"]}])
    assert (summary.samples, summary.fewest_samples, summary.most_samples) == (6, 1, 5)


def test_several_lines_of_one_question_are_put_together_in_file_order(bring: Any) -> None:
    rows, _ = bring([{"question_id": "q2", "completion": text} for text in ("first", "second", "third")])
    assert rows["q2"]["completions"] == ["first", "second", "third"]


def test_text_finds_the_question_whatever_its_id_case_and_spaces(bring: Any) -> None:
    rows, summary = bring([{"id": "q0", "question": " what is  4 MOD 4? ", "responses": ["x"]}])
    assert rows["q4"]["completions"] == ["x"]
    assert rows["q0"]["completions"] == []
    assert summary.unmatched_lines == 0


def test_an_import_warns_of_questions_without_completions_and_of_lines_without_question(
    bring: Any, log_lines: list[tuple[str, str]]
) -> None:
    bring([{"question": "What is love?", "responses": ["x"]}, {"id": "q1", "responses": ["y"]}])
    warnings = [message for level, message in log_lines if level == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].startswith("6 of 7 questions have no completion in ")
    assert warnings[1].startswith("1 of 2 lines of ")


def test_lines_of_other_questions_are_counted_not_kept(bring: Any) -> None:
    lines = [{"question": "What is love?", "id": "q1", "responses": ["x"]}, {"id": "q1", "responses": ["y"]}]
    rows, summary = bring(lines)
    assert summary.unmatched_lines == 1
    assert rows["q1"]["completions"] == ["y"]


def test_finish_reasons_are_kept_where_the_file_has_them(bring: Any) -> None:
    rows, _ = bring([{"id": "q0", "responses": ["a", "b", "c"], "finish_reasons": ["stop", "length", "abort"]}])
    assert rows["q0"]["finish_reasons"] == ["stop", "length", "unknown"]


def test_output_of_the_released_east_scripts_is_read(bring: Any) -> None:
    line = {"idx": 3, "question": "What is 1 mod 4?", "gt_cot": "#### 1", "gt": "1", "answer": "#### 1"}
    line |= {"code": ["So \\boxed{1}", "It is 2."], "pred": ["1", "2"], "report": [None, None], "score": [True, False]}
    rows, _ = bring([line])
    assert rows["q1"]["completions"] == ["So \\boxed{1}", "It is 2."]


def test_output_of_nemo_skills_is_read_with_the_thought_it_cut_away(bring: Any) -> None:
    line = {"problem": "What is 2 mod 4?", "expected_answer": "2", "id": "gsm8k-2", "num_generated_tokens": 4}
    thought = {"generation": "\\boxed{2}", "_generation_finished_thinking": True}
    rows, _ = bring(
        [line | {"generation": "It is 2."}, line | thought | {"_full_generation": "<think>2</think>\\boxed{2}"}]
    )
    assert rows["q2"]["completions"] == ["It is 2.", "<think>2</think>\\boxed{2}"]


@pytest.mark.parametrize("name", ["file.jsonl", "file.parquet"])
def test_rows_of_openr1_datasets_are_read(bring: Any, name: str) -> None:
    line = {"problem": "What is 3 mod 4?", "solution": "3", "answer": "3", "problem_type": "Algebra", "source": "x"}
    line |= {"uuid": "5ae1", "is_reasoning_complete": [True, False], "generations": ["<think>a</think>3", "<think>b"]}
    line |= {"correctness_math_verify": [True, False], "correctness_count": 1}
    rows, _ = bring([line | {"finish_reasons": None}, line | {"finish_reasons": ["stop", "length"]}], name)
    assert rows["q3"]["completions"] == ["<think>a</think>3", "<think>b"] * 2
    assert rows["q3"]["finish_reasons"] == ["unknown", "unknown", "stop", "length"]


def test_samples_of_lm_evaluation_harness_are_read_once_for_all_its_filters(bring: Any) -> None:
    lines = [
        {
            "doc_id": doc,
            "doc": {"question": f"What is {doc} mod 4?", "answer": f"#### {doc}"},
            "target": f"#### {doc}",
            "arguments": {"gen_args_0": {"arg_0": "Q: ...", "arg_1": {"until": ["Question:"]}}},
            "resps": [[f"It is {doc}.", "Or 5."]],
            "filtered_resps": [str(doc)],
            "filter": name,
            "exact_match": 1.0,
        }
        for name in ("strict-match", "flexible-extract")
        for doc in (0, 3)
    ]
    rows, summary = bring(lines)
    assert rows["q3"]["completions"] == ["It is 3.", "Or 5."]
    assert rows["q0"]["completions"] == ["It is 0.", "Or 5."]
    assert (summary.lines, summary.repeated_lines, summary.samples) == (4, 2, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"file.jsonl, line 2: not a JSON object"),
        ({"responses": ["a"]}, r"file.jsonl, line 2: names no question"),
        ({"id": "q0"}, r"file.jsonl, line 2: no completions among \['id'\]"),
        ({"id": "q0", "responses": [1, 2]}, r"file.jsonl, line 2: 'responses' must hold text"),
        ({"id": "q0", "responses": []}, r"file.jsonl, line 2: 'responses' must hold text, and at least one"),
        ({"id": "q0", "responses": ["a"], "finish_reasons": ["stop"] * 2}, r"line 2: 'finish_reasons' must be a list"),
    ],
)
def test_bad_line_is_named_with_file_and_number(bring: Any, line: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bring([{"id": "q1", "responses": ["a"]}, line])


def test_file_of_another_data_set_is_refused(bring: Any) -> None:
    with pytest.raises(UserError, match=r"none of its 1 lines names a question of"):
        bring([{"id": "math-7", "responses": ["a"]}])


def test_real_responses_are_brought_in_whole(shared_data: Path, tmp_path: Path, tiny_model: Path) -> None:
    file = shared_data / "responses" / "small_gsm8k_40q.jsonl"
    lines = {line["id"]: line for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    run = RunDirectory(str(tmp_path / "run"))
    questions = load_questions(str(shared_data / "datasets" / "gsm8k_test.jsonl"), QuestionsConfig(train="-"))
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    run.write_table(
        Prompts(tokenizer, QuestionsConfig(train="-", system_prompt=None)).render(questions),
        "questions",
        "train.parquet",
    )

    summary = import_into(run, file, tiny_model, 100)

    assert (summary.lines, summary.unmatched_lines, summary.questions) == (40, 0, 40)
    rows = [row for index in range(14) for row in shards.read_shard_and_footer(run, "samples", index)[0].to_pylist()]
    assert len(rows) == 1319
    for row in rows:
        line = lines.get(row["question_id"], {"responses": [], "gold": row["reference"]})
        assert row["completions"] == line["responses"]
        assert row["reference"] == line["gold"]
        # The bundled tokenizer's tokens are characters, and bytes where it does not know the character.
        assert all(
            0 < tokens <= len(text.encode())
            for tokens, text in zip(row["completion_tokens"], row["completions"], strict=True)
        )
