"""Train the shipped LoRA adapter: SmolLM2-135M-Instruct on worked word problems, seeded; a quarter of an hour of one CPU core.

`python -m smollm2.warm_up MODEL DIRECTORY` writes `step-N/` every 25 steps. Not needed to use the adapter in
`smollm2/adapter/`, which is step 200 of its 250. The rendered prompt is the application's own default, so the model is
warmed up on what it will be asked. It stops well before the model is good at the problems: self-training needs something
left to learn.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from east_ray.config.sections import QuestionsConfig
from east_ray.questions.prompts import Prompts
from smollm2.word_problems import WARM_UP, warm_up_examples

logger = logging.getLogger(__name__)

RANK, ALPHA = 8, 16
BATCH_SIZE, LEARNING_RATE, RISE, SEED = 8, 5e-4, 10, 1
STEPS = WARM_UP // BATCH_SIZE
WINDOW = 16  # batches whose examples are sorted by length together, so that hardly anything is padded
EVERY = 25


def batches(tokenizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield STEPS pairs of token ids and a mask of the completions' tokens, [batch, length], padded on the right."""
    prompts = Prompts(tokenizer, QuestionsConfig(train="unused"))
    examples = []
    for question, solution in warm_up_examples():
        prompt = prompts.token_ids(prompts.text(question))
        examples.append((prompt, tokenizer.encode(solution + tokenizer.eos_token, add_special_tokens=False)))
    rng = random.Random(SEED)
    for start in range(0, len(examples), WINDOW * BATCH_SIZE):
        window = sorted(examples[start : start + WINDOW * BATCH_SIZE], key=lambda e: len(e[0]) + len(e[1]))
        groups = [window[i : i + BATCH_SIZE] for i in range(0, len(window), BATCH_SIZE)]
        rng.shuffle(groups)
        yield from (_tensors(group, tokenizer.pad_token_id) for group in groups)


def _tensors(group: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(completion) for prompt, completion in group)
    ids, mask = [], []
    for prompt, completion in group:
        rest = longest - len(prompt) - len(completion)
        ids.append([*prompt, *completion, *[pad] * rest])
        mask.append([0] * len(prompt) + [1] * len(completion) + [0] * rest)
    return torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)


def loss_of(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the completions' tokens. The output head sees their positions alone.

    No attention mask: padding is on the right, where causal attention never looks.
    """
    base = model.get_base_model()
    hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask[:, 1:]]
    return torch.nn.functional.cross_entropy(base.lm_head(hidden).float(), ids[:, 1:][mask[:, 1:]])


def warm_up(model_path: str, output: Path) -> None:
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    started = time.monotonic()
    for step, (ids, mask) in enumerate(batches(tokenizer), start=1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(step / RISE, 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, ids, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        logger.info(
            "step %d/%d  loss %.3f  %d tokens  %.0f s",
            step,
            STEPS,
            loss.item(),
            ids.numel(),
            time.monotonic() - started,
        )
        if step % EVERY == 0 or step == STEPS:
            save(model, output / f"step-{step}")


def save(model: Any, directory: Path) -> None:
    """The adapter in bfloat16: half the size, and the merged model is bfloat16 anyway."""
    state = {name: value.bfloat16() for name, value in model.state_dict().items() if "lora_" in name}
    model.peft_config["default"].base_model_name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(directory, state_dict=state)
    (directory / "README.md").unlink()  # peft's, empty but for the base's path on this machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", help="the converted model, as `python -m smollm2.prepare` leaves it in smollm2/built/base"
    )
    parser.add_argument("output", type=Path, help="directory for the checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    warm_up(arguments.model, arguments.output)


if __name__ == "__main__":
    main()
