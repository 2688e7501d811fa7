"""The kill matrix: every loss, full and LoRA, ZeRO 2 and 3, each rank killed between and during checkpoints; and the driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from training_kills import assert_same_training, start, train_with_kills
from training_rows import MODEL, config, examples

from east_ray.model_files import weights_digest
from east_ray.runs import RunDirectory

pytestmark = pytest.mark.slow

KILLS = [(1, "step"), (0, "step"), (1, "save"), (0, "save")]


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
@pytest.mark.timeout(1800)
def test_killing_any_rank_at_any_moment_ends_in_the_same_model(
    loss: str, lora: dict[str, Any] | None, zero_stage: int, tmp_path: Path, ray_session: None
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    training = config(
        loss,
        workers=2,
        micro_batch_size=2,
        epochs=2 if loss == "kto" else 4,
        checkpoint_steps=3,
        max_failures=8,
        zero_stage=zero_stage,
        lora=lora,
    )
    run.write_table(examples(loss, 80), f"examples/{loss}.parquet")
    undisturbed = start(run, training, "undisturbed")
    disturbed, killer = train_with_kills(run, training, KILLS)
    assert [(rank, moment) for rank, moment, _ in killer.killed] == KILLS
    assert_same_training(run, undisturbed, disturbed)


DRIVER = """
    import json, sys
    import ray
    from training_kills import start
    from training_rows import config
    from east_ray.runs import RunDirectory

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 << 20)
    training = config("dpo", workers=2, micro_batch_size=2, epochs=4, checkpoint_steps=3)
    summary = start(RunDirectory(sys.argv[1]), training, sys.argv[2])
    print(summary.digest)
"""


@pytest.mark.timeout(1800)
def test_a_killed_driver_run_again_ends_in_the_same_model(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.write_table(examples("dpo", 80), "examples/dpo.parquet")
    assert drive(run, "undisturbed").wait() == 0

    state = Path(run.path("disturbed", "training", "state"))
    for checkpoints in (1, 2):
        process = drive(run, "disturbed")
        wait_for(lambda: len(list(state.glob("checkpoint-*"))) > 0, process)
        if checkpoints == 2:
            before = newest(state)
            wait_for(lambda: newest(state) > before, process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not Path(run.path("disturbed", "model")).exists()
    resumed = drive(run, "disturbed")
    assert resumed.wait() == 0

    digests = [weights_digest(run.path(arm, "model")) for arm in ("undisturbed", "disturbed")]
    assert digests[0] == digests[1]
    steps = [json.loads(line)["step"] for line in run.read_bytes("disturbed", "training", "log.jsonl").splitlines()]
    assert steps == list(range(1, 41))


def drive(run: RunDirectory, output: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), run.uri, output],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def newest(state: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in state.glob("checkpoint-*")), default=0)


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)


VLLM = """
    import json, sys
    from vllm import LLM, SamplingParams

    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, enable_chunked_prefill=False, max_model_len=256)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "merged"])
@pytest.mark.timeout(900)
def test_an_export_says_the_same_in_vllm_and_in_transformers(
    lora: dict[str, Any] | None, tmp_path: Path, ray_session: None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = RunDirectory(str(tmp_path / "run"))
    run.write_table(examples("sft", 40), "examples/sft.parquet")
    start(run, config("sft", workers=1, epochs=2, lora=lora, zero_stage=2), "arm")
    path = run.path("arm", "model")

    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = [
        tokenizer(p, add_special_tokens=False)["input_ids"] for p in examples("sft", 12, 5)["prompt"].to_pylist()
    ]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    expected = []
    for ids in prompts:
        with torch.no_grad():
            output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=48)
        expected.append(output[0, len(ids) :].tolist())
    engine = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
    }
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(VLLM), path, json.dumps(prompts)],
        env={**os.environ, **engine},
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(made.stdout.strip().splitlines()[-1]) == expected
    assert expected != [[]] * len(prompts)
    assert (Path(path) / "adapter").is_dir() == (lora is not None)
    assert Path(path) != MODEL
