"""The pools' actors: a Sampler turns shards of questions into files of completions, a GradingWorker turns those into
files of grades. Only counts travel between them; completions go from disk to disk.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from east_ray.config.sections import GradingConfig, ModelConfig, SamplingConfig
from east_ray.models import local_model
from east_ray.records import Unavailable, UserError
from east_ray.rollouts import shards
from east_ray.rollouts.engine import (
    Engine,
    EngineDied,
    EngineSettings,
    ExchangeRefused,
    OpenEngine,
    Refusal,
    Request,
    Result,
    explain_failure,
    is_setting_at_fault,
    question_seed,
)
from east_ray.rollouts.kept_engine import KeptEngine
from east_ray.rollouts.sample_shard import sample_shard
from east_ray.runs.directory import RunDirectory

SHARED_ATTEMPTS = 2  # after so many engine deaths a shard is sampled one question at a time, alone in the engine
# What a row's `problem` says: its run cannot go on; its engine could not go to its model; no engine could be started.
FATAL, REFUSED, NO_ENGINE = "fatal", "refused", "no engine"
DEATHS_PER_QUESTION = 2  # after so many engine deaths a question that was alone in the engine is given up


@dataclass(frozen=True)
class RolloutJob:
    """One model on one questions file. `samples` and `grades` are directories, like `questions` inside the run."""

    model: str
    questions: str
    samples: str
    grades: str


@dataclass(frozen=True)
class RolloutSpec:
    """Settings of one call for all its samplers."""

    run: RunDirectory
    jobs: Sequence[RolloutJob]
    model: ModelConfig
    sampling: SamplingConfig
    seed: int
    round_index: int
    open_engine: OpenEngine
    hosts: Sequence[Any] = ()  # of the engines that outlive their pool


class Sampler:
    """One engine of the pool. Several calls at a time share its batch, so that it does not drain between shards."""

    def __init__(self, spec: RolloutSpec, attempts: Any, job: int) -> None:
        """`attempts` is an `Attempts`. The engine opens the model that is being sampled from; at first, that of `job`."""
        import ray
        from ray.util.metrics import Counter

        exit_without_cpp_handlers()
        self._spec, self._attempts = spec, attempts
        self._lock, self._loading = ModelLock(), threading.Lock()
        self._problem: dict[str, str] = {}
        self._questions: dict[str, shards.QuestionsFile] = {}
        self._tokens = Counter("east_ray_sampled_tokens", "Tokens sampled.")
        self._samples = Counter("east_ray_samples", "Completions sampled.", tag_keys=("finish_reason",))
        here = ray.get_runtime_context()
        self._engine_id, self._node = str(here.get_actor_id()), here.get_node_id()
        current: Any = ray.get(attempts.current_job.remote())
        self._loaded = spec.jobs[job if current is None else current].model
        self._exchanged, self._refused = False, ""
        self._engine: Engine | None = None
        try:
            self._engine = self._open()
            attempts.started.remote(self._engine_id)
        except Exception as error:
            reason = explain_failure(error, self._loaded, spec.sampling)
            if is_setting_at_fault(error, spec.sampling):
                self._problem = {"problem": FATAL, "reason": reason}
                return
            wait: Any = ray.get(attempts.start_failed.remote(self._engine_id, self._node, reason))
            if wait is not None:
                time.sleep(wait)
                os._exit(1)  # Ray starts the actor again, here or on another node
            self._problem = {"problem": NO_ENGINE, "reason": reason}

    def _open(self) -> Engine:
        import ray

        spec, path = self._spec, local_model(self._loaded, self._spec.model.revision)
        slot: Any = ray.get(self._attempts.slot.remote(self._engine_id)) if spec.hosts else 0
        asked = {job.questions for job in spec.jobs}
        if slot < len(spec.hosts):  # so that it has room for those of later pools
            asked |= {f"questions/{name}" for name in spec.run.list("questions", suffix=".parquet")}
        longest = max(shards.longest_prompt(spec.run, questions) for questions in asked)
        settings = EngineSettings(path, spec.model, spec.sampling, longest)
        if slot >= len(spec.hosts):
            return spec.open_engine(settings)
        engine = KeptEngine(spec.hosts[slot], settings, spec.open_engine)
        if engine.path != path:
            self._loaded = engine.path  # until a shard wants another
        self._exchanged = engine.is_exchanged
        return engine

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Sample one shard unless it already is. What keeps it from that comes back in `problem` and `reason`."""
        import ray

        if self._problem or not row["samples"]:
            return {**row, **self._problem}
        try:
            return {**row, **self._sample(int(row["job"]), int(row["shard"]), row["begun"])}
        except EngineDied:
            os._exit(1)  # Ray restarts the actor, which opens a new engine, and sends the shard again
        except Unavailable:  # the new engine waits for it
            ray.get(self._attempts.leave.remote(self._engine_id))
            os._exit(1)
        except ExchangeRefused as error:
            return {**row, "problem": REFUSED, "reason": str(error)}
        except UserError as error:
            return {**row, "problem": FATAL, "reason": str(error)}

    def __del__(self) -> None:
        if self._engine is not None:
            with suppress(Exception):
                self._engine.close()

    def _sample(self, job_index: int, index: int, begun: bool) -> dict[str, float]:
        """Write one shard of completions; return how many were drawn for it, and when."""
        import ray

        assert self._engine is not None
        spec, job = self._spec, self._spec.jobs[job_index]
        deaths, deaths_of_question = ray.get(self._attempts.begin.remote(job_index, index, self._engine_id, self._node))
        isolate_questions = deaths >= SHARED_ATTEMPTS
        with self._lock.enter((job.model, index if isolate_questions else None)):
            self._load(job.model)
            began = time.time()
            if job.questions not in self._questions:
                self._questions[job.questions] = shards.QuestionsFile(spec.run, job.questions)
            questions = self._questions[job.questions].shard(index, spec.sampling.questions_per_shard)
            before, old = shards.read_shard_and_footer(spec.run, job.samples, index) if begun else (None, None)
            generate = self._engine.generate
            if isolate_questions:
                report = self._attempts.alone.remote
                generate = one_at_a_time(generate, deaths_of_question, lambda q: ray.get(report(job_index, index, q)))
            table = sample_shard(
                questions,
                before,
                num_samples=spec.sampling.num_samples,
                seed_of=lambda question_id: question_seed(spec.seed, spec.round_index, question_id),
                generate=generate,
            )
            weights = "exchanged" if self._exchanged else "loaded"
            footer = shards.write_samples(
                spec.run,
                table,
                job.samples,
                index,
                spec.sampling.num_samples,
                weights,
                questions_per_shard=spec.sampling.questions_per_shard,
            )
        self._attempts.finish.remote(job_index, index)
        samples, tokens, truncated = (
            footer[name] - (old[name] if old else 0) for name in ("samples", "tokens", "truncated")
        )
        if tokens:
            self._tokens.inc(tokens)
        for reason, count in (("stop", samples - truncated), ("length", truncated)):
            if count:
                self._samples.inc(count, {"finish_reason": reason})
        drawn = {"sampled": samples, "tokens": tokens, "truncated": truncated}
        return {"failed": footer["failed"], **drawn, "began": began, "ended": time.time()}

    def _load(self, model: str) -> None:
        with self._loading:  # by the first of the calls that want this model; the others wait here
            if self._refused:  # the engine's weights are a mixture now
                raise ExchangeRefused(self._refused)
            if model == self._loaded:
                return
            assert self._engine is not None
            try:
                self._engine.load(local_model(model, self._spec.model.revision))
            except ExchangeRefused as error:
                self._refused = str(error)
                raise
            self._loaded, self._exchanged = model, True


class GradingWorker:
    """Grades shards of completions one at a time, in its own sandbox."""

    def __init__(self, run: RunDirectory, jobs: Sequence[RolloutJob], grading: GradingConfig) -> None:
        from ray.util.metrics import Counter

        from east_ray.answers.grading import Grader

        exit_without_cpp_handlers()
        self._run, self._jobs = run, jobs
        self._verdicts = Counter("east_ray_verdicts", "Completions graded.", tag_keys=("verdict",))
        self._grader = Grader(grading).__enter__()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from east_ray.answers.grading import grade_table

        if row["problem"]:
            return {**row, "questions": 0, "graded": 0, "correct": 0}
        job, index = self._jobs[row["job"]], int(row["shard"])
        try:
            samples, footer = shards.read_shard_and_footer(self._run, job.samples, index)
            grades = grade_table(samples, self._grader)
            counts = shards.write_grades(self._run, grades, job.grades, index, footer)
        except UserError as error:
            return {**row, "problem": FATAL, "reason": str(error), "questions": 0, "graded": 0, "correct": 0}
        for verdict in ("correct", "incorrect", "errors"):
            if counts[verdict]:
                self._verdicts.inc(counts[verdict], {"verdict": verdict})
        return {**row, "questions": footer["questions"], "graded": footer["samples"], "correct": counts["correct"]}

    def __del__(self) -> None:
        with suppress(Exception):
            self._grader.__exit__(None, None, None)


def exit_without_cpp_handlers() -> None:
    """End this actor's process as soon as Python has exited, without C++ exit handlers.

    Ray 2.60's handlers can deadlock (~CoreWorkerProcessImpl posts to an event loop that no longer exists: one worker in
    about fifty stayed behind), and the process would keep the GPU that training needs.
    """
    atexit.register(os._exit, 0)


class ModelLock:
    """Admits calls with equal keys together; a call with another key waits until they have left."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._key: Any = None

    @contextmanager
    def enter(self, key: Any) -> Iterator[None]:
        """Wait for admission, and hold it until the block ends."""
        with self._condition:
            self._condition.wait_for(lambda: self._inside == 0 or self._key == key)
            self._key, self._inside = key, self._inside + 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()


def one_at_a_time(
    generate: Callable[[Sequence[Request]], list[Result]], deaths: Mapping[str, int], report: Callable[[str], None]
) -> Callable[[Sequence[Request]], list[Result]]:
    """`generate` with one question at a time, each reported before, and without those that engines died of when alone."""

    def one_by_one(requests: Sequence[Request]) -> list[Result]:
        results: list[Result] = []
        for request in requests:
            if (died := deaths.get(request.question_id, 0)) >= DEATHS_PER_QUESTION:
                results.append(Refusal(f"the engine died {died} times while sampling this question alone"))
                continue
            report(request.question_id)
            results += generate([request])
        return results

    return one_by_one
