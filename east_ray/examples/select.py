"""Training files from the kept questions: one Parquet file per loss, in TRL's columns, plus every mapping's weight.

    examples/sft.parquet  examples/dpo.parquet  examples/kto.parquet      records.EXAMPLES[loss] + one float64 column per mapping

Completions are read one shard at a time, by Ray Data tasks where there are many; only the chosen rows are kept, and
written in question order as they arrive.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from east_ray.config.sections import SelectionConfig
from east_ray.examples.choice import choose, training_rows
from east_ray.records import EXAMPLES, UserError, check_schema
from east_ray.runs.directory import RunDirectory
from east_ray.runs.shard_tasks import map_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossSummary:
    """Rows written for one loss, without the earlier rounds' rows that come first."""

    rows: int
    questions: int
    dropped: dict[str, int]  # reason -> kept questions without a row: this loss needs a negative and they have none
    short: int  # questions with fewer rows than pairs_per_question asked for
    mean_weight: dict[str, float]  # of a row, per mapping; 1 when every kept question has as many rows
    token_weight: dict[str, float]  # SFT: of a completion token; a token-mean loss multiplies the learning rate by it


@dataclass(frozen=True)
class SelectionSummary:
    """The questions that weighing kept, and what each loss got of them."""

    questions: int
    losses: dict[str, LossSummary]


def select(
    run: RunDirectory,
    *,
    questions: str,
    samples: str,
    grades: str,
    weights: str,
    output: str,
    losses: Sequence[str],
    selection: SelectionConfig,
    seed: int,
    round_index: int,
    earlier: Sequence[str] = (),
) -> SelectionSummary:
    """Write `output`/{loss}.parquet for each loss. `questions` is a Parquet file, the rest are directories of the run.

    The last of `earlier` is the examples directory of the round before, whose rows (which hold its predecessors') come
    first. UserError when there are no weights yet, or when a loss is left without any row.
    """
    shards = run.list(weights, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(weights)} holds no weights; run `east-ray weigh CONFIG` first")
    columns = [name for name in run.read_table(weights, shards[0]).column_names if name.startswith("weight_")]
    pick = partial(
        _select_shard,
        run=run,
        directories=(samples, grades, weights),
        prompts=run.read_table(questions, columns=["question_id", "prompt"]),
        losses=tuple(losses),
        columns=columns,
        selection=selection,
        seed=seed,
        round_index=round_index,
    )
    kept = run.read_json(weights, "weights.json")["funnel"]["questions"]["kept"]
    tallies = {loss: _Tally(columns) for loss in losses}
    with ExitStack() as stack:
        writers = {loss: _open_writer(run, stack, output, loss, columns) for loss in losses}
        for loss, writer in writers.items():
            for batch in _earlier_rows(run, earlier, loss, writer.schema):
                writer.write_batch(batch)
        for chosen in map_shards(pick, shards):
            for loss, writer in writers.items():
                rows = chosen.filter(pa.array(chosen["loss"].to_numpy() == loss))
                tallies[loss].add(rows)
                writer.write_table(rows.select(writer.schema.names).cast(writer.schema))
    pairs = selection.pairs_per_question
    wanted_rows = {loss: pairs * (2 if loss == "kto" else 1) for loss in losses}
    summary = SelectionSummary(kept, {loss: tallies[loss].figures(kept, wanted_rows[loss]) for loss in losses})
    for loss, figures in summary.losses.items():
        if not figures.rows:
            raise UserError(
                f"loss = {loss} needs incorrect completions, and none of the {kept} kept questions has one that can be used; set training.loss=sft"
            )
        logger.info("select: %d %s rows from %d of %d questions", figures.rows, loss, figures.questions, kept)
    return summary


def _open_writer(
    run: RunDirectory, stack: ExitStack, output: str, loss: str, columns: Sequence[str]
) -> pq.ParquetWriter:
    """A file that counts once the artifact's manifest exists."""
    schema = pa.schema([*EXAMPLES[loss], *(pa.field(name, pa.float64()) for name in columns)])
    run.filesystem.create_dir(run.path(output), recursive=True)
    sink = stack.enter_context(run.filesystem.open_output_stream(run.path(output, f"{loss}.parquet")))
    return stack.enter_context(pq.ParquetWriter(sink, schema, compression="zstd"))


def _earlier_rows(run: RunDirectory, earlier: Sequence[str], loss: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for directory in earlier[-1:]:
        with run.filesystem.open_input_file(run.path(directory, f"{loss}.parquet")) as source:
            for batch in pq.ParquetFile(source).iter_batches():
                yield from check_schema(pa.table(batch), schema, run.uri_of(directory)).to_batches()


def _select_shard(
    shard: str,
    run: RunDirectory,
    directories: tuple[str, str, str],
    prompts: pa.Table,
    losses: Sequence[str],
    columns: Sequence[str],
    selection: SelectionConfig,
    seed: int,
    round_index: int,
) -> pa.Table:
    """The training rows, of all losses, of one shard."""
    read = [run.read_table(directory, shard) for directory in directories]
    same = all(table["question_id"].equals(read[0]["question_id"]) for table in read)
    assert same, f"{shard} holds different questions in {', '.join(directories)}"
    kept = read[2]["reason"].is_null()
    samples, grades, weights = (table.filter(kept) for table in read)
    sampled_ids = samples["completion_ids"] if "completion_ids" in samples.column_names else None  # not in older runs
    positions = pc.index_in(samples["question_id"], value_set=prompts["question_id"])  # type: ignore[attr-defined]
    assert not positions.null_count, f"{directories[0]}/{shard} holds questions that the run's questions lack"
    prompt_of = prompts["prompt"].take(positions).to_pylist()

    rows: list[dict[str, Any]] = []
    weight_columns = weights.select(["question_id", *columns]).to_pylist()
    for i, (grade, weight) in enumerate(zip(grades.to_pylist(), weight_columns, strict=True)):
        completions, tokens = samples["completions"][i].as_py(), samples["completion_tokens"][i].as_py()
        choice = choose(
            grade,
            completions,
            negative=selection.negative,
            truncated_negatives=selection.truncated_negatives,
            pairs=selection.pairs_per_question,
            seed=seed,
            round_index=round_index,
        )
        ids = sampled_ids[i].as_py() if sampled_ids is not None else None
        for loss in losses:
            own = training_rows(loss, prompt_of[i], completions, choice, ids, grade["truncated"])
            for k, row in enumerate(own):
                length = tokens[choice.positives[k]] if loss == "sft" else 0
                rows.append({**weight, **row, "loss": loss, "tokens": length, "number": k, "of": len(own)})
    return pa.Table.from_pylist(rows, schema=_all_columns(columns))


def _all_columns(columns: Sequence[str]) -> pa.Schema:
    """Rows of every loss in one table: the loss, the SFT completion's tokens, the row's number among its question's."""
    own = [pa.field("loss", pa.string()), *(pa.field(name, pa.int64()) for name in ("tokens", "number", "of"))]
    fields = {field.name: field for schema in EXAMPLES.values() for field in schema}
    return pa.schema([*own, *fields.values(), *(pa.field(name, pa.float64()) for name in columns)])


class _Tally:
    """Running totals of what was written for one loss."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.rows = self.tokens = self.questions = 0
        self.rows_of_question: Counter[int] = Counter()
        self.weight = dict.fromkeys(columns, 0.0)
        self.weighted_tokens = dict.fromkeys(columns, 0.0)

    def add(self, rows: pa.Table) -> None:
        tokens, first = rows["tokens"].to_numpy(), rows["number"].to_numpy() == 0
        self.rows += len(rows)
        self.tokens += int(tokens.sum())
        self.questions += int(first.sum())
        self.rows_of_question.update(rows["of"].to_numpy()[first].tolist())
        for name in self.weight:
            weight = rows[name].to_numpy()
            self.weight[name] += float(weight.sum())
            self.weighted_tokens[name] += float(weight @ tokens)

    def figures(self, kept: int, wanted_rows: int) -> LossSummary:
        return LossSummary(
            rows=self.rows,
            questions=self.questions,
            dropped={"no usable negative": kept - self.questions} if kept > self.questions else {},
            short=sum(count for rows, count in self.rows_of_question.items() if rows < wanted_rows),
            mean_weight={name: total / max(self.rows, 1) for name, total in self.weight.items()},
            token_weight={name: total / self.tokens for name, total in self.weighted_tokens.items() if self.tokens},
        )
