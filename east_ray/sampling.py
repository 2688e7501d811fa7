"""vLLM behind three methods: several callers hand in questions at once, one engine keeps its batch full. The only file
that imports vllm.

On the CPU the engine lives in this process and one thread steps it; on GPUs it is vLLM's asynchronous engine, whose
core runs in a process of its own so that Python never keeps the GPU waiting. Neither drains between two shards.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from east_ray.config import ModelConfig, SamplingConfig
from east_ray.records import UserError

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

DEFAULT_CPU_KV_CACHE_GIB = 4.0


@dataclass(frozen=True)
class Request:
    """One question. Sample j of the request is drawn with seed + j."""

    question_id: str
    prompt_token_ids: Sequence[int]
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str  # "stop" or "length"
    num_tokens: int


@dataclass(frozen=True)
class Refusal:
    """Why the engine would not sample a request: its prompt is too long, empty or not in the vocabulary."""

    reason: str


Result = list[Completion] | Refusal


class EngineDied(RuntimeError):
    """The engine stopped working; only a new one can go on."""


class Engine(Protocol):
    def generate(self, requests: Sequence[Request], finished: Callable[[Result], None]) -> list[Result]:
        """Sample every request; several threads may call at once. `finished` hears of each as it leaves the engine."""
        ...

    def load(self, model: str) -> None:
        """Sample from another model of the same shape, or adapter, from now on. The engine must be idle."""
        ...

    def close(self) -> None: ...


OpenEngine = Callable[[str, ModelConfig, SamplingConfig, int], Engine]


def question_seed(seed: int, round_index: int, question_id: str) -> int:
    """Where this question's seeds begin; sample i is drawn with this + i, whatever else is sampled beside it.

    62 bits of a hash, because vLLM gives the n samples of a request consecutive seeds: questions must lie far apart.
    """
    data = f"{seed}\0{round_index}\0{question_id}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 2


def open_engine(model: str, settings: ModelConfig, sampling: SamplingConfig, longest_prompt: int) -> Engine:
    """Start vLLM on `model`, with room for prompts of `longest_prompt` tokens. Whatever vLLM raises comes through."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if sampling.gpus_per_engine > 0:
        return AsyncEngine(model, settings, sampling, longest_prompt)
    # In-process: starts four times faster than with an engine process, and nothing is gained by one on the CPU.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # vLLM otherwise binds its threads to the first cores it may use: the same ones in every engine of a machine.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return InProcessEngine(model, settings, sampling, longest_prompt)


def engine_args(model: str, settings: ModelConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """vLLM's engine arguments; `sampling.engine_args` has the last word."""
    args: dict[str, Any] = {
        "model": model,
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
        "tensor_parallel_size": sampling.tensor_parallel_size,
        "pipeline_parallel_size": sampling.pipeline_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if settings.revision and not os.path.isdir(model):
        args["revision"] = args["tokenizer_revision"] = settings.revision
    if sampling.gpus_per_engine > 0:
        if sampling.tensor_parallel_size * sampling.pipeline_parallel_size > 1:
            args["distributed_executor_backend"] = "mp"
    else:
        args["enforce_eager"] = True
        # A seeded request whose prefill is split kills the CPU engine ("CPU Generator does not use offset").
        args["enable_chunked_prefill"] = False
        args["kv_cache_memory_bytes"] = int((sampling.kv_cache_gib or DEFAULT_CPU_KV_CACHE_GIB) * (1 << 30))
    return {**args, **sampling.engine_args}


class InProcessEngine:
    """vLLM's engine core in this process, stepped by a thread of its own while any request is unfinished."""

    def __init__(self, model: str, settings: ModelConfig, sampling: SamplingConfig, longest_prompt: int) -> None:
        self._sampling = sampling
        self._inbox: queue.SimpleQueue[Callable[[LLMEngine], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Result]] = {}
        self._ids = itertools.count()
        self._died: EngineDied | None = None
        ready: Future[None] = Future()
        arguments = (engine_args(model, settings, sampling), longest_prompt + sampling.max_new_tokens, ready)
        # The engine is built by the thread that steps it: OpenMP's thread count belongs to the thread that set it.
        self._thread = threading.Thread(target=self._run, args=arguments, name="vllm", daemon=True)
        self._thread.start()
        ready.result()

    def generate(self, requests: Sequence[Request], finished: Callable[[Result], None]) -> list[Result]:
        futures = [self._submit(request, finished) for request in requests]
        return [future.result() for future in futures]

    def load(self, model: str) -> None:
        done: Future[None] = Future()

        def reload(engine: LLMEngine) -> None:
            try:
                engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
                engine.reset_prefix_cache()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._inbox.put(reload)
        done.result()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _submit(self, request: Request, finished: Callable[[Result], None]) -> Future[Result]:
        future: Future[Result] = Future()
        future.add_done_callback(lambda f: None if f.exception() else finished(f.result()))
        request_id = str(next(self._ids))

        def add(engine: LLMEngine) -> None:
            from vllm.exceptions import VLLMValidationError

            self._waiting[request_id] = future
            try:
                engine.add_request(request_id, *_as_input(engine, request, self._sampling))
            except (VLLMValidationError, ValueError) as error:
                del self._waiting[request_id]
                future.set_result(Refusal(_one_line(error)))

        if self._died:
            raise self._died
        self._inbox.put(add)
        return future

    def _run(self, args: dict[str, Any], wanted_length: int, ready: Future[None]) -> None:
        try:
            import torch
            from vllm.engine.arg_utils import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            torch.set_num_threads(max(1, int(self._sampling.cpus_per_engine)))
            engine_args = EngineArgs(**_with_length(EngineArgs, args, wanted_length))
            engine = LLMEngine.from_engine_args(engine_args, UsageContext.LLM_CLASS)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while self._serve_inbox(engine):
                for output in engine.step():
                    if output.finished:
                        self._waiting.pop(output.request_id).set_result(_completions(output))
        except BaseException as error:
            self._died = EngineDied(_one_line(error))
            for future in self._waiting.values():
                future.set_exception(self._died)

    def _serve_inbox(self, engine: LLMEngine) -> bool:
        """Do what callers asked for, waiting for it when there is nothing to step. False: close."""
        while True:
            try:
                command = self._inbox.get(block=not engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)


class AsyncEngine:
    """vLLM's asynchronous engine: its core steps in another process, requests and outputs cross by message."""

    def __init__(self, model: str, settings: ModelConfig, sampling: SamplingConfig, longest_prompt: int) -> None:
        self._sampling = sampling
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        arguments = (engine_args(model, settings, sampling), longest_prompt + sampling.max_new_tokens)
        self._engine = self._await(self._open(*arguments))

    async def _open(self, args: dict[str, Any], wanted_length: int) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        engine_args = AsyncEngineArgs(**_with_length(AsyncEngineArgs, args, wanted_length))
        return AsyncLLM.from_engine_args(engine_args, usage_context=UsageContext.LLM_CLASS)

    def generate(self, requests: Sequence[Request], finished: Callable[[Result], None]) -> list[Result]:
        async def sample_all() -> list[Result]:
            return await asyncio.gather(*(self._sample(request, finished) for request in requests))

        return self._await(sample_all())

    async def _sample(self, request: Request, finished: Callable[[Result], None]) -> Result:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        result: Result | None = None
        try:
            prompt, params = _as_input(self._engine, request, self._sampling)
            async for output in self._engine.generate(prompt, params, str(next(self._ids))):
                if output.finished:
                    result = _completions(output)
        except (VLLMValidationError, ValueError) as error:
            result = Refusal(_one_line(error))
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineDied(_one_line(error)) from error
        assert result is not None, "vLLM ended a request without its final output"
        finished(result)
        return result

    def load(self, model: str) -> None:
        async def reload() -> None:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
            await self._engine.reset_prefix_cache()

        self._await(reload())

    def close(self) -> None:
        self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _with_length(args_class: Any, args: dict[str, Any], wanted_length: int) -> dict[str, Any]:
    """`args` with a context just long enough, so that the KV cache of a model with a long one still fits.

    Capped at the model's own limit, which vLLM reads from its config. A length in sampling.engine_args is kept.
    """
    if "max_model_len" in args:
        return args
    limit = args_class(**args).create_model_config().max_model_len
    return {**args, "max_model_len": min(limit, wanted_length)}


def _as_input(engine: Any, request: Request, sampling: SamplingConfig) -> tuple[Any, Any]:
    """What vLLM's `generate` and `add_request` take: the prompt in rendered form, and the sampling parameters."""
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    prompt = TokensPrompt(prompt_token_ids=list(request.prompt_token_ids))
    (rendered,) = engine.renderer.render_cmpl([prompt])
    params = SamplingParams(
        n=request.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        seed=request.seed if sampling.temperature > 0 else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return rendered, params


def _completions(output: RequestOutput) -> list[Completion]:
    return [Completion(o.text, o.finish_reason or "unknown", len(o.token_ids)) for o in output.outputs]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def explain_failure(error: Exception, model: str, sampling: SamplingConfig) -> str:
    """Why the engine did not start, in words that name the setting to change."""
    reason = _one_line(error)
    if isinstance(error, UserError):
        return reason
    if "KV cache" in reason or "kv cache" in reason or "memory" in reason:
        on_gpu = "lower sampling.engine_args.max_model_len, or raise sampling.engine_args.gpu_memory_utilization"
        on_cpu = (
            f"sampling.kv_cache_gib={sampling.kv_cache_gib or DEFAULT_CPU_KV_CACHE_GIB:g} does not suit this machine and model: "
            f"set it to what is needed and free, or lower sampling.max_new_tokens"
        )
        return f"{on_gpu if sampling.gpus_per_engine > 0 else on_cpu} (vLLM: {reason})"
    return (
        f"vLLM cannot start on model.path={model!r}: {reason}. Check that it is a complete Hugging Face model directory or "
        f"hub name, and that sampling.engine_args holds arguments vLLM knows"
    )
