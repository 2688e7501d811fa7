"""The cost of exact weights: a weighted step against TRL's own on the same batches, and the gradient check.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--device cuda] [--steps 40]
    OMP_NUM_THREADS=1 python benchmarks/training.py --identity

The second prints how far weighted gradients are from explicit weighted losses (tests/support/oracles.py), in float32.

Process time on a CPU, device time on a GPU; medians of steps taken in turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from east_ray.training import trainers
from east_ray.training.gradient_check import check_weighted_gradient
from tests.support.training_rows import MODEL, config, distance, explicit_gradient, one_step, planned
from tests.training.test_trainers_deepspeed import CASES, NAMES, measured, run_cases

SIZES = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
    # Llama-3.2-1B's shape, with the bundled model's vocabulary
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=40, help="timed micro-batches of each trainer")
    parser.add_argument("--losses", nargs="+", default=["sft", "dpo", "kto"])
    parser.add_argument("--identity", action="store_true")
    arguments = parser.parse_args()
    if arguments.identity:
        identity()
        return
    clock = process_clock if arguments.device == "cpu" else device_clock
    print("loss  local weight  TRL ms  weighted ms  ratio   check ms  share of 100 steps")
    with tempfile.TemporaryDirectory() as scratch:
        model = random_model(arguments.size, scratch)
        for loss in arguments.losses:
            for local_weight in ("none", "perplexity", "wpo"):
                c = measure(loss, local_weight, model, scratch, arguments.device, arguments.steps, clock)
                print(
                    f"{loss:<5} {local_weight:<12} {c.stock_ms:>7.1f} {c.ours_ms:>12.1f} {c.ours_ms / c.stock_ms:>6.3f} "
                    f"{c.check_ms:>10.0f} {c.check_share:>9.2%}",
                    flush=True,
                )


def identity() -> None:
    print("case                    relative L2")
    with tempfile.TemporaryDirectory() as scratch:
        for loss, changes in (
            ("sft", {}),
            ("sft", {"normalization": "sequence"}),
            ("sft", {"weight_granularity": "microbatch"}),
            ("dpo", {}),
            ("kto", {}),
        ):
            for lora in (None, {"rank": 4}):
                training = config(loss, max_steps=1, lora=lora, **changes)
                actual, rows, weights, policy = one_step(16, training, Path(scratch))
                far = distance(actual, explicit_gradient(training, policy(), rows, weights))
                name = "-".join([loss, *changes.values(), "lora" if lora else "full"])
                print(f"{name:<24}{far:.1e}", flush=True)
        run_cases(Path(scratch))
        for case, name in zip(CASES, NAMES, strict=True):
            far, error = measured(case, name, Path(scratch))
            print(f"{name:<24}{far:.1e}   two workers; gradient check {error:.1e}", flush=True)


@dataclass(frozen=True)
class Cost:
    """Medians of one micro-batch, the gradient check, and the check's share of a training of 100 steps."""

    stock_ms: float
    ours_ms: float
    check_ms: float
    check_share: float


def measure(
    loss: str, local_weight: str, model: str, scratch: str, device: str, steps: int, clock: Callable[[], float]
) -> Cost:
    training = config(loss, local_weight=local_weight, use_gpu=device == "cuda", batch_size=16, micro_batch_size=4)
    rows, plan, weights = planned(loss, 64, training)
    dtype = "float32" if device == "cpu" else "bfloat16"
    ours = trainers.make_trainer(
        rows,
        plan,
        weight_N=weights,
        model_path=model,
        dtype=dtype,
        trust_remote_code=False,
        training=training,
        seed=0,
        output_dir=scratch,
        deepspeed=None,
    )
    stock_class = next(base for base in type(ours).__mro__ if base.__name__ == f"{loss.upper()}Trainer")
    untokenised = {"_prepare_dataset": lambda _self, dataset, *_, **__: dataset}
    stock = type("Stock", (stock_class,), untokenised)(
        model=model,
        args=ours.args,
        train_dataset=ours.positions.rows,
        processing_class=AutoTokenizer.from_pretrained(MODEL),
    )
    for trainer in (ours, stock):
        trainer.model.to(device)
        trainer.current_gradient_accumulation_steps = 4

    times: dict[str, list[float]] = {"ours": [], "stock": []}
    ready = clock()
    check_weighted_gradient(ours)
    check = clock() - ready
    for step in range(-3, steps):
        first = (step % 4) * 4
        items = [ours.positions[p] for p in range(first, first + 4)]
        for name, trainer in (("ours", ours), ("stock", stock)):
            batch = trainer.data_collator([dict(item) for item in items])
            tokens = torch.tensor(100) if loss == "sft" else None
            start = clock()
            trainer.training_step(trainer.model, batch, tokens)
            if step >= 0:
                times[name].append(clock() - start)
            trainer.model.zero_grad()
    median = {name: 1000 * statistics.median(values) for name, values in times.items()}
    share = check / (100 * training.gradient_accumulation_steps * median["stock"] / 1000)
    return Cost(median["stock"], median["ours"], 1000 * check, share)


def random_model(size: str, scratch: str) -> str:
    """A randomly initialised Llama with the bundled model's tokenizer, as a directory."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    settings: dict[str, Any] = {"num_key_value_heads": 8, "tie_word_embeddings": True, **SIZES[size]}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **settings))
    path = f"{scratch}/model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def process_clock() -> float:
    return time.process_time()


def device_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
