"""The probes' child processes: one engine, or one short training, each reporting what it found.

`python -m east_ray.preflight.probe_children NAME SETTINGS`, with a JSON file of settings. What breaks here must not take
the doctor with it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from east_ray.config.load import from_dict
from east_ray.records import EXAMPLES, check_schema

SAMPLES = 8  # per prompt


def run_engine(settings: dict[str, Any]) -> dict[str, Any]:
    """In a child: sample from one engine, together and alone, and again after `other` was loaded."""
    from east_ray.models import load_tokenizer
    from east_ray.rollouts.engine import EngineSettings, Request, question_seed
    from east_ray.rollouts.vllm_engine import VllmEngine

    config = from_dict(settings["config"], "the doctor")
    sampling = config.sampling.model_copy(update={"max_new_tokens": 32, "kv_cache_gib": 1.0})
    tokenizer = load_tokenizer(config.model)
    requests = []
    for i in range(4):
        messages = [{"role": "user", "content": f"Start with {i + 7}, then +{i + 2} -3."}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        requests.append(Request(str(i), ids, SAMPLES, question_seed(0, 0, str(i))))
    longest = max(len(request.prompt_token_ids) for request in requests)
    engine = VllmEngine(EngineSettings(settings["open"], config.model, sampling, longest))

    def texts(results: Sequence[Any]) -> list[list[str]]:
        return [[completion.text for completion in completions] for completions in results]

    try:
        together: list[Any] = engine.generate(requests)
        found: dict[str, Any] = {"together": texts(together)}
        if settings["open"] != settings["base"]:
            return found
        sampled = [completion for completions in together for completion in completions]
        found["kept"] = sum(
            completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            and completion.num_tokens == len(completion.token_ids)
            for completion in sampled
        )
        found["alone"] = texts([engine.generate([request])[0] for request in reversed(requests)][::-1])
        engine.load(settings["other"])
        found["exchanged"] = texts(engine.generate(requests))
        return found
    finally:
        engine.close()


def run_training(settings: dict[str, Any]) -> dict[str, Any]:
    """In a child: two SFT steps on a few questions, and the second again from the first's checkpoint.

    Returns the gradient check's figure, the weights' type, and whether both ways end in the same model.
    """
    import numpy as np
    import pyarrow as pa
    import torch
    from transformers import TrainerCallback

    from east_ray.models import load_tokenizer, local_model
    from east_ray.training.batches import plan_training
    from east_ray.training.gradient_check import check_weighted_gradient
    from east_ray.training.tokens import lengths, tokenise_examples
    from east_ray.training.trainers import make_trainer
    from east_ray.training.worker import deepspeed_config, forget_training, gathered_state, set_up_deepspeed

    config = from_dict(settings["config"], "the doctor")
    changes = {
        "loss": "sft",
        "batch_size": 4,
        "micro_batch_size": 2,
        "workers": 1,
        "max_steps": 2,
        "checkpoint_steps": 1,
    }
    training = config.training.model_copy(update={**changes, "report_to": ("none",)})
    set_up_deepspeed(training.use_gpu)
    numbers = range(2, 10)
    prompts = [f"Start with {n}, then +{n}." for n in numbers]
    table = pa.table(
        {
            "question_id": [str(n) for n in numbers],
            "prompt": prompts,
            "completion": [f"{n}+{n}={2 * n}\n\\boxed{{{2 * n}}}" for n in numbers],
            "weight": [n / 5.5 for n in numbers],
        }
    )
    tokenizer = load_tokenizer(config.model)
    examples = check_schema(table, EXAMPLES["sft"], "the probe's examples")
    rows = tokenise_examples(examples, tokenizer, "sft", {}, tokenizer.eos_token_id)
    weight_N = table["weight"].to_numpy()
    tokens_N = np.array(lengths(rows, "sft")[1])
    plan = plan_training(weight_N, tokens_N, table["question_id"].to_pylist(), training, seed=0)
    found: dict[str, Any] = {}

    class Check(TrainerCallback):
        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found.setdefault("distance", check_weighted_gradient(self.trainer).distance)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found["multiplier"] = str(self.trainer.scale_B.dtype)
            control.should_save = state.global_step == 1

    output = os.path.join(settings["scratch"], settings["dtype"])
    ends: list[dict[str, torch.Tensor]] = []
    for checkpoint in (None, os.path.join(output, "checkpoint-1")):
        check = Check()
        check.trainer = trainer = make_trainer(
            rows,
            plan,
            weight_N=weight_N,
            model_path=local_model(config.model.path, config.model.revision),
            dtype=settings["dtype"],
            trust_remote_code=config.model.trust_remote_code,
            training=training,
            seed=0,
            output_dir=output,
            deepspeed=deepspeed_config(training),
            callbacks=[check],
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append({name: tensor.cpu().clone() for name, tensor in gathered_state(trainer, training).items()})
        del trainer, check
        forget_training()
    whole, resumed = ends
    found["resumed"] = all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    return found


CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"engine": run_engine, "training": run_training}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    Path(asked["found"]).write_text(json.dumps(CHILDREN[sys.argv[1]](asked)), encoding="utf-8")
