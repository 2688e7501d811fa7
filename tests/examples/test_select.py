"""Training files from samples, grades and weights: the right texts, in TRL's formats, whatever the shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from east_ray.config.load import from_dict
from east_ray.config.sections import SelectionConfig, WeightingConfig
from east_ray.examples.export import export_dataset
from east_ray.examples.select import SelectionSummary, select
from east_ray.records import EXAMPLES, QUESTIONS, UserError
from east_ray.runs import shard_tasks
from east_ray.runs.directory import RunDirectory, jsonable
from east_ray.weighting.mappings import WeightMapping
from east_ray.weighting.weigh import weigh
from tests.support.graded import grades_row, samples_row, write_shards

MAPPINGS = [WeightMapping(exponent=0), WeightMapping(exponent=1)]
LOSSES = ["sft", "dpo", "kto"]
ANSWERS = {
    "mixed": ["gold", "7", None, "gold"],
    "wrong": ["7", "7"],
    "close": ["gold", "9", "9", "9", "8"],
    "easy": ["gold", "gold"],
    "many": ["gold", "gold", "gold", "1", "2"],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


def text_of(question_id: str, i: int, answer: str | None) -> str:
    return f"completion {i} of {question_id} says {answer}" + " so" * i


def fill(run: RunDirectory, per_shard: int = 2, keep: str = "mixed") -> None:
    """Questions, samples, grades and weights of ANSWERS."""
    questions = [
        {"question_id": name, "question": name, "reference": "gold", "level": None, "subject": None}
        | {"prompt": f"<{name}>", "prompt_token_ids": [1], "prompt_hash": "0" * 16}
        for name in ANSWERS
    ]
    run.write_table(pa.Table.from_pylist(questions, schema=QUESTIONS), "questions", "train.parquet")
    texts = {name: [text_of(name, i, a) for i, a in enumerate(answers)] for name, answers in ANSWERS.items()}
    write_shards(run, "samples", [samples_row(name, texts[name]) for name in ANSWERS], per_shard)
    write_shards(run, "grades", [grades_row(name, answers) for name, answers in ANSWERS.items()], per_shard)
    weigh(
        run,
        grades="grades",
        output="weights",
        mappings=MAPPINGS,
        selection=SelectionConfig(keep=keep),  # type: ignore[arg-type]
        weighting=WeightingConfig(),
    )


def selected(run: RunDirectory, **settings: Any) -> SelectionSummary:
    defaults: dict[str, Any] = {
        "questions": "questions/train.parquet",
        "samples": "samples",
        "grades": "grades",
        "weights": "weights",
        "output": "examples",
        "losses": LOSSES,
        "selection": SelectionConfig(),
        "seed": 0,
        "round_index": 0,
    }
    return select(run, **{**defaults, **settings})


def rows_of(run: RunDirectory, loss: str, directory: str = "examples") -> list[dict[str, Any]]:
    return run.read_table(directory, f"{loss}.parquet").to_pylist()


def test_rows_hold_the_prompt_a_correct_and_an_incorrect_completion_and_the_weights(run: RunDirectory) -> None:
    fill(run)
    summary = selected(run)
    weight = {row["question_id"]: row for row in run.read_table("weights").to_pylist()}
    assert [row["question_id"] for row in rows_of(run, "dpo")] == ["mixed", "close", "many"]  # in question order
    for row in rows_of(run, "dpo"):
        name = row["question_id"]
        texts = {text_of(name, i, answer): answer for i, answer in enumerate(ANSWERS[name])}
        assert row["prompt"] == f"<{name}>"
        assert texts[row["chosen"]] == "gold"
        assert texts[row["rejected"]] != "gold"
        for mapping in MAPPINGS:
            assert row[mapping.column] == weight[name][mapping.column]
    assert {loss: figures.rows for loss, figures in summary.losses.items()} == {"sft": 3, "dpo": 3, "kto": 6}


def test_the_three_losses_train_on_the_same_choice(run: RunDirectory) -> None:
    fill(run)
    selected(run)
    sft, dpo, kto = (rows_of(run, loss) for loss in LOSSES)
    assert [row["completion"] for row in sft] == [row["chosen"] for row in dpo]
    assert [row["completion"] for row in kto if row["label"]] == [row["chosen"] for row in dpo]
    assert [row["completion"] for row in kto if not row["label"]] == [row["rejected"] for row in dpo]


def test_files_have_trls_columns_and_one_column_per_mapping(run: RunDirectory) -> None:
    fill(run)
    selected(run)
    for loss in LOSSES:
        names = run.read_table("examples", f"{loss}.parquet").column_names
        assert names == [*EXAMPLES[loss].names, *(mapping.column for mapping in MAPPINGS)]


def test_every_row_holds_the_ids_that_were_sampled(run: RunDirectory) -> None:
    fill(run)
    ids: dict[str, list[int]] = {}
    for shard in run.list("samples"):
        table = run.read_table("samples", shard)
        for texts in table["completions"].to_pylist():
            ids |= {text: [len(ids) + i, 7, 2] for i, text in enumerate(texts)}
        column = pa.array([[ids[text] for text in texts] for texts in table["completions"].to_pylist()])
        kept = [name for name in table.column_names if name != "completion_ids"]
        run.write_table(table.select(kept).append_column("completion_ids", column), "samples", shard)
    selected(run)
    assert all(row["completion_ids"] == ids[row["completion"]] for loss in ("sft", "kto") for row in rows_of(run, loss))
    for row in rows_of(run, "dpo"):
        assert (row["chosen_ids"], row["rejected_ids"]) == (ids[row["chosen"]], ids[row["rejected"]])


def test_files_depend_neither_on_the_shards_nor_on_who_reads_them(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, per_shard, in_process in (("a", 1, 32), ("b", 5, 32), ("c", 2, 0)):
        monkeypatch.setattr(shard_tasks, "IN_PROCESS", in_process)
        run = RunDirectory(str(tmp_path / name))
        fill(run, per_shard)
        selected(run, selection=SelectionConfig(pairs_per_question=2))
    tables = [RunDirectory(str(tmp_path / name)).read_table("examples", "kto.parquet") for name in "abc"]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_the_summary_says_how_the_lengths_change_the_learning_rate(run: RunDirectory) -> None:
    fill(run)
    figures = selected(run).losses["sft"]
    rows = rows_of(run, "sft")
    tokens = [len(row["completion"].split()) for row in rows]
    weight = [row["weight_entropy_power_1"] for row in rows]
    expected = sum(w * t for w, t in zip(weight, tokens, strict=True)) / sum(tokens)
    assert figures.token_weight["weight_entropy_power_1"] == pytest.approx(expected)
    assert figures.mean_weight["weight_entropy_power_1"] == pytest.approx(1)
    assert figures.token_weight["weight_entropy_power_0"] == pytest.approx(1)


def test_solved_questions_give_sft_rows_and_are_counted_as_dropped_for_dpo(run: RunDirectory) -> None:
    fill(run, keep="solved")
    summary = selected(run, losses=["sft", "dpo"], selection=SelectionConfig(keep="solved"))
    assert [row["question_id"] for row in rows_of(run, "sft")] == ["mixed", "close", "easy", "many"]
    assert summary.losses["sft"].dropped == {}
    assert summary.losses["dpo"].dropped == {"no usable negative": 1}


def test_questions_with_fewer_pairs_than_asked_are_counted(run: RunDirectory) -> None:
    fill(run)
    summary = selected(run, selection=SelectionConfig(pairs_per_question=2))
    assert (summary.losses["sft"].rows, summary.losses["sft"].short) == (5, 1)  # "close" has one correct completion
    assert (summary.losses["kto"].rows, summary.losses["kto"].short) == (10, 1)


def test_earlier_rounds_rows_come_first_and_keep_their_weights(run: RunDirectory) -> None:
    fill(run)
    selected(run, output="round-00")
    selected(run, output="round-01", round_index=1, earlier=["round-00"])
    selected(run, output="round-02", round_index=2, earlier=["round-00", "round-01"])
    first, all_rows = rows_of(run, "sft", "round-00"), rows_of(run, "sft", "round-02")
    assert len(all_rows) == 9
    assert all_rows[:3] == first
    assert all_rows[:6] == rows_of(run, "sft", "round-01")


def test_directories_that_do_not_belong_together_are_refused(run: RunDirectory) -> None:
    fill(run)
    write_shards(run, "samples", [samples_row(f"other {i}", ["text"]) for i in range(5)], 2)
    with pytest.raises(AssertionError, match="different questions in samples, grades, weights"):
        selected(run)


def test_missing_weights_say_which_command_comes_first(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="east-ray weigh"):
        selected(run)


def finished(run: RunDirectory, parent: str, *, losses: list[str], t: int = 0, **origin: Any) -> None:
    """The same below `parent`, with the manifests that a run would leave there; `origin`: of the samples."""
    config = {"model": {"path": "some/model"}, "questions": {"train": "train.jsonl"}, "sampling": {"num_samples": 5}}
    if not run.exists("questions"):
        fill(run)
        run.write_json(from_dict(config, "test").model_dump(mode="json"), "config.json")
    for name in ("samples", "grades", "weights"):
        shutil.copytree(run.path(name), run.path(parent, name))
    names = {name: f"{parent}/{name}" for name in ("samples", "grades", "weights")}
    earlier = [f"round-{t - 1:02d}/examples"] if t else []
    summary = selected(run, **names, output=f"{parent}/examples", losses=losses, round_index=t, earlier=earlier)
    run.write_json({"facts": jsonable(summary)}, parent, "examples", "manifest.json")
    manifest = {"settings": {"round": t}, "inputs": {"questions": "x"}, **origin}
    run.write_json(manifest, parent, "samples", "manifest.json")


def test_exported_examples_load_as_a_dataset_and_the_card_says_how_they_were_made(
    run: RunDirectory, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    finished(run, "round-00", losses=LOSSES)
    target = export_dataset(run, "round-00", str(tmp_path / "dataset"))
    for loss in LOSSES:
        loaded = datasets.load_dataset(str(target), loss, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == rows_of(run, loss, "round-00/examples")
    card = (target / "README.md").read_text()
    assert "Drawn from completions of `some/model`, on the questions of `train.jsonl`: 5 completions" in card
    assert "up to 1 correct and as many incorrect completions" in card
    assert "| questions sampled | 5 |" in card
    assert "1 all correct; 1 all wrong" in card


def test_the_card_of_a_later_round_names_the_arm_that_sampled_and_what_came_before(
    run: RunDirectory, tmp_path: Path
) -> None:
    finished(run, "round-00", losses=["sft"])
    finished(run, "round-01/arms/east", losses=["sft"], t=1, inputs={"questions": "x", "model": "y"})
    card = (export_dataset(run, "round-01/arms/east", str(tmp_path / "dataset")) / "README.md").read_text()
    assert "completions of `some/model` after 1 round of training as arm `east`" in card
    assert "`sft` (6 rows, the first 3 from earlier rounds)" in card
    assert "up to 1 correct completions were drawn" in card  # SFT has no negatives


def test_the_card_of_imported_completions_names_their_file_and_no_sampling(run: RunDirectory, tmp_path: Path) -> None:
    finished(run, "round-00", losses=["dpo"], settings={"imported": "answers.jsonl"})
    card = (export_dataset(run, "round-00", str(tmp_path / "dataset")) / "README.md").read_text()
    assert "Drawn from completions imported from `answers.jsonl`, on the questions of `train.jsonl`. Each" in card
    assert "temperature" not in card


def test_an_export_never_overwrites_and_says_what_is_missing(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="east-ray select"):
        export_dataset(run, "round-00", str(tmp_path / "dataset"))
    finished(run, "round-00", losses=["sft"])
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.txt").write_text("precious")
    for target in ("dataset", "dataset/mine.txt"):
        with pytest.raises(UserError, match="is not an empty directory"):
            export_dataset(run, "round-00", str(tmp_path / target))
