#!/usr/bin/env bash
# One would guess: a model loaded for ZeRO-3 in bf16 differs from the same model loaded without it only in where its parameters
# lie; DeepSpeed's engine says it casts parameters only and preserves float32 buffers such as rotary frequencies.
# True (transformers 5.19.0, deepspeed 0.19.8): from_pretrained under a ZeRO-3 configuration builds the model inside
# deepspeed.zero.Init, which casts every tensor that a constructor makes. inv_freq, float32 otherwise, is bfloat16 and rounded.
# Why it matters: angles at position 1,000 are off by up to a radian (theta 5e5), in training but not in sampling. Gradients of a
# 0.9 M parameter Llama at about 60 tokens were 4% to 14% away from those of the same model under ZeRO-2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip "torch==2.13.0+cpu" || $pip "torch==2.13.0"
$pip setuptools wheel "transformers==5.19.0" "accelerate==1.15.0"
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $pip --no-build-isolation "deepspeed==0.19.8"
cd "$work"
export DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29731
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import deepspeed
import deepspeed.ops
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations import HfDeepSpeedConfig

print({name: version(name) for name in ("torch", "transformers", "deepspeed")})
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("model")
dtypes = {}
for stage in (2, 3):
    settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    keep = HfDeepSpeedConfig(settings)
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
    frequencies = model.model.rotary_emb.inv_freq
    dtypes[stage] = frequencies.dtype
    print(f"ZeRO-{stage}: inv_freq {frequencies.dtype} {[round(value, 6) for value in frequencies.double().tolist()[:4]]}")
assert dtypes == {2: torch.float32, 3: torch.bfloat16}, f"CHANGED: {dtypes}"
PYTHON
