"""The kill matrix: every loss, full and LoRA, ZeRO 2 and 3, each rank killed between and during checkpoints; and the driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from east_ray.runs.directory import RunDirectory, fingerprint
from east_ray.training.export import weights_digest
from tests.support.ray_processes import ENVIRONMENT
from tests.support.small_run import ARM, write_config
from tests.support.training_kills import assert_same_training, start, train_with_kills
from tests.support.training_rows import MODEL, config, examples

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
    from tests.support.training_kills import start
    from tests.support.training_rows import config
    from east_ray.runs.directory import RunDirectory, fingerprint

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 << 20)
    training = config("dpo", workers=2, micro_batch_size=2, epochs=4, checkpoint_steps=3)
    summary = start(RunDirectory(sys.argv[1]), training, sys.argv[2])
    print(summary.digest)
"""


@pytest.fixture(params=["disk", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """A run directory on disk, or on an S3 server of our own."""
    if request.param == "disk":
        yield RunDirectory(str(tmp_path / "run"))
        return
    moto = pytest.importorskip("moto.server", reason="install the s3 extra: pip install -e '.[s3]'")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("EAST_RAY_CACHE", str(tmp_path / "cache"))
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    where = "{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=f"http://{where}", region_name="us-east-1").create_bucket(Bucket="east")
    yield RunDirectory(f"s3://east/run?endpoint_override={where}&scheme=http&region=us-east-1")
    server.stop()


@pytest.mark.timeout(1800)
def test_a_killed_driver_run_again_ends_in_the_same_model(kept: RunDirectory, tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    kept.write_table(examples("dpo", 80), "examples/dpo.parquet")
    assert drive(kept, "undisturbed", log).wait() == 0, log.read_text()
    for step in (3, 18):  # a checkpoint of the first life, and one of the second
        process = drive(kept, "disturbed", log)
        name = f"checkpoint-{step}-{fingerprint('disturbed/model')[:8]}"
        while not kept.exists("disturbed", "training", "state", name):
            assert process.poll() is None, f"ended before it could be killed: {log.read_text()}"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not kept.exists("disturbed", "model", "config.json")
    assert drive(kept, "disturbed", log).wait() == 0, log.read_text()

    digests = [weights_digest(kept.local_copy(arm, "model")) for arm in ("undisturbed", "disturbed")]
    assert digests[0] == digests[1]
    rows = kept.read_bytes("disturbed", "training", "log.jsonl").splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 41))
    assert kept.list("disturbed", "training") == ["log.jsonl"]


def drive(run: RunDirectory, output: str, log: Path) -> subprocess.Popen[bytes]:
    """A process that starts Ray and trains one arm."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DRIVER), run.uri, output],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.timeout(600)
def test_stopping_a_long_training_ends_the_command_and_all_it_started(
    signal_: signal.Signals, code: int, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    settings = ("training.epochs=1000", "sampling.num_samples=4", "questions.train_limit=64")
    command = [sys.executable, "-m", "east_ray", "run", str(write_config(tmp_path / "config.toml", str(run)))]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))],
            env={**os.environ, **ENVIRONMENT},
            stdout=file,
            stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's `&`
        )
    state = run / ARM / "training" / "state"
    while not list(state.glob("checkpoint-*")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal_)  # to the command alone, as a job server does
    assert process.wait(timeout=60) == code, log.read_text()
    assert "Stopped. What is finished is kept" in log.read_text()
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert not (run / ARM / "training" / "manifest.json").exists()


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
