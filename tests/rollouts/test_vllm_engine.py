"""Real vLLM on the CPU, on the bundled model; and what is handed to it, without it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from east_ray.config.sections import ModelConfig, SamplingConfig
from east_ray.records import QUESTIONS, SAMPLES, UserError, prompt_hash
from east_ray.rollouts.engine import (
    Completion,
    Engine,
    EngineDied,
    EngineSettings,
    ExchangeRefused,
    Refusal,
    Request,
    explain_failure,
    question_seed,
)
from east_ray.rollouts.sample_shard import sample_shard
from east_ray.rollouts.vllm_engine import VllmEngine, engine_args, starts_alone
from tests.support.fake_engine import FakeEngine, completion

MAX_NEW_TOKENS = 48
LONGEST_PROMPT = 100


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [f"start {i} +5 *3 -4" for i in range(6)]
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, return_dict=False)
        for t in texts
    ]


@pytest.fixture(scope="module")
def plain(tiny_model: Path, prompts: list[list[int]]) -> list[list[Completion]]:
    """What bare vLLM makes of the prompts with the seeds of questions 0, 1, ...: five completions each."""
    from vllm import LLM, SamplingParams

    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    llm = LLM(
        str(tiny_model),
        dtype="bfloat16",
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_model_len=LONGEST_PROMPT + MAX_NEW_TOKENS,
        kv_cache_memory_bytes=1 << 29,
    )
    params = [
        SamplingParams(n=5, temperature=1.0, max_tokens=MAX_NEW_TOKENS, seed=question_seed(0, 0, str(i)))
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [
        [Completion(o.text, o.finish_reason or "", len(o.token_ids), tuple(o.token_ids)) for o in out.outputs]
        for out in outputs
    ]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, plain: list[list[Completion]]) -> Iterator[Engine]:
    """One engine for the whole file: it takes ten seconds and more to start.

    After the plain one has gone, because vLLM keeps its process groups in module variables: one engine in a process.
    """
    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, kv_cache_gib=1)
    engine = VllmEngine(EngineSettings(str(tiny_model), ModelConfig(path=str(tiny_model)), sampling, LONGEST_PROMPT))
    yield engine
    engine.close()


def sample(engine: Engine, *requests: Request) -> list[Any]:
    return engine.generate(requests)


def test_each_sample_depends_only_on_its_own_seed(engine: Engine, prompts: list[list[int]]) -> None:
    """Whatever shares the batch, in whichever order, and however many are asked for at once."""
    requests = [Request(str(i), ids, 6, question_seed(0, 0, str(i))) for i, ids in enumerate(prompts)]
    together = sample(engine, *requests)
    backwards = sample(engine, *reversed(requests))[::-1]
    topped_up = [
        sample(engine, Request("", r.prompt_token_ids, 2, r.seed))[0]
        + sample(engine, Request("", r.prompt_token_ids, 4, r.seed + 2))[0]
        for r in requests
    ]
    assert together == backwards == topped_up
    assert len({c.text for completions in together for c in completions}) > 6


def test_two_callers_share_the_engine_without_mixing(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(str(i), ids, 8, question_seed(1, 0, str(i))) for i, ids in enumerate(prompts)]
    alone = [sample(engine, request)[0] for request in requests]
    results: dict[int, Any] = {}

    def call(i: int) -> None:
        results[i] = sample(engine, requests[i])[0]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(len(requests))] == alone


def test_same_completions_as_plain_vllm(
    engine: Engine, prompts: list[list[int]], plain: list[list[Completion]]
) -> None:
    assert (
        sample(engine, *(Request(str(i), ids, 5, question_seed(0, 0, str(i))) for i, ids in enumerate(prompts)))
        == plain
    )


def test_completions_stop_or_are_cut_at_the_limit(engine: Engine, prompts: list[list[int]]) -> None:
    completions = [c for r in sample(engine, *(Request("", ids, 32, 7) for ids in prompts)) for c in r]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert all(c.num_tokens == MAX_NEW_TOKENS for c in completions if c.finish_reason == "length")
    assert all(0 < c.num_tokens <= MAX_NEW_TOKENS for c in completions)


def test_token_ids_end_with_the_token_the_engine_stopped_on_and_decode_to_the_text(
    engine: Engine, prompts: list[list[int]], tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for one in (c for r in sample(engine, *(Request("", ids, 32, 7) for ids in prompts)) for c in r):
        assert len(one.token_ids) == one.num_tokens
        assert (one.token_ids[-1] == tokenizer.eos_token_id) == (one.finish_reason == "stop")
        assert tokenizer.decode(one.token_ids, skip_special_tokens=True) == one.text


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([5] * 600, "context length"), ([10**6], "out of vocabulary"), ([], "empty")],
    ids=["too long", "unknown token", "empty"],
)
def test_bad_prompt_is_refused_and_its_neighbour_sampled(
    engine: Engine, prompts: list[list[int]], ids: list[int], reason: str
) -> None:
    refused, good = sample(engine, Request("bad", ids, 2, 1), Request("good", prompts[0], 2, 1))
    assert isinstance(refused, Refusal)
    assert reason in refused.reason
    assert len(good) == 2


def test_weights_are_exchanged_in_place(
    engine: Engine, prompts: list[list[int]], tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(other)
    request = Request("", prompts[0], 8, 11)
    before = sample(engine, request)

    engine.load(str(other))
    changed = sample(engine, request)
    engine.load(str(tiny_model))

    assert changed != before
    assert sample(engine, request) == before


def questions(count: int) -> pa.Table:
    rows = [
        {
            "question_id": f"q{i}",
            "question": "?",
            "reference": "1",
            "level": None,
            "subject": None,
            "prompt": "?",
            "prompt_token_ids": [i, i],
            "prompt_hash": prompt_hash([i, i]),
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=QUESTIONS)


def fake(refuse: tuple[str, ...] = ()) -> FakeEngine:
    sampling = SamplingConfig(engine_args={"refuse": refuse})
    return FakeEngine(EngineSettings("m", ModelConfig(path="m"), sampling, 1))


def shard_of(
    count: int, num_samples: int, before: pa.Table | None = None, engine: FakeEngine | None = None
) -> pa.Table:
    chosen = engine or fake()
    return sample_shard(
        questions(count),
        before,
        num_samples=num_samples,
        seed_of=lambda question_id: question_seed(0, 0, question_id),
        generate=chosen.generate,
    )


def test_shard_holds_each_question_once_in_order_with_all_samples() -> None:
    table = shard_of(3, 4)
    assert table.schema.equals(SAMPLES)
    assert table["question_id"].to_pylist() == ["q0", "q1", "q2"]
    assert table["completions"].to_pylist()[2] == [
        completion("m", question_seed(0, 0, "q2") + i).text for i in range(4)
    ]


def test_topping_up_keeps_what_there_is_and_equals_sampling_at_once() -> None:
    assert shard_of(3, 8, before=shard_of(3, 5)).equals(shard_of(3, 8))


def test_question_that_failed_is_sampled_when_it_is_tried_again() -> None:
    failed = shard_of(3, 4, engine=fake(refuse=("q1",)))
    assert failed["shortfall"].to_pylist() == [None, "the prompt is too long", None]
    assert shard_of(3, 4, before=failed).equals(shard_of(3, 4))


def test_completions_of_another_prompt_are_not_topped_up() -> None:
    before = shard_of(2, 2).set_column(2, SAMPLES.field("prompt_hash"), pa.array(["x", "y"]))
    with pytest.raises(UserError, match="'q0' was sampled from another prompt"):
        shard_of(2, 4, before=before)


def test_engine_that_returns_too_few_is_recorded() -> None:
    class Short(FakeEngine):
        def _sample(self, request: Request) -> Any:
            return super()._sample(request)[:-1]  # type: ignore[index]

    engine = Short(EngineSettings("m", ModelConfig(path="m"), SamplingConfig(), 1))
    assert shard_of(1, 4, engine=engine)["shortfall"].to_pylist() == ["the engine returned 3 of 4"]


class Args:
    """Stands for vLLM's EngineArgs: a model whose own limit is 4096 tokens."""

    def __init__(self, **args: Any) -> None:
        self.max_model_len = 4096

    def create_model_config(self) -> Args:
        return self


def arguments(longest_prompt: int = 100, **settings: Any) -> dict[str, Any]:
    sampling = SamplingConfig(**settings)
    return engine_args(EngineSettings("m", ModelConfig(path="m"), sampling, longest_prompt), Args)


def test_context_is_as_long_as_needed_and_no_longer_than_the_model_allows() -> None:
    assert arguments(max_new_tokens=2048)["max_model_len"] == 2148
    assert arguments(longest_prompt=4000, max_new_tokens=2048)["max_model_len"] == 4096
    assert arguments(engine_args={"max_model_len": 77})["max_model_len"] == 77


def test_cpu_engine_does_not_split_prefills_and_gpu_engine_gets_its_parallel_sizes() -> None:
    cpu = arguments(kv_cache_gib=0.5)
    assert (cpu["enable_chunked_prefill"], cpu["kv_cache_memory_bytes"]) == (False, 1 << 29)
    gpu = arguments(gpus_per_engine=8, tensor_parallel_size=4, pipeline_parallel_size=2)
    assert (gpu["tensor_parallel_size"], gpu["pipeline_parallel_size"]) == (4, 2)
    assert gpu["distributed_executor_backend"] == "mp"
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill", "gpu_memory_utilization"} & set(gpu)


def test_engines_that_share_a_gpu_share_its_memory_and_start_one_after_the_other() -> None:
    half = SamplingConfig(gpus_per_engine=0.5)
    assert arguments(gpus_per_engine=0.5)["gpu_memory_utilization"] == 0.46
    assert arguments(gpus_per_engine=0.25)["gpu_memory_utilization"] == 0.23
    with starts_alone(half) as held:
        assert held is not None
        with open(held.name) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with starts_alone(SamplingConfig(gpus_per_engine=1)) as held:
        assert held is None


@pytest.mark.parametrize("gpus", [0.3, 1.5])
def test_engines_share_a_gpu_evenly_or_have_whole_ones(gpus: float) -> None:
    with pytest.raises(ValueError, match=r"gpus_per_engine.*1/2"):
        SamplingConfig(gpus_per_engine=gpus)


def test_users_engine_arguments_have_the_last_word() -> None:
    args = arguments(engine_args={"enforce_eager": False, "max_num_seqs": 3})
    assert (args["enforce_eager"], args["max_num_seqs"]) == (False, 3)


def test_failures_name_the_setting_to_change() -> None:
    error = ValueError("To serve at least one request, 9 GiB KV cache is needed")
    assert "sampling.kv_cache_gib=2 does not suit" in explain_failure(error, "m", SamplingConfig(kv_cache_gib=2))
    on_gpu = explain_failure(error, "m", SamplingConfig(gpus_per_engine=1))
    assert "sampling.engine_args.gpu_memory_utilization" in on_gpu
    assert explain_failure(UserError("do this"), "m", SamplingConfig()) == "do this"


class Stopping:
    """Stands for vLLM's LLMEngine: takes requests and fails at the first step."""

    def __init__(self) -> None:
        self.renderer = self.engine_core = self
        self.requests = 0

    def render_cmpl(self, prompts: list[Any]) -> list[Any]:
        return prompts

    def has_unfinished_requests(self) -> bool:
        return self.requests > 0

    def add_request(self, *request: Any, **more: Any) -> None:
        self.requests += 1

    def shutdown(self) -> None:
        pass

    def step(self) -> list[Any]:
        raise RuntimeError("CPU Generator does not use offset")


def test_engine_that_stops_answers_everyone_who_waits_and_everyone_who_comes_later() -> None:
    class Engine(VllmEngine):
        def _open(self, settings: EngineSettings) -> Any:
            return Stopping()

    engine = Engine(EngineSettings("m", ModelConfig(path="m"), SamplingConfig(), 1))
    for _ in range(2):
        with pytest.raises(EngineDied, match="does not use offset"):
            sample(engine, *(Request(str(i), [1], 2, 1) for i in range(5)))
    with pytest.raises(EngineDied, match="does not use offset"):
        engine.load("elsewhere")


@pytest.mark.slow
def test_engine_in_its_own_process_gives_the_same_completions_and_its_death_is_noticed(
    engine: Engine, prompts: list[list[int]], tiny_model: Path
) -> None:
    """As on GPUs, here on the CPU."""
    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, kv_cache_gib=1)
    settings = EngineSettings(str(tiny_model), ModelConfig(path=str(tiny_model)), sampling, LONGEST_PROMPT)
    other = VllmEngine(settings, own_process=True)
    requests = [Request(str(i), ids, 6, question_seed(0, 0, str(i))) for i, ids in enumerate(prompts)]
    assert sample(other, *requests) == sample(engine, *requests)
    refused, good = sample(other, Request("bad", [5] * 600, 2, 1), requests[0])
    assert isinstance(refused, Refusal)
    assert len(good) == 6
    other.load(str(tiny_model))
    assert sample(other, requests[1]) == sample(engine, requests[1])

    (core,) = [child for child in psutil.Process().children() if "EngineCore" in " ".join(child.cmdline())]
    threading.Timer(0.2, core.kill).start()
    with pytest.raises(EngineDied):
        sample(other, *(replace(request, num_samples=2000) for request in requests))
    with pytest.raises(EngineDied):
        other.load(str(tiny_model))
    other.close()


def test_weights_of_another_shape_are_refused(engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    """The last test of this engine: its weights are half replaced afterwards."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 1
    config.hidden_size *= 2
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(ExchangeRefused):
        engine.load(str(tmp_path / "wide"))


@pytest.mark.slow
def test_real_start_failures_are_explained(tiny_model: Path, tmp_path: Path) -> None:
    def failure(path: Path, **settings: Any) -> str:
        sampling = SamplingConfig(**{"max_new_tokens": 16, "kv_cache_gib": 1} | settings)
        with pytest.raises(Exception, match=r".") as error:
            VllmEngine(EngineSettings(str(path), ModelConfig(path=str(path)), sampling, 10))
        return explain_failure(error.value, str(path), sampling)

    assert "sampling.kv_cache_gib=1e+06 does not suit" in failure(tiny_model, kv_cache_gib=1e6)
    assert "sampling.kv_cache_gib=1e-06 does not suit" in failure(tiny_model, kv_cache_gib=1e-6)
    assert "vLLM cannot start on model.path" in failure(tmp_path)
    assert "warp_drive" in failure(tiny_model, engine_args={"warp_drive": True})
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"], "model_type": "llama"}))
    assert "vLLM cannot start on model.path" in failure(broken)
