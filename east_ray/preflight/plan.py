"""The page of text that `east-ray plan` prints: an estimate, and the measured figures once there is a run."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table

from east_ray.evaluation.summary import detectable_differences
from east_ray.formatting import counted, duration
from east_ray.preflight.actual import Figure, compare, planned_figures
from east_ray.preflight.devices import ASSUMED
from east_ray.preflight.estimate import CostEstimate, PoolPlan
from east_ray.preflight.memory import Memory
from east_ray.runs.directory import RunDirectory

WIDTH = 118


def render(estimate: CostEstimate) -> str:
    """Workload, one block per pool, disk, planned and measured figures where there is a run, and every assumption."""
    blocks = [_workload(estimate), *(_pool(estimate, pool) for pool in estimate.pools)]
    if figures := compare(planned_figures(estimate), RunDirectory(estimate.config.run.dir)):
        blocks.append(_actual(estimate, figures))
    return "\n\n".join("\n".join(block) for block in [*blocks, _assumptions()])


def _workload(estimate: CostEstimate) -> Iterator[str]:
    config, workload = estimate.config, estimate.workload
    trained = f"LoRA rank {config.training.lora.rank}" if config.training.lora else "all parameters"
    losses = sorted({config.for_arm(arm).training.loss for arm in config.arms})
    model = estimate.architecture
    size = f"{model.parameters / 1e9:.3g} B parameters"
    if model.routed:
        size += f" ({model.active / 1e9:.3g} B active per token)"
    yield f"{config.model.path}: {size}, {config.model.dtype}, {trained} trained"
    held_out = f"{workload.validation:,} held out, " if workload.validation else ""
    yield (
        f"{counted(config.run.rounds, 'round')} of {counted(len(config.arms), 'arm')} ({', '.join(losses)}): "
        f"{counted(workload.train, 'training question')} x {counted(config.sampling.num_samples, 'sample')}, "
        f"{held_out}{counted(workload.test, 'test question')}"
    )
    yield (
        f"prompts of {workload.prompt_tokens:,.0f} tokens (longest {workload.longest_prompt_tokens:,}), completions of "
        f"{workload.completion_tokens:,.0f} (at most {config.sampling.max_new_tokens:,})"
    )
    if workload.test:
        yield detectable_differences(workload.test, config.evaluation.confidence)
    disk, store = _size(estimate.disk_gib), _size(estimate.store_gib)
    yield f"run directory: {disk} on {config.run.dir}; Ray object store: {store} at its peak"


def _pool(estimate: CostEstimate, pool: PoolPlan) -> Iterator[str]:
    yield f"on {pool.count} x {pool.device.name}"
    names = [(p.name, f"{p.devices:g}") for p in pool.phases] + [("total", "")]
    figures: list[tuple[float, ...]] = [(p.tokens, p.starting, p.seconds, p.device_hours) for p in pool.phases]
    figures.append(tuple(map(sum, zip(*figures, strict=True))))
    rows = [
        (name, _count(tokens), devices, duration(starting), duration(seconds), f"{hours:,.2f}")
        for (name, devices), (tokens, starting, seconds, hours) in zip(names, figures, strict=True)
    ]
    yield _table(("phase", "tokens", "devices", "starting", "wall time", "device hours"), rows)
    is_slow = pool.grading_seconds > sum(p.seconds for p in pool.phases if p.interruptible)
    slow = "; more grading.workers would end the sampling sooner" if is_slow else ""
    yield f"  grading during sampling: {duration(pool.grading_seconds)} on {counted(estimate.config.grading.workers, 'core')}{slow}"
    on_demand, spot = pool.price(spot=False), pool.price(spot=True)
    yield f"  price: ${on_demand:,.2f} on demand, ${spot:,.2f} with spot for sampling and evaluation"
    longest = f"{pool.kv_tokens / pool.longest_tokens:,.0f} longest sequences"
    held = f"KV cache holds {_count(pool.kv_tokens)} tokens, {longest}"
    yield f"  memory while sampling: {_memory(pool.sampling, pool.sampling_gib, pool.sampling_fits)}; {held}"
    if not pool.sampling_fits:
        yield "    one sequence does not fit: raise sampling.tensor_parallel_size, or lower max_new_tokens"
    yield f"  memory while training: {_memory(pool.training, pool.training_gib, pool.training_fits)}"
    if not pool.training_fits:
        yield (
            "    in order of cost: training.gradient_checkpointing=true, a smaller micro_batch_size, a higher zero_stage, "
            "more workers, LoRA, offload_optimizer=true"
        )


def _actual(estimate: CostEstimate, figures: Sequence[Figure]) -> Iterator[str]:
    """Planned and measured figures; phases are those of the first pool."""
    pool = estimate.pools[0]
    yield f"planned on {pool.count} x {pool.device.name}, and measured in {estimate.config.run.dir}"
    yield _table(("", "planned", "actual"), [figure.cells for figure in figures])


def _assumptions() -> Iterator[str]:
    yield "assumed (east_ray/preflight/devices.py and prices.toml; measured runs correct them):"
    shown = "; ".join(f"{f.name}\u00a0{getattr(ASSUMED, f.name):g}" for f in fields(ASSUMED))
    yield textwrap.fill(shown, WIDTH, initial_indent="  ", subsequent_indent="  ").replace("\u00a0", " ")


def _memory(memory: Memory, available_gib: float, fits: bool) -> str:
    parts = " + ".join(f"{name} {_size(size)}" for name, size in memory.parts.items() if size > 0)
    return f"{parts} = {_size(memory.total)} of {available_gib:g} GiB, {'fits' if fits else 'DOES NOT FIT'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    with console.capture() as text:
        console.print(table)
    return textwrap.indent("\n".join(map(str.rstrip, text.get().splitlines())), "  ")


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f}"


def _size(gib: float) -> str:
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"
