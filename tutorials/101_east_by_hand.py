"""EAST by hand: one round of the paper's Algorithm 1 on the bundled tiny model, from sampling to accuracy. No Ray, no vLLM.

    python tutorials/101_east_by_hand.py            # about three minutes on two CPU cores

`east-ray run jobs/configs/tiny.toml` does the same with every question, at scale, and survives any kill. Here nothing is
hidden: each function below is one step of the paper, and the comments name its equations.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from east_ray import Grader, WeightMapping, entropy, weights

TINY = Path(__file__).resolve().parent.parent / "east_ray" / "tiny"
tokenizer = AutoTokenizer.from_pretrained(TINY / "model", padding_side="left")
grader = Grader()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=32, help="n, completions per question (the paper: 128)")
    parser.add_argument("--test", type=int, default=300, help="test questions")
    args = parser.parse_args()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32)
    train, test = read("train")[: args.questions], read("test")[: args.test]
    print(f"before training      {accuracy(base, test):6.1%} of {len(test)} test questions")

    completions = sample(base, train, args.samples)  # step 1
    kept, entropies = [], []
    for question, texts in zip(train, completions, strict=True):
        graded = grader.grade(question["answer"], [text for text, _ in texts])  # steps 2 and 3: verify and cluster
        right = [i for i, verdict in enumerate(graded.verdicts) if verdict == "correct"]
        if 0 < len(right) < len(texts):  # step 5: keep = "mixed", at least one right and one wrong
            entropies.append(entropy(graded.cluster_sizes))  # step 4, eq. 1
            kept.append((question, texts[random.Random(question["id"]).choice(right)][1]))  # step 7: one positive
    print(f"kept {len(kept)} of {len(train)} questions; entropy {min(entropies):.2f} to {max(entropies):.2f} nats")

    for name, exponent in (("vanilla, a = 0", 0.0), ("EAST,    a = 1", 1.0)):
        weight = weights(entropies, WeightMapping(exponent=exponent))  # step 6, eq. 6: mean exactly 1
        model = fine_tune(copy.deepcopy(base), kept, weight)  # step 8, eq. 7
        print(f"{name}       {accuracy(model, test):6.1%}   weights {min(weight):.2f} to {max(weight):.2f}")  # step 9
    print(
        f"One standard error is about {100 * (0.25 / len(test)) ** 0.5:.1f} points: compare the two only with a paired test."
    )


def read(split: str) -> list[dict[str, str]]:
    """Rows with `id`, `question` and `answer`."""
    return [json.loads(line) for line in (TINY / f"{split}.jsonl").read_text().splitlines()]


def prompts_of(questions: Sequence[dict[str, str]]) -> list[str]:
    """Each question in the model's own chat template."""
    chats = [[{"role": "system", "content": ""}, {"role": "user", "content": q["question"]}] for q in questions]
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]


@torch.no_grad()
def generate(model: torch.nn.Module, prompts: Sequence[str], **settings: object) -> list[list[int]]:
    """Token ids of one completion per prompt, the end token included."""
    batch = tokenizer(list(prompts), add_special_tokens=False, padding=True, return_tensors="pt")
    rows = model.generate(**batch, max_new_tokens=96, pad_token_id=tokenizer.pad_token_id, **settings)
    return [
        [token for token in row.tolist() if token != tokenizer.pad_token_id]
        for row in rows[:, batch.input_ids.shape[1] :]
    ]


def sample(model: torch.nn.Module, questions: Sequence[dict[str, str]], n: int) -> list[list[tuple[str, list[int]]]]:
    """n completions per question at temperature 1, each as text and as the token ids that were sampled."""
    completions = []
    for prompt in prompts_of(questions):
        ids = generate(model, [prompt] * n, do_sample=True, temperature=1.0, top_k=0)
        completions.append(list(zip(tokenizer.batch_decode(ids, skip_special_tokens=True), ids, strict=True)))
    return completions


def fine_tune(
    model: torch.nn.Module, kept: Sequence[tuple[dict[str, str], list[int]]], weight: Sequence[float]
) -> torch.nn.Module:
    """Three epochs of SFT; example i's loss is multiplied by weight[i] (token mean over the batch, docs/method.md)."""
    prompts = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts_of([question for question, _ in kept])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for epoch in range(3):
        order = random.Random(epoch).sample(range(len(kept)), len(kept))
        for batch in (order[start : start + 16] for start in range(0, len(order), 16)):
            inputs = pad_sequence([torch.tensor(prompts[i] + kept[i][1]) for i in batch], True)
            labels = pad_sequence([torch.tensor([-100] * len(prompts[i]) + kept[i][1]) for i in batch], True, -100)
            logits = model(inputs).logits[:, :-1]  # right-padded, so causal attention never sees the padding
            nll = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)  # per example
            loss = (torch.tensor([float(weight[i]) for i in batch]) * nll).sum() / (labels[:, 1:] != -100).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: torch.nn.Module, questions: Sequence[dict[str, str]]) -> float:
    """Share of questions answered correctly by greedy decoding."""
    texts = tokenizer.batch_decode(generate(model, prompts_of(questions), do_sample=False), skip_special_tokens=True)
    verdicts = [grader.grade(q["answer"], [text]).verdicts[0] for q, text in zip(questions, texts, strict=True)]
    return verdicts.count("correct") / len(verdicts)


if __name__ == "__main__":
    main()
