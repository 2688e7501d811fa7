#!/usr/bin/env bash
# An exported model in lm-evaluation-harness, from the repository's root:
#   smollm2/harness/run.sh MODEL OUTPUT [--limit N]
# e.g. smollm2/harness/run.sh runs/smollm2/round-00/arms/east/model /tmp/harness
# It makes an environment of its own beside OUTPUT once. smollm2/harness/compare.py sets its answers beside ours.
set -euo pipefail
model=$1 output=$2
shift 2
venv="$output/venv"
if [ ! -x "$venv/bin/lm_eval" ]; then
  mkdir -p "$output"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "torch==2.13.0+cpu" || "$venv/bin/python" -m pip install --quiet "torch==2.13.0"
  "$venv/bin/python" -m pip install --quiet "lm-eval[hf]==0.4.13" "transformers==5.19.0"
fi
HF_HUB_OFFLINE=1 "$venv/bin/lm_eval" --model hf --model_args "pretrained=$model,dtype=bfloat16" --device cpu --batch_size 16 \
  --tasks word_problems --include_path smollm2/harness --apply_chat_template \
  --system_instruction 'Please reason step by step, and put your final answer within \boxed{}.' \
  --output_path "$output" --log_samples "$@"
