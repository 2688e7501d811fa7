#!/usr/bin/env bash
# One would guess: a float32 column of a batch (a weight per example, a precomputed log-probability) reaches compute_loss as the
# collator made it, whatever type the model computes in; with bf16=True alone it does.
# True (transformers 5.19.0, deepspeed 0.19.8): with a DeepSpeed configuration the Trainer casts every floating tensor of a batch
# to the model's type before compute_loss sees it.
# Why it matters: per-example weights are off by up to 0.4%, and a reference log-probability of -93.21 becomes -93: DPO with
# reference log-probabilities that were computed beforehand trains towards another margin. Nothing warns.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip "torch==2.13.0+cpu" || $pip "torch==2.13.0"
$pip setuptools wheel "transformers==5.19.0" "accelerate==1.15.0"
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $pip --no-build-isolation "deepspeed==0.19.8"
cd "$work"
export DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29741
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import deepspeed
import deepspeed.ops
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

print({name: version(name) for name in ("torch", "transformers", "deepspeed")})
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
GIVEN = [1.003, -93.21]
rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "given": value} for value in GIVEN]
arrived = {}


class Seeing(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        arrived[self.is_deepspeed_enabled] = inputs.pop("given")
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


def collate(items):
    return {name: torch.tensor([item[name] for item in items]) for name in items[0]}


ZERO = {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}
for settings in (None, ZERO):
    arguments = TrainingArguments(
        "out", use_cpu=True, bf16=True, max_steps=1, per_device_train_batch_size=2, remove_unused_columns=False,
        optim="adamw_torch", report_to=[], save_strategy="no", disable_tqdm=True, deepspeed=settings,
    )
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
    Seeing(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
for with_deepspeed, values in arrived.items():
    print(f"deepspeed {with_deepspeed}: given {GIVEN}, arrived {values.dtype} {sorted(values.tolist(), reverse=True)}")
dtypes = {with_deepspeed: values.dtype for with_deepspeed, values in arrived.items()}
assert dtypes == {False: torch.float32, True: torch.bfloat16}, f"CHANGED: {dtypes}"
PYTHON
