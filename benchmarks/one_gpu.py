"""One GPU's figures on a random model of Llama-3.2-1B's shape: `make test-gpu` prints them after its tests.

    python benchmarks/one_gpu.py [--rehearse]

A weighted SFT and DPO step beside TRL's own, and tokens per second of sampling. Not run on a GPU in this form; the scripts
it comes from ran on one H200 (docs/results.md, README). `--rehearse` goes through the same lines on a CPU with a small model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.training import device_clock, measure, process_clock, random_model
from east_ray.config.sections import ModelConfig, SamplingConfig
from east_ray.rollouts.engine import EngineSettings, Request
from east_ray.rollouts.vllm_engine import VllmEngine

PROMPT_TOKENS, NEW_TOKENS = 100, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU, with a small model")
    rehearse = parser.parse_args().rehearse
    with tempfile.TemporaryDirectory() as scratch:
        model = random_model("small" if rehearse else "1b", scratch)
        rate, ready = throughput(model, rehearse)
        print(f"engine: ready in {ready:.0f} s, {rate:,.0f} tokens/s sampled and seeded", flush=True)
        device, clock = ("cpu", process_clock) if rehearse else ("cuda", device_clock)
        for loss in ("sft", "dpo"):
            cost = measure(loss, "none", model, scratch, device, 4 if rehearse else 24, clock)
            print(
                f"{loss}: a micro-batch of 4 takes TRL {cost.stock_ms:.1f} ms, weighted {cost.ours_ms:.1f} ms, ratio "
                f"{cost.ours_ms / cost.stock_ms:.3f}; gradient check {cost.check_ms:.0f} ms",
                flush=True,
            )


def throughput(model: str, rehearse: bool) -> tuple[float, float]:
    """Tokens per second of 32 questions with 128 completions each, and the seconds the engine took to start."""
    questions, samples, new = (2, 4, 16) if rehearse else (32, 128, NEW_TOKENS)
    sampling = SamplingConfig(max_new_tokens=new, gpus_per_engine=0 if rehearse else 1, kv_cache_gib=1)
    began = time.perf_counter()
    engine = VllmEngine(EngineSettings(model, ModelConfig(path=model), sampling, PROMPT_TOKENS))
    opened = time.perf_counter()
    try:
        prompts = [[10 + (i * 7 + j) % 200 for j in range(PROMPT_TOKENS)] for i in range(questions)]
        engine.generate([Request("warm-up", prompts[0], 8, 0)])
        start = time.perf_counter()
        results = engine.generate([Request(str(i), ids, samples, 1000 * i) for i, ids in enumerate(prompts)])
        seconds = time.perf_counter() - start
    finally:
        engine.close()
    tokens = sum(completion.num_tokens for result in results if isinstance(result, list) for completion in result)
    return tokens / seconds, opened - began


if __name__ == "__main__":
    main()
