"""The cost of exact weights: a weighted step against TRL's own on the same batches, and the gradient check.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--device cuda] [--steps 40]
    OMP_NUM_THREADS=1 python benchmarks/training.py --identity
    OMP_NUM_THREADS=1 python benchmarks/training.py --throughput ../shared/data [--losses sft dpo kto]

The first computes padded rows, as TRL does. The second prints how far weighted gradients are from explicit weighted losses
(tests/support/oracles.py), in float32. The third trains without padding on GSM8K's lengths, against
TRL's own trainers.

Process time on a CPU, device time on a GPU; medians of steps taken in turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.memory import peak_mib
from east_ray.config.training import TrainingConfig
from east_ray.training import trainers
from east_ray.training.batches import TrainingPlan, plan_training
from east_ray.training.gradient_check import check_weighted_gradient
from east_ray.training.inputs import PlannedDataset
from east_ray.training.tokens import lengths
from tests.support.training_rows import MODEL, config, distance, explicit_gradient, one_step, planned
from tests.training.test_trainers_deepspeed import CASES, measured, run_cases

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
    parser.add_argument("--throughput", type=Path, metavar="DATA", help="folder with responses/")
    parser.add_argument("--peak", choices=["stock", "ours"], help="print the peak memory of one kind's steps, GiB")
    arguments = parser.parse_args()
    if arguments.throughput:
        print("loss   TRL examples/s   ours   ratio      peak memory: TRL    ours, GiB")
        for loss in arguments.losses:
            if arguments.peak:
                print(peak_memory(loss, arguments.peak, arguments.throughput))
                continue
            t = throughput(loss, arguments.throughput)
            peaks = [peak_in_a_process(loss, kind, arguments.throughput) for kind in ("stock", "ours")]
            print(
                f"{loss:<5} {t['stock']:>14.2f} {t['ours']:>8.2f} {t['ratio']:>6.2f} x {peaks[0]:>18.2f} "
                f"{peaks[1]:>8.2f}",
                flush=True,
            )
        return
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
        for name in CASES:
            far, error = measured(name, Path(scratch))
            print(f"{name:<32}{far:.1e}   two workers; gradient check {error:.1e}", flush=True)


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
    training = config(
        loss,
        local_weight=local_weight,
        use_gpu=device == "cuda",
        batch_size=16,
        micro_batch_size=4,
        padding_free=False,
    )
    ours, stock = both_trainers(*planned(loss, 64, training), training, model, scratch, device)
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    ready = clock()
    check_weighted_gradient(ours)
    check = clock() - ready
    for step in range(-3, steps):
        for name, trainer in (("ours", ours), ("stock", stock)):
            seconds = micro_batch(trainer, ours.positions, (step % 4) * 4, loss, clock)
            if step >= 0:
                times[name].append(seconds)
            trainer.model.zero_grad()
    median = {name: 1000 * statistics.median(values) for name, values in times.items()}
    share = check / (100 * training.gradient_accumulation_steps * median["stock"] / 1000)
    return Cost(median["stock"], median["ours"], 1000 * check, share)


def both_trainers(
    rows: pa.Table, plan: TrainingPlan, weights: np.ndarray, training: Any, model: str, scratch: str, device: str
) -> tuple[Any, Any]:
    """Ours, and TRL's own trainer on the same rows with the same settings."""
    ours = trainers.make_trainer(
        rows,
        plan,
        weight_N=weights,
        model_path=model,
        dtype="float32" if device == "cpu" else "bfloat16",
        trust_remote_code=False,
        training=training,
        seed=0,
        output_dir=scratch,
        deepspeed=None,
    )
    stock_class = next(base for base in type(ours).__mro__ if base.__name__ == f"{training.loss.upper()}Trainer")
    untokenised = {"_prepare_dataset": lambda _self, dataset, *_, **__: dataset}
    stock = type("Stock", (stock_class,), untokenised)(
        model=model,
        args=ours.args,
        train_dataset=ours.positions.rows,
        processing_class=AutoTokenizer.from_pretrained(MODEL),
    )
    for trainer in (ours, stock):
        trainer.model.to(device)
        trainer.current_gradient_accumulation_steps = training.gradient_accumulation_steps
    return ours, stock


def micro_batch(trainer: Any, positions: PlannedDataset, first: int, loss: str, clock: Callable[[], float]) -> float:
    """Seconds of one forward and backward pass over the micro-batch that begins at a position."""
    items = [dict(positions[p]) for p in range(first, first + positions.plan.micro_batch_size)]
    batch = trainer.data_collator(items)
    tokens = torch.tensor(100) if loss == "sft" else None
    start = clock()
    trainer.training_step(trainer.model, batch, tokens)
    return clock() - start


TOKENS_PER_CHARACTER = 0.3  # of Llama-3's tokenizer on GSM8K
TEMPLATE_TOKENS = 60  # of Llama-3's chat template with the paper's instruction
TURNS = 5


def throughput(loss: str, data: Path) -> dict[str, float]:
    """Examples a second of process time, and how many times TRL's: medians of five optimizer steps, micro-batches in turns;
    batch 16, micro-batch 4.
    """
    rates: dict[str, list[float]] = {"stock": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        kinds = real_lengths(loss, data, scratch)
        for trainer, positions in kinds.values():  # settles whether rows need padding
            micro_batch(trainer, positions, 0, loss, process_clock)
            trainer.optimizer.zero_grad()
        for turn in range(TURNS):
            seconds = dict.fromkeys(kinds, 0.0)
            for first in range(turn * 16, turn * 16 + 16, 4):
                for name, (trainer, positions) in kinds.items():
                    seconds[name] += micro_batch(trainer, positions, first, loss, process_clock)
            for name, (trainer, _) in kinds.items():
                trainer.optimizer.zero_grad()
                rates[name].append(16 / seconds[name])
            print(loss, {name: round(values[-1], 2) for name, values in rates.items()}, file=sys.stderr, flush=True)
    ratios = [ours / stock for ours, stock in zip(rates["ours"], rates["stock"], strict=True)]
    return {name: statistics.median(values) for name, values in (*rates.items(), ("ratio", ratios))}


def peak_in_a_process(loss: str, kind: str, data: Path) -> float:
    command = [sys.executable, __file__, "--throughput", str(data), "--losses", loss, "--peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(loss: str, kind: str, data: Path) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        trainer, positions = real_lengths(loss, data, scratch)[kind]
        for first in range(0, 32, 4):
            micro_batch(trainer, positions, first, loss, process_clock)
        trainer.optimizer.step()
    return peak_mib(os.getpid()) / 1024


def real_lengths(loss: str, data: Path, scratch: str) -> dict[str, tuple[Any, Any]]:
    """Both trainers, each with its examples in the order that it would train them in, of a random 12M Llama whose head has the 1B's share of the weights, on rows as long as GSM8K's."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    shape = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 10}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=7680, pad_token_id=0, num_key_value_heads=5, tie_word_embeddings=True, **shape)
    )
    path = f"{scratch}/model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    training = config(loss, batch_size=16, micro_batch_size=4, warmup_ratio=0.1, max_grad_norm=1.0)
    rng, rows = np.random.default_rng(0), []
    with gzip.open(data / "responses" / "responses_gsm8k_pooled.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            good, bad = rng.choice(row["responses"], size=2, replace=False)
            counts = {"prompt_ids": TEMPLATE_TOKENS + TOKENS_PER_CHARACTER * len(row["question"])}
            for name, text in zip(NAMES_OF_IDS[loss], (good, bad), strict=False):
                counts[name] = 1 + TOKENS_PER_CHARACTER * len(text)
            ids = {name: rng.integers(10, 7680, int(count)).tolist() for name, count in counts.items()}
            rows.append({"question_id": row["id"], **ids, **({"label": len(rows) % 2 == 0} if loss == "kto" else {})})
            if len(rows) == 16 * TURNS:
                break
    table = pa.Table.from_pylist(rows)
    ones, tokens, ids = np.ones(len(rows)), np.array(lengths(table, loss)[1]), [row["question_id"] for row in rows]
    kinds = (TrainingConfig(loss=loss, epochs=1, local_weight=kind) for kind in ("none", "perplexity"))
    level, drawn = (plan_training(ones, tokens, ids, settings, seed=0) for settings in kinds)
    ours, stock = both_trainers(table, level, ones, training, path, scratch, "cpu")
    for trainer in (ours, stock):
        trainer.create_optimizer()
    return {"stock": (stock, PlannedDataset(table, drawn, ones, loss)), "ours": (ours, ours.positions)}


NAMES_OF_IDS = {"sft": ["completion_ids"], "dpo": ["chosen_ids", "rejected_ids"], "kto": ["completion_ids"]}


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
