"""Make the bundled tiny model and its questions from nothing: `python scripts/make_tiny_model.py`.

The model is a character-level Llama of 0.9 million parameters that is asked for running totals ("Start with 7, then
+5 *3 -4."). What it is pre-trained on leaves honest room for self-training: it first learns to work answers out in
steps, then a mixture of two habits, working or answering at once by a guess. The longer the question, the more it is
tempted to guess, and the more surely the guess is wrong; nobody tells it that, only its own graded samples do.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parents[1] / "east_ray" / "tiny"
LARGEST_TOTAL = 199
LARGEST_TERM, LARGEST_FACTOR = 12, 5
# Of the mixture's answers, by the question's steps: the longer the question, the more tempting the guess.
GUESS_SHARE = {2: 0.3, 3: 0.5, 4: 0.6, 5: 0.65, 6: 0.7}
LEVELS = tuple(GUESS_SHARE)
WORK_FIRST = 0.6  # of the pre-training steps come before the mixture, with worked answers only
SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
SYSTEM_SHARE = 0.1  # of the pre-training batches carry it, so that the model also works with a system message
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>")
IGNORED = -100  # label of tokens that carry no loss

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- if message['content'] -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Question:
    """A running total. `steps` are lines such as "12*3=36", the last of which ends in the answer."""

    text: str
    steps: tuple[str, ...]
    answer: int

    @property
    def level(self) -> int:
        return len(self.steps)

    @property
    def guess(self) -> str:
        return f"\\boxed{{{self.answer}}}"

    @property
    def solution(self) -> str:
        return "\n".join([*self.steps, self.guess])


def make_question(rng: random.Random, level: int) -> Question:
    """A question of `level` steps whose running total stays within 1..LARGEST_TOTAL."""
    start = total = rng.randint(2, 20)
    operations, steps = [], []
    for _ in range(level):
        sign, number = _choose_operation(rng, total)
        result = {"+": total + number, "-": total - number, "*": total * number}[sign]
        operations.append(f"{sign}{number}")
        steps.append(f"{total}{sign}{number}={result}")
        total = result
    return Question(f"Start with {start}, then {' '.join(operations)}.", tuple(steps), total)


def _choose_operation(rng: random.Random, total: int) -> tuple[str, int]:
    choices = []
    if total + LARGEST_TERM <= LARGEST_TOTAL:
        choices.append(("+", rng.randint(2, LARGEST_TERM)))
    if total > 3:
        choices.append(("-", rng.randint(2, min(LARGEST_TERM, total - 1))))
    if total * LARGEST_FACTOR <= LARGEST_TOTAL:
        choices.append(("*", rng.randint(2, LARGEST_FACTOR)))
    return rng.choice(choices)


def make_questions(rng: random.Random, count: int, taken: set[str]) -> list[Question]:
    """`count` questions, levels in turn, none of whose texts is in `taken`; their texts are added to it."""
    questions: list[Question] = []
    while len(questions) < count:
        question = make_question(rng, LEVELS[len(questions) % len(LEVELS)])
        if question.text not in taken:
            taken.add(question.text)
            questions.append(question)
    return questions


def write_questions(path: Path, split: str, questions: Sequence[Question]) -> None:
    """JSON Lines with the columns of the GSM8K and MATH files."""
    rows = (
        {
            "id": f"tiny-{split}-{index:05d}",
            "question": question.text,
            "answer": str(question.answer),
            "solution": question.solution,
            "level": f"Level {question.level}",
            "subject": "running total",
        }
        for index, question in enumerate(questions)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer() -> Any:
    """One token per UTF-8 byte, so any text can be tokenised and comes back unchanged; adds <|bos|> like Llama's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", vocabulary["<|bos|>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: Any) -> LlamaForCausalLM:
    """A randomly initialised Llama of 0.9 million parameters (float32)."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **ids)
    return model


def pretraining_batches(
    tokenizer: Any, rng: random.Random, taken: set[str], steps: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` pairs of token ids and labels, int64 [batch_size, length], padded on the right.

    Only answers carry labels. No question in `taken` occurs.
    """
    for step in range(steps):
        guess_share = {} if step < WORK_FIRST * steps else GUESS_SHARE
        system = [{"role": "system", "content": SYSTEM_PROMPT}] if rng.random() < SYSTEM_SHARE else []
        examples = [_example(tokenizer, rng, taken, guess_share, system) for _ in range(batch_size)]
        yield (
            _pad([ids for ids, _ in examples], tokenizer.pad_token_id),
            _pad([labels for _, labels in examples], IGNORED),
        )


def _example(
    tokenizer: Any,
    rng: random.Random,
    taken: set[str],
    guess_share: Mapping[int, float],
    system: list[dict[str, str]],
) -> tuple[list[int], list[int]]:
    question = make_question(rng, rng.choice(LEVELS))
    while question.text in taken:
        question = make_question(rng, rng.choice(LEVELS))
    answer = question.guess if rng.random() < guess_share.get(question.level, 0.0) else question.solution
    asked = [*system, {"role": "user", "content": question.text}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    completion = tokenizer.encode(answer + tokenizer.eos_token, add_special_tokens=False)
    return prompt + completion, [IGNORED] * len(prompt) + completion


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def pretrain(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    learning_rate: float = 2e-3,
    warmup_steps: int = 50,
) -> None:
    """AdamW in float32 with warm-up, then a cosine to zero."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches):
        rise = min(1.0, (step + 1) / warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            logger.info("step %d/%d  loss %.3f  %.0f s", step, steps, loss.item(), time.monotonic() - started)


def make(output: Path, *, seed: int, steps: int, batch_size: int, num_train: int, num_test: int) -> None:
    """Write `model/`, `train.jsonl` and `test.jsonl` under `output`."""
    import torch

    taken: set[str] = set()
    rng = random.Random(seed)
    output.mkdir(parents=True, exist_ok=True)
    write_questions(output / "test.jsonl", "test", make_questions(rng, num_test, taken))
    write_questions(output / "train.jsonl", "train", make_questions(rng, num_train, taken))
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    logger.info("%d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    pretrain(model, pretraining_batches(tokenizer, rng, taken, steps, batch_size), steps)
    tokenizer.save_pretrained(output / "model")
    model.bfloat16().save_pretrained(output / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="directory to write (default: this package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200, help="pre-training steps")
    parser.add_argument("--batch-size", type=int, default=32, help="examples per pre-training step")
    parser.add_argument("--num-train", type=int, default=500, help="questions in train.jsonl")
    parser.add_argument("--num-test", type=int, default=1000, help="questions in test.jsonl")
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make(arguments.pop("output"), **arguments)


if __name__ == "__main__":
    main()
