"""`east-ray doctor --probe`: what this installation really does, for versions and hardware that are not ours.

Each probe measures one assumption of ours about a library and says what was expected, what was found, and what follows
(docs/compatibility.md lists the assumptions). Engines and trainings run in processes of their own, `probe_children.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from east_ray.config.load import Config, from_dict
from east_ray.preflight.machine_checks import Finding, fail, ok
from east_ray.runs.directory import RunDirectory

TINY = Path(__file__).parents[1] / "tiny"
CHILD_SECONDS = 300
HOSTILE = ("9^{9^{9^{9}}}", r"\sum_{n=1}^{10^{12}} \frac{1}{n}", r"\int_0^1 x^{x^{x}} dx", "99999999!")
DEADLINE_SECONDS = 2.0
FOLLOWS = {  # what follows where an assumption does not hold, and what to do
    "grading": "grading may hang or misjudge: install the pinned math-verify and sympy",
    "store": "steps may miss each other's files there: keep run.dir on a store with strong read-after-write consistency",
    "seeds": "a resumed run draws other samples than an undisturbed one; both are fair draws",
    "token ids": "training would see other tokens than were sampled; report this",
    "exchange": "evaluations of several arms would be of mixed weights: do not trust them, and report this",
    "weights": "training would minimise another loss: install the pinned transformers, trl and deepspeed",
    "multipliers": "weights are rounded, by up to 0.4%: report this with your versions",
    "resuming": "a training that was killed ends in another model than an undisturbed one: install the pinned versions",
}


def probe(config: Config | None) -> Iterator[Finding]:
    """Run every probe, on the config's model and devices, or on the bundled model and this CPU. About two minutes."""
    config = config or from_dict(
        {"model": {"path": str(TINY / "model")}, "questions": {"train": str(TINY / "train.jsonl")}}, "the bundled model"
    )
    yield from probe_grading()
    if not RunDirectory(config.run.dir).is_local:
        yield probe_store(config)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        yield from probe_engines(config, scratch)
        yield from probe_trainings(config, scratch)


def _finding(name: str, holds: bool, expected: str, found: str) -> Finding:
    detail = f"expected {expected}; found {found}"
    return ok(name, detail) if holds else fail(name, detail, FOLLOWS[name.partition(",")[0]])


def probe_grading() -> Iterator[Finding]:
    """Symbolic comparisons that never end are stopped in time, and the next comparison is right."""
    from east_ray.answers.sandbox import Sandbox

    sandbox = Sandbox("east_ray.answers.math_verify_worker:compare", deadline_seconds=DEADLINE_SECONDS, memory_gib=1)
    try:
        easy = ("\\frac{1}{2}", "0.5")
        sandbox.run([easy])  # starts it
        started = time.monotonic()
        *hostile, after = sandbox.run([*(("1", answer) for answer in HOSTILE), easy])
        seconds = time.monotonic() - started
    finally:
        sandbox.close()
    most = len(HOSTILE) * (DEADLINE_SECONDS + 1)
    yield _finding(
        "grading",
        seconds <= most and after is not None and after[0] and not any(result and result[0] for result in hostile),
        f"{len(HOSTILE)} endless comparisons over within {most:g} s, none called right, and 1/2 = 0.5 afterwards",
        f"{seconds:.1f} s, {sum(r is None for r in hostile)} of them killed, 1/2 = 0.5 {bool(after and after[0])}",
    )


def probe_store(config: Config, objects: int = 20) -> Finding:
    """An object store shows what was just written, overwritten and deleted."""
    run, folder, stale = RunDirectory(config.run.dir), f".probe-{uuid.uuid4().hex[:8]}", 0
    for i in range(objects):
        name = (folder, f"{i}.txt")
        for content in (b"first", b"second"):
            run.write_bytes(content, *name)
            stale += run.read_bytes(*name) != content or not run.exists(*name)
    stale += len(run.list(folder, suffix=".txt")) != objects
    run.delete(folder)
    stale += bool(run.list(folder, suffix=".txt"))
    expected = f"{objects} objects read, listed and gone as they were written"
    return _finding("store", stale == 0, expected, f"{stale} stale answers" if stale else "so")


def probe_engines(config: Config, scratch: Path) -> Iterator[Finding]:
    """Seeds, token ids and the exchange of weights, in one engine and a fresh one."""
    from east_ray.models import local_model

    base = local_model(config.model.path, config.model.revision)
    other = str(_perturbed(base, scratch / "other"))
    settings = {"config": config.model_dump(mode="json"), "base": base, "other": other}
    first, second = (_child("engine", {**settings, "open": path}, scratch) for path in (base, other))
    for result in (first, second):
        if "error" in result:
            remedy = "`east-ray sample` on a few questions shows all that vLLM says"
            yield fail("engine", f"does not run: {result['error']}", remedy)
            return
    total, kept = sum(map(len, first["together"])), first["kept"]
    same, every = _equal(first["together"], first["alone"]), f"{total} of {total}"
    yield _finding("seeds", same == total, f"{every} samples the same alone as in company", f"{same}")
    expected = f"{every} completions counted and kept by the ids that decode to their text"
    yield _finding("token ids", kept == total, expected, f"{kept}")
    same, stale = (_equal(first["exchanged"], other) for other in (second["together"], first["together"]))
    expected = f"{every} samples of exchanged weights as from a fresh engine, few as before"
    yield _finding("exchange", same == total and stale < total / 2, expected, f"{same}, {stale} as before")


def _equal(a: list[list[str]], b: list[list[str]]) -> int:
    return sum(x == y for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def _perturbed(base: str, target: Path) -> Path:
    """A copy of a model whose weights are half noise, so that hardly a sample stays the same."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.bin", "original"))
    generator = torch.Generator().manual_seed(0)
    for file in target.glob("*.safetensors"):
        tensors = load_file(str(file))
        for tensor in tensors.values():
            noise = torch.randn(tensor.shape, generator=generator) * 0.5 * tensor.float().std(correction=0)
            tensor += noise.to(tensor.dtype)
        save_file(tensors, str(file), metadata={"format": "pt"})
    return target


def probe_trainings(config: Config, scratch: Path) -> Iterator[Finding]:
    """Two steps in the config's type and in float32, as a worker takes them: under DeepSpeed, without Ray."""
    settings = {"config": config.model_dump(mode="json"), "scratch": str(scratch)}
    results = {
        dtype: _child("training", {**settings, "dtype": dtype}, scratch)
        for dtype in dict.fromkeys((config.model.dtype, "float32"))
    }
    for dtype, result in results.items():
        if "error" in result:
            yield fail("training", f"does not run in {dtype}: {result['error']}", "the message names the remedy")
            return
        distance, multiplier, resumed = result["distance"], result["multiplier"], result["resumed"]
        most = 1e-4 if dtype == "float32" else 0.05
        expected = f"the weighted gradient within {most:g} of the formulas'"
        yield _finding(f"weights, {dtype}", distance <= most, expected, f"{distance:.1e}")
        expected = "weights in float32 where they meet the gradient"
        yield _finding(f"multipliers, {dtype}", multiplier == "torch.float32", expected, multiplier)
        expected = (
            "the second of two steps, taken again from the first's checkpoint, ends in the same weights bit for bit"
        )
        yield _finding(f"resuming, {dtype}", resumed, expected, "so" if resumed else "other weights")


def _child(name: str, settings: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Findings of a child; {"error": the last line it wrote} when there are none."""
    given = scratch / f"{name}-{uuid.uuid4().hex}.json"
    found = given.with_suffix(".found")
    given.write_text(json.dumps({**settings, "found": str(found)}), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "east_ray.preflight.probe_children", name, str(given)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **alone}, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {CHILD_SECONDS} s"}
    if not found.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(found.read_text(encoding="utf-8"))
