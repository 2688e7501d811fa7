"""vLLM behind three methods: several callers share one engine, which keeps its batch full. The only file that imports vllm.

One thread steps vLLM's engine. On the CPU the engine's core runs in this process; on GPUs it runs in a process of its own,
so that Python never keeps the GPU waiting. Neither drains between two shards.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from east_ray.config.sections import SamplingConfig
from east_ray.rollouts.decoding import decode_completions
from east_ray.rollouts.engine import (
    Completion,
    EngineDied,
    EngineSettings,
    ExchangeRefused,
    Refusal,
    Request,
    Result,
    one_line,
)
from east_ray.rollouts.exchange import WeightExchange, check_exchange

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Command = Callable[["LLMEngine", Future[Any]], None]

WATCH_SECONDS = 0.5
PROBE_TOKENS = 64  # whose log-probabilities show whether an exchange of weights worked
GPU_MEMORY_SHARE = 0.92  # vLLM's own default, for an engine that has a GPU to itself
# The n samples of a question share their prompt's blocks, but only whole ones: vLLM's 128 tokens on the CPU are longer
# than most prompts. A step costs Python's time per sequence and per step, so more sequences share the latter.
CPU_BLOCK_TOKENS = 32
CPU_SEQUENCES = 1024


class VllmEngine:
    """vLLM's engine, stepped by a thread of its own while any request is unfinished.

    Whatever vLLM raises when it cannot start comes through; `explain_failure` puts it into words. `own_process`: run the
    engine's core in a process of its own, as on GPUs by default.
    """

    def __init__(self, settings: EngineSettings, *, own_process: bool | None = None) -> None:
        self._own_process = settings.sampling.gpus_per_engine > 0 if own_process is None else own_process
        # vLLM otherwise binds its threads to the first cores it may use: the same ones in every engine of a machine.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # Without a process of its own an engine starts four times faster, and on the CPU nothing is gained by one.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(self._own_process))
        if settings.sampling.gpus_per_engine == 0 and settings.sampling.engine_args.get("enforce_eager", True):
            # An eager engine compiles one thing: ranks of log-probabilities, which an exchange's check would wait seconds for.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        self._settings, self._sampling = settings, settings.sampling
        self._inbox: queue.SimpleQueue[tuple[Command, Future[Any]] | None] = queue.SimpleQueue()
        self._unanswered: set[Future[Any]] = set()
        self._sampled: dict[str, Future[Any]] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._died: EngineDied | None = None
        self._tokenizer: Any = None
        ready: Future[None] = Future()
        # The engine is built by the thread that steps it: OpenMP's thread count belongs to the thread that set it.
        self._thread = threading.Thread(target=self._run, args=(settings, ready), name="vllm", daemon=True)
        self._thread.start()
        ready.result()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        futures = [self._ask(self._adding(request)) for request in requests]
        # Each question is decoded while the next ones are sampled.
        return [self._completions(request, future.result()) for request, future in zip(requests, futures, strict=True)]

    def _completions(self, request: Request, result: Any) -> list[Completion] | Refusal:
        if isinstance(result, Refusal):
            return result
        outputs = result.outputs
        texts = [o.text for o in outputs]
        if self._tokenizer is not None:
            texts = decode_completions(
                self._tokenizer,
                request.prompt_token_ids,
                # As in vLLM, the token that ended a completion is no part of its text.
                [o.token_ids[:-1] if o.finish_reason == "stop" else o.token_ids for o in outputs],
            )
        return [
            Completion(text, o.finish_reason or "unknown", len(o.token_ids), tuple(o.token_ids))
            for text, o in zip(texts, outputs, strict=True)
        ]

    def load(self, path: str) -> None:
        mirrored, stale = self._exchange(path, mirrored=True)
        loaded, stale_too = self._exchange(path, mirrored=False)
        check_exchange(mirrored, loaded, stale + stale_too)

    def _exchange(self, path: str, mirrored: bool) -> tuple[list[float], list[str]]:
        """Load a model or its mirror image; the log-probabilities it then gives to a fixed sequence, and what is stale."""

        def exchange(engine: LLMEngine, future: Future[Any]) -> None:
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                stale = engine.collective_rpc("exchange_weights", args=(path, mirrored))
                engine.reset_prefix_cache()
                future.set_result([name for names in stale for name in names])
            except EngineDeadError:
                raise
            except Exception as error:  # whatever a model's weight loader raises
                future.set_exception(ExchangeRefused(one_line(error)))

        def probe(engine: LLMEngine, future: Future[Any]) -> None:
            config = engine.model_config
            tokens = random.Random(0).choices(
                range(config.get_vocab_size()), k=min(PROBE_TOKENS, config.max_model_len - 1)
            )
            request_id = str(next(self._ids))
            engine.add_request(request_id, *_as_input(engine, tokens, max_tokens=1, temperature=0, prompt_logprobs=0))
            self._sampled[request_id] = future

        stale = self._ask(exchange).result()
        output = self._ask(probe).result()
        scored = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [at[token].logprob for token, at in scored], stale

    def adopt(self, settings: EngineSettings) -> bool:
        """Sample by these settings from now on; False when that takes a fresh engine. No other call may be in progress."""
        held, length = self._settings, settings.longest_prompt + settings.sampling.max_new_tokens
        same = settings.model == held.model and _fixed_args(settings) == _fixed_args(held)
        if not same or length > held.longest_prompt + held.sampling.max_new_tokens:
            return False
        self._sampling = settings.sampling

        def forget(engine: LLMEngine, future: Future[Any]) -> None:
            future.set_result(engine.reset_prefix_cache())

        return self._ask(forget).result()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _ask(self, command: Command) -> Future[Any]:
        """Have the stepping thread run a command. The future fails with EngineDied when the engine dies before that."""
        future: Future[Any] = Future()
        with self._lock:
            if self._died:
                raise self._died
            self._unanswered.add(future)
        future.add_done_callback(self._unanswered.discard)
        self._inbox.put((command, future))
        return future

    def _adding(self, request: Request) -> Command:
        def add(engine: LLMEngine, future: Future[Any]) -> None:
            from vllm.exceptions import VLLMValidationError

            request_id = str(next(self._ids))
            try:
                params = _sampling_args(request, self._sampling) | {"detokenize": self._tokenizer is None}
                engine.add_request(request_id, *_as_input(engine, request.prompt_token_ids, **params))
                self._sampled[request_id] = future
            except (VLLMValidationError, ValueError) as error:
                future.set_result(Refusal(one_line(error)))

        return add

    def _open(self, settings: EngineSettings) -> LLMEngine:
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        torch.set_num_threads(max(1, int(self._sampling.cpus_per_engine)))
        args = EngineArgs(**engine_args(settings, EngineArgs))
        with starts_alone(self._sampling):
            engine = LLMEngine.from_engine_args(args, UsageContext.LLM_CLASS, enable_multiprocessing=self._own_process)
        # vLLM decodes token by token, for streams; only tokenizers that are no `tokenizers` ones are left to it.
        self._tokenizer = getattr(engine.renderer.tokenizer, "_tokenizer", None)
        return engine

    def _run(self, settings: EngineSettings, ready: Future[None]) -> None:
        try:
            engine = self._open(settings)
        except BaseException as error:
            ready.set_exception(error)
            return
        if self._own_process:
            threading.Thread(target=self._watch, args=(engine.engine_core,), name="vllm watch", daemon=True).start()
        ready.set_result(None)
        try:
            while self._serve_inbox(engine):
                for output in engine.step():
                    if output.finished:
                        self._sampled.pop(output.request_id).set_result(output)
            reason = "it was closed"
        except BaseException as error:
            reason = one_line(error)
        self._fail(reason)
        engine.engine_core.shutdown()

    def _serve_inbox(self, engine: LLMEngine) -> bool:
        """Run the commands that callers sent; wait for one when there is nothing to step. False: close."""
        while True:
            try:
                asked = self._inbox.get(block=not engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if asked is None:
                return False
            command, future = asked
            command(engine, future)

    def _watch(self, core: Any) -> None:
        """Answer every caller when the core's process has died: vLLM 0.32's step then waits for its output forever."""
        while not self._died and not core.resources.engine_dead:
            time.sleep(WATCH_SECONDS)
        self._fail("its process died")

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._died = self._died or EngineDied(reason)
            unanswered = list(self._unanswered)
        for future in unanswered:
            with suppress(InvalidStateError):  # answered meanwhile
                future.set_exception(self._died)


def engine_args(settings: EngineSettings, args_class: Any) -> dict[str, Any]:
    """vLLM's engine arguments; `sampling.engine_args` overrides them."""
    args = {"model": settings.path} | _fixed_args(settings)
    if "max_model_len" not in args:
        # No longer than needed, so that the KV cache of a model with a long context fits; vLLM reads the model's limit.
        limit = args_class(**args).create_model_config().max_model_len
        args["max_model_len"] = min(limit, settings.longest_prompt + settings.sampling.max_new_tokens)
    return args


def _fixed_args(settings: EngineSettings) -> dict[str, Any]:
    """Those that follow from neither the model nor the lengths."""
    sampling = settings.sampling
    args: dict[str, Any] = {
        "dtype": settings.model.dtype,
        "trust_remote_code": settings.model.trust_remote_code,
        "tensor_parallel_size": sampling.tensor_parallel_size,
        "pipeline_parallel_size": sampling.pipeline_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "worker_extension_cls": f"{WeightExchange.__module__}.{WeightExchange.__name__}",
    }
    if sampling.gpus_per_engine > 0:
        if sampling.tensor_parallel_size * sampling.pipeline_parallel_size > 1:
            args["distributed_executor_backend"] = "mp"
        if sampling.gpus_per_engine < 1:
            args["gpu_memory_utilization"] = round(GPU_MEMORY_SHARE * sampling.gpus_per_engine, 3)
    else:
        args["enforce_eager"] = True
        # A seeded request whose prefill is split kills the CPU engine ("CPU Generator does not use offset").
        args["enable_chunked_prefill"] = False
        args["kv_cache_memory_bytes"] = int(sampling.kv_cache_gib * (1 << 30))
        args["block_size"] = CPU_BLOCK_TOKENS
        args["max_num_seqs"] = CPU_SEQUENCES
    return args | sampling.engine_args


def _as_input(engine: LLMEngine, prompt_token_ids: Sequence[int], **params: Any) -> tuple[Any, Any]:
    """Arguments of vLLM's `add_request`: the prompt in rendered form, and the sampling parameters."""
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    prompt = TokensPrompt(prompt_token_ids=list(prompt_token_ids))
    (rendered,) = engine.renderer.render_cmpl([prompt])
    return rendered, SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)


def _sampling_args(request: Request, sampling: SamplingConfig) -> dict[str, Any]:
    return {
        "n": request.num_samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": request.seed if sampling.temperature > 0 else None,
    }


@contextmanager
def starts_alone(sampling: SamplingConfig) -> Iterator[IO[str] | None]:
    """Let engines that share a GPU start one after the other: each measures how much memory its own start takes."""
    if not 0 < sampling.gpus_per_engine < 1:
        yield None
        return
    name = f"east-ray-{os.getuid()}-gpu-{os.environ.get('CUDA_VISIBLE_DEVICES', '')}.lock"
    with Path(tempfile.gettempdir(), name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
