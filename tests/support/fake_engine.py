"""An engine without a model: completions follow from the seeds alone, and it fails where a test asks it to.

Its behaviour is set through sampling.engine_args:
  directory      where it leaves one file per engine it is opened as, named by process id, and `calls` of each
  meet           how many engines there must be before any of them works on a request
  delay_seconds  how long it works on a request
  refuse         question ids it refuses, as vLLM refuses a prompt that is too long
  die_on         question ids at which it kills its own process, as running out of memory would
  stop_on        question ids at which the engine stops working while its process lives on
  no_exchange    whether it cannot exchange its weights
  fail_start     message of the error with which it does not start
  fail_starts    how often it does not start on the node that tries first (as behind a process that still holds the GPU)
  largest_file_bytes   files beyond this size cannot be written by its process, as on a full disk
  shortest       whether completions are as short as can be
  symbolic       whether answers need the graders' symbolic processes, each answer a new one
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from east_ray.rollouts.engine import Completion, EngineDied, EngineSettings, ExchangeRefused, Refusal, Request, Result


class FakeEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._behaviour: dict[str, Any] = settings.sampling.engine_args
        if message := self._behaviour.get("fail_start"):
            raise ValueError(message)
        if self._is_to_fail():
            raise RuntimeError("CUDA out of memory")
        self._model = Path(settings.path).name
        if limit := self._behaviour.get("largest_file_bytes"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if directory := self._behaviour.get("directory"):
            Path(directory, f"engine-{os.getpid()}").touch()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        results = []
        while len(list(Path(self._behaviour.get("directory", "")).glob("engine-*"))) < self._behaviour.get("meet", 0):
            time.sleep(0.05)
        for request in requests:
            self._note(request.question_id)
            results.append(self._sample(request))
        return results

    def load(self, path: str) -> None:
        if self._behaviour.get("no_exchange"):
            self._model = "half of each"
            raise ExchangeRefused("the head keeps its old values")
        self._model = Path(path).name

    def close(self) -> None:
        pass

    def _sample(self, request: Request) -> Result:
        if request.question_id in self._behaviour.get("die_on", ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if request.question_id in self._behaviour.get("stop_on", ()):
            raise EngineDied("out of memory")
        if request.question_id in self._behaviour.get("refuse", ()):
            return Refusal("the prompt is too long")
        time.sleep(self._behaviour.get("delay_seconds", 0.0))
        if self._behaviour.get("shortest"):
            return [
                Completion(rf"\boxed{{{(request.seed + i) % 4}}}", "stop", 4, ids_of(4, request.seed + i))
                for i in range(request.num_samples)
            ]
        if self._behaviour.get("symbolic"):
            return [integral(request.seed + i) for i in range(request.num_samples)]
        return [completion(self._model, request.seed + i) for i in range(request.num_samples)]

    def _is_to_fail(self) -> bool:
        times, directory = self._behaviour.get("fail_starts", 0), self._behaviour.get("directory")
        if not times:
            return False
        import ray

        node, record = ray.get_runtime_context().get_node_id(), Path(directory, "failed")
        with record.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            failed = file.read().split()
            is_to_fail = len(failed) < times and node == (failed or [node])[0]
            if is_to_fail:
                file.write(node + "\n")
        return is_to_fail

    def _note(self, question_id: str) -> None:
        if directory := self._behaviour.get("directory"):
            with open(Path(directory, "sampled"), "a") as file:
                file.write(question_id + "\n")


class LastingFakeEngine(FakeEngine):
    """One that a host keeps for later pools of the same model; `lasts`: false when only a fresh one will do."""

    def adopt(self, settings: EngineSettings) -> bool:
        self._behaviour = settings.sampling.engine_args
        return self._behaviour.get("lasts", True)


def completion(model: str, seed: int) -> Completion:
    """What the fake model answers to one seed: a number from 0 to 3, now and then cut off, at some length."""
    chance = random.Random(f"{Path(model).name}/{seed}")
    answer, length = chance.randrange(4), chance.randrange(5, 40)
    if chance.random() < 0.1:
        return Completion("x" * length, "length", length, ids_of(length, seed))
    return Completion("x" * length + rf" \boxed{{{answer}}}", "stop", length, ids_of(length, seed))


def integral(seed: int) -> Completion:
    """An answer worth 0 or 2 that is written differently for each seed and cannot be read without computing."""
    bound, shift = 2 * (seed % 2), seed % 100_003
    return Completion(rf"\boxed{{{shift} - {shift} + \int_0^{{{bound}}} x\,dx}}", "stop", 30, ids_of(30, seed))


def ids_of(length: int, seed: int) -> tuple[int, ...]:
    """Token ids of one completion; not what a tokenizer would make of its text."""
    return (seed % 1009, *range(1, length))


class OtherLastingFakeEngine(LastingFakeEngine):
    """Another kind of engine."""
