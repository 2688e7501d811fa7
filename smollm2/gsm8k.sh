#!/usr/bin/env bash
# Human solutions first, then self-training with GSM8K's test of 1,319 questions as the measure: smollm2/gsm8k.sh [--set KEY=VALUE ...]
# The first part is plain SFT on GSM8K's own training solutions, imported as if they had been sampled. Run from the
# repository's root with `east-ray` on the path, on one GPU. What is finished is kept: the same command continues.
set -euo pipefail
config=jobs/configs/smollm2-gsm8k.toml
train=${GSM8K_TRAIN:-hf://openai/gsm8k/main:train}
run=runs/smollm2-gsm8k
common=(--set "questions.train=$train" "$@")
human=("${common[@]}" --set "run.dir=$run/human" --set selection.keep=solved --set training.sft.learning_rate=1e-4
  --set 'arms=[{name = "human", set = {"weighting.exponent" = 0.0}}]')
python -m smollm2.prepare
solutions=smollm2/built/gsm8k-solutions.jsonl
if [ ! -f "$run/human/round-00/arms/human/evaluation/metrics.json" ]; then
  python -m smollm2.human_solutions "$train" "$solutions"
  east-ray import-samples "$config" "$solutions" "${human[@]}"
  east-ray run "$config" "${human[@]}"
fi
east-ray reproduce "$config" "${common[@]}" --set "run.dir=$run/self" --set "model.path=$run/human/round-00/arms/human/model"
