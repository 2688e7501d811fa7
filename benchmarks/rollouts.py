"""Speed and memory of rollouts, measured: `python benchmarks/rollouts.py throughput|memory|rerun`.

throughput  tokens per second of the pipeline, and of `ray.data.llm` with one row per sample, against bare
            `LLM.generate(n=128)` with vLLM's own settings on the same prompts, seeds, model and threads; engine start
            excluded. Every measurement is a process of its own; the kinds take turns.
            With --gpu: on one GPU a random model of Llama-3.2-1B's shape, with one, two and four engines on it.
memory      the driver's peak and the object store's, at two numbers of questions, through an engine without a model.
rerun       seconds that a finished set takes when it is asked for again, and what was imported for it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"})

from benchmarks.memory import peak_mib  # noqa: E402
from east_ray.config.sections import GradingConfig, ModelConfig, QuestionsConfig, SamplingConfig  # noqa: E402
from east_ray.rollouts.engine import Engine, EngineSettings, Request, Result, question_seed  # noqa: E402
from east_ray.rollouts.run import RolloutJob, run_rollouts  # noqa: E402
from east_ray.runs.directory import RunDirectory  # noqa: E402

MODEL = str(ROOT / "east_ray" / "tiny" / "model")
JOB = RolloutJob(MODEL, "questions/train.parquet", "samples", "grades")


def sampling_config(arguments: argparse.Namespace) -> SamplingConfig:
    settings: dict[str, Any] = {"num_samples": 128, "max_new_tokens": 256, "kv_cache_gib": 1, "questions_per_shard": 8}
    if arguments.gpu:
        engines = arguments.engines
        settings |= {"gpus_per_engine": 1 / engines, "min_engines": engines, "max_engines": engines}
    return SamplingConfig(**settings)


def prepare(directory: str, count: int) -> RunDirectory:
    from east_ray.models import load_tokenizer
    from east_ray.questions.prompts import Prompts
    from east_ray.questions.questions import load_questions

    run = RunDirectory(directory)
    settings = QuestionsConfig(train=str(ROOT / "east_ray" / "tiny" / "train.jsonl"))
    questions = load_questions(settings.train, settings, count)
    run.write_table(Prompts(load_tokenizer(ModelConfig(path=MODEL)), settings).render(questions), JOB.questions)
    return run


class Timed:
    """An engine that notes when it was first asked for something, and the processor time it has taken since."""

    def __init__(self, engine: Engine, directory: str) -> None:
        self._engine, self._directory, self._before = engine, Path(directory), time.process_time()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        started = self._directory / f"{os.getpid()}.started"
        if not started.exists():
            started.write_text(str(time.time()))
        results = self._engine.generate(requests)
        (self._directory / f"{os.getpid()}.cpu").write_text(str(time.process_time() - self._before))
        return results

    def load(self, path: str) -> None:
        self._engine.load(path)

    def close(self) -> None:
        self._engine.close()


def open_timed(settings: EngineSettings) -> Timed:
    """The engine, warmed up as the bare one is, noting its start in $EAST_RAY_STARTED."""
    from east_ray.rollouts.vllm_engine import VllmEngine

    engine = VllmEngine(settings)
    engine.generate([Request("", [5, 6, 7], 128, 1)])
    return Timed(engine, os.environ["EAST_RAY_STARTED"])


def measure_bare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens and seconds of one `LLM.generate` over all questions."""
    if not arguments.gpu:  # a process of its own and bound threads cost a CPU engine more than they bring
        os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    os.environ.update({"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"})
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs

    from east_ray.rollouts.vllm_engine import engine_args

    with tempfile.TemporaryDirectory() as directory:
        rows = prepare(directory, arguments.questions).read_table(JOB.questions).to_pylist()
    sampling = sampling_config(arguments)
    longest = max(len(row["prompt_token_ids"]) for row in rows)
    args = engine_args(
        EngineSettings(arguments.model, ModelConfig(path=arguments.model), sampling, longest), EngineArgs
    )
    ours = {"block_size", "max_num_seqs", "gpu_memory_utilization", "worker_extension_cls", "disable_log_stats"}
    llm = LLM(**{name: value for name, value in args.items() if name not in ours})
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], SamplingParams(n=128, max_tokens=256, seed=1), use_tqdm=False)
    params = [
        SamplingParams(n=128, temperature=1.0, max_tokens=256, seed=question_seed(0, 0, row["question_id"]))
        for row in rows
    ]
    started, cpu = time.time(), time.process_time()
    outputs = llm.generate([{"prompt_token_ids": row["prompt_token_ids"]} for row in rows], params, use_tqdm=False)
    tokens = sum(len(o.token_ids) for output in outputs for o in output.outputs)
    return {"tokens": tokens, "seconds": time.time() - started, "cpu": time.process_time() - cpu}


def measure_pipeline(arguments: argparse.Namespace, graded: bool) -> dict[str, Any]:
    """Tokens of a whole rollout, and seconds from the engine's first request to the last file written."""
    import ray

    with tempfile.TemporaryDirectory() as directory:
        os.environ["EAST_RAY_STARTED"] = notes = f"{directory}/notes"
        Path(notes).mkdir()
        start_ray(None if arguments.gpu else 2)
        run = prepare(directory, arguments.questions)
        keywords: dict[str, Any] = {
            "model": ModelConfig(path=arguments.model),
            "sampling": sampling_config(arguments),
            "seed": 0,
            "round_index": 0,
        }
        job = replace(JOB, model=arguments.model)
        if graded:
            run_rollouts(run, [job], grading=GradingConfig(), open_engine=open_timed, **keywords)
        else:
            sample_only(run, job, **keywords)
        files = Path(run.path("grades" if graded else "samples")).glob("*.parquet")
        started = min(float(file.read_text()) for file in Path(notes).glob("*.started"))
        cpu = sum(float(file.read_text()) for file in Path(notes).glob("*.cpu"))
        seconds = max(file.stat().st_mtime for file in files) - started
        tokens = sum(sum(counts) for counts in run.read_table("samples")["completion_tokens"].to_pylist())
        ray.shutdown()
    return {"tokens": tokens, "seconds": seconds, "cpu": cpu}


def sample_only(
    run: RunDirectory, job: RolloutJob, model: ModelConfig, sampling: SamplingConfig, seed: int, round_index: int
) -> None:
    """The sampling pool of `run_rollouts` without the graders behind it."""
    import ray

    from east_ray.console import quiet_ray_data
    from east_ray.rollouts.actors import RolloutSpec
    from east_ray.rollouts.attempts import Attempts
    from east_ray.rollouts.pools import engine_pool, shard_row
    from east_ray.rollouts.shards import Shard, count_questions, count_shards
    from east_ray.runs.cluster import on_driver_node

    count = count_shards(count_questions(run, JOB.questions), sampling.questions_per_shard)
    rows = [shard_row(0, Shard(index, samples=True, begun=False)) for index in range(count)]
    spec = RolloutSpec(run, [job], model, sampling, seed, round_index, open_timed)
    with quiet_ray_data():
        dataset = ray.data.from_items(rows, override_num_blocks=count)
        dataset = engine_pool(dataset, count, spec, on_driver_node(Attempts), 0)
        assert sum(len(batch["job"]) for batch in dataset.iter_batches(batch_size=None)) == count


def measure_ray_data_llm(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens and seconds of Ray Data's own processor with one row per sample: it keeps only the first of n.

    Its start is taken off: what the same processor takes for one batch of one-token requests.
    """
    os.environ.update({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"})
    os.environ.update({"VLLM_NO_USAGE_STATS": "1"})
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    from vllm.engine.arg_utils import EngineArgs

    from east_ray.rollouts.vllm_engine import engine_args

    batch = 256
    with tempfile.TemporaryDirectory() as directory:
        rows = prepare(directory, arguments.questions).read_table(JOB.questions).to_pylist()
    longest = max(len(row["prompt_token_ids"]) for row in rows)
    settings = EngineSettings(MODEL, ModelConfig(path=MODEL), sampling_config(arguments), longest)
    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=MODEL,
            engine_kwargs={k: v for k, v in engine_args(settings, EngineArgs).items() if k != "model"},
            batch_size=batch,
            concurrency=1,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
            placement_group_config={"bundles": [{"CPU": 1}]},
        ),
        preprocess=lambda row: {
            "prompt": "",
            "tokenized_prompt": row["ids"],
            "sampling_params": {"temperature": 1.0, "max_tokens": row["max_tokens"], "seed": row["seed"]},
        },
        postprocess=lambda row: {"tokens": row["num_generated_tokens"]},
    )
    warm_up = [{"ids": [5, 6, 7], "max_tokens": 1, "seed": i} for i in range(batch)]
    # vLLM gives sample i of a request the seed of the request + i: the same completions as n=128 makes.
    asked = [
        {"ids": row["prompt_token_ids"], "max_tokens": 256, "seed": question_seed(0, 0, row["question_id"]) + i}
        for row in rows
        for i in range(128)
    ]

    def answer(requests: list[dict[str, Any]]) -> tuple[int, float]:
        started = time.time()
        answered = processor(ray.data.from_items(requests)).iter_batches(batch_size=None)
        return sum(int(sum(batch["tokens"])) for batch in answered), time.time() - started

    _, start = answer(warm_up)
    tokens, seconds = answer(warm_up + asked)
    return {"tokens": tokens - batch, "seconds": seconds - start}


NAMES = {
    "bare": "`LLM.generate(n=128)`",
    "sampling": "pipeline, sampling",
    "graded": "pipeline, sampling and grading",
    "ray_data_llm": "`ray.data.llm`, one row per sample",
}
GPU_NAMES = {
    "bare": NAMES["bare"],
    **{f"graded {n}": f"pipeline with grading, engines on the GPU: {n}" for n in (1, 2, 4)},
}


def measure_rates(
    questions: int, repeats: int, options: Sequence[str] = (), kinds: Sequence[str] = ()
) -> dict[str, list[dict[str, float]]]:
    """Tokens per second of each kind, and per second of its engines' processor time; processes of their own, in turns."""
    names = GPU_NAMES if "--gpu" in options else NAMES
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds or names}
    for _ in range(repeats):
        for kind, measured in results.items():
            name, _, engines = kind.partition(" ")
            own = ["--engines", engines] if engines else []
            measured.append(in_a_process(["one", name, "--questions", str(questions), *options, *own]))
            print(kind, measured[-1], file=sys.stderr, flush=True)
    tokens = {kind: measured[0]["tokens"] for kind, measured in results.items()}
    assert "--gpu" in options or len(set(tokens.values())) == 1, f"the same seeds, the same tokens: {tokens}"
    print(f"{questions} questions x 128 samples, {tokens['bare']:,} tokens, {os.cpu_count()} cores", file=sys.stderr)
    return {
        kind: [{name: m["tokens"] / m[name] for name in ("seconds", "cpu") if name in m} for m in measured]
        for kind, measured in results.items()
    }


def throughput(arguments: argparse.Namespace) -> None:
    names = GPU_NAMES if arguments.gpu else NAMES
    with tempfile.TemporaryDirectory() as scratch:
        options: list[str] = []
        if arguments.gpu:
            from benchmarks.training import random_model

            options = ["--gpu", "--model", random_model("1b", scratch)]
        rates = measure_rates(arguments.questions, arguments.repeats, options, arguments.kinds)
    print(
        "| | tokens/s, median | lowest to highest | of bare | of bare, per engine's processor time |\n|---|---|---|---|---|"
    )
    medians = {
        kind: {name: statistics.median(m[name] for m in measured) for name in measured[0]}
        for kind, measured in rates.items()
    }
    for kind, measured in rates.items():
        values, median, bare = [m["seconds"] for m in measured], medians[kind], medians["bare"]
        cpu = f"{median['cpu'] / bare['cpu']:.3f}" if "cpu" in median and not arguments.gpu else ""
        print(
            f"| {names[kind]} | {median['seconds']:,.0f} | {min(values):,.0f} to {max(values):,.0f} | "
            f"{median['seconds'] / bare['seconds']:.3f} | {cpu} |"
        )


def memory(arguments: argparse.Namespace) -> None:
    print("| questions | driver's peak, MiB | object store's peak, MiB | seconds |\n|---|---|---|---|")
    for count in arguments.sizes:
        m = in_a_process(["one", "memory", "--questions", str(count)])
        print(f"| {count:,} | {m['driver_mib']:.0f} | {m['object_store_mib']:.1f} | {m['seconds']:.0f} |", flush=True)


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    from tests.support.fake_engine import FakeEngine
    from tests.support.rollout_runs import make_run

    with tempfile.TemporaryDirectory() as directory:
        run = make_run(Path(directory), arguments.questions)
        start_ray()
        peak, stop = [0], threading.Event()
        watcher = threading.Thread(target=watch_object_store, args=(peak, stop))
        watcher.start()
        started = time.monotonic()
        sampling = SamplingConfig(num_samples=128, max_failed_share=0, engine_args={"shortest": True})
        run_rollouts(
            run,
            [JOB],
            model=ModelConfig(path=MODEL),
            sampling=sampling,
            grading=GradingConfig(),
            seed=0,
            round_index=0,
            open_engine=FakeEngine,
        )
        seconds = time.monotonic() - started
        stop.set()
        watcher.join()
    return {"driver_mib": peak_mib(os.getpid()), "object_store_mib": peak[0] / 2**20, "seconds": seconds}


def watch_object_store(peak: list[int], stop: threading.Event) -> None:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    while not stop.wait(0.5):
        peak[0] = max(peak[0], get_memory_info_reply(state).store_stats.object_store_bytes_used)


def rerun(arguments: argparse.Namespace) -> None:
    m = in_a_process(["one", "rerun", "--questions", str(arguments.questions)])
    print(
        f"{arguments.questions:,} questions took {m['first']:.1f} s; again: {m['again']:.2f} s, importing {m['imported']}"
    )


def measure_rerun(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds that a set takes, and then, finished, in a new process; and which of ray, torch, vllm that imported."""
    from tests.support.rollout_runs import make_run, roll_out

    with tempfile.TemporaryDirectory() as directory:
        start_ray()
        run = make_run(Path(directory), arguments.questions)
        started = time.monotonic()
        roll_out(run, num_samples=16, questions_per_shard=32)
        first = time.monotonic() - started
        code = (
            "import sys, time; started = time.monotonic(); from tests.support.rollout_runs import roll_out\n"
            "from east_ray.runs.directory import RunDirectory\n"
            f"roll_out(RunDirectory({run.uri!r}), num_samples=16, questions_per_shard=32)\n"
            "print(time.monotonic() - started, sorted({'ray', 'torch', 'vllm'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    again, _, imported = done.stdout.partition(" ")
    return {"first": first, "again": float(again), "imported": imported.strip()}


def start_ray(cpus: int | None = 2) -> None:
    import ray

    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=cpus, object_store_memory=300 << 20, **quiet)


def in_a_process(arguments: list[str], script: str = __file__) -> dict[str, Any]:
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "memory", "rerun", "one"])
    parser.add_argument("kind", nargs="?", choices=[*NAMES, "memory", "rerun"])
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--gpu", action="store_true", help="one GPU and a random model of 1B")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=[], help="only these: " + ", ".join([*NAMES, *GPU_NAMES]))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 100_000])
    arguments = parser.parse_args()
    if arguments.what == "one":
        measure = {
            "bare": lambda: measure_bare(arguments),
            "sampling": lambda: measure_pipeline(arguments, graded=False),
            "graded": lambda: measure_pipeline(arguments, graded=True),
            "ray_data_llm": lambda: measure_ray_data_llm(arguments),
            "memory": lambda: measure_memory(arguments),
            "rerun": lambda: measure_rerun(arguments),
        }[arguments.kind]
        print(json.dumps(measure()))
    else:
        {"throughput": throughput, "memory": memory, "rerun": rerun}[arguments.what](arguments)


if __name__ == "__main__":
    main()
