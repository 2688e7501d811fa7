"""A plan as the page of text that `east-ray plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from east_ray.evaluation.summary import detectable_differences
from east_ray.preflight.model_size import Memory
from east_ray.preflight.plan import CostEstimate, PoolPlan
from east_ray.preflight.workload import Actual


def render(plan: CostEstimate) -> str:
    """Workload, one block per pool, disk, actual beside planned where there is a run, and every assumption."""
    return "\n".join(_lines(plan))


def _lines(plan: CostEstimate) -> Iterator[str]:
    config, workload = plan.config, plan.workload
    training = config.training
    how = f"LoRA rank {training.lora.rank}" if training.lora else "all parameters"
    losses = sorted({config.for_arm(arm).training.loss for arm in config.arms})
    yield f"{config.model.path}: {plan.architecture.parameters / 1e9:.3g} B parameters, {config.model.dtype}, {how} trained"
    yield (
        f"{config.run.rounds} round(s) of {len(config.arms)} arm(s) ({', '.join(losses)}): {workload.train:,} training questions "
        f"x {config.sampling.num_samples} samples, {workload.test:,} test questions"
    )
    yield (
        f"prompts of {workload.prompt_tokens:,.0f} tokens (longest {workload.longest_prompt_tokens:,}), completions of "
        f"{workload.completion_tokens:,.0f} (at most {config.sampling.max_new_tokens:,})"
    )
    if workload.test:
        yield detectable_differences(workload.test, config.evaluation.confidence)
    yield f"run directory: {_size(plan.disk_gib)} on {config.run.dir}; Ray object store: {_size(plan.store_gib)} at its peak"
    for pool in plan.pools:
        yield ""
        yield from _pool_lines(plan, pool)
    if plan.actual:
        yield ""
        yield from _actual_lines(plan, plan.actual)
    yield ""
    yield "assumed (east_ray/preflight/plan.py and prices.toml; measured runs correct them):"
    yield from _wrap([f"{f.name} {getattr(plan.assumptions, f.name):g}" for f in fields(plan.assumptions)])


def _pool_lines(plan: CostEstimate, pool: PoolPlan) -> Iterator[str]:
    yield f"on {pool.count} x {pool.device.name}"
    rows = [
        (p.name, _count(p.tokens), f"{p.devices:g}", _duration(p.seconds), f"{p.device_hours:,.2f}")
        for p in pool.phases
    ]
    hours = sum(p.device_hours for p in pool.phases)
    rows.append(("total", _count(sum(p.tokens for p in pool.phases)), "", _duration(pool.seconds), f"{hours:,.2f}"))
    yield from _table(("phase", "tokens", "devices", "wall time", "device hours"), rows)
    yield (
        f"  grading beside the sampling: {_duration(pool.grading_seconds)} on {plan.config.grading.workers} core(s)"
        + ("; more grading.workers would end the sampling sooner" if pool.grading_is_slow else "")
    )
    yield (
        f"  price: ${pool.price(spot=False):,.2f} on demand, ${pool.price(spot=True):,.2f} with spot for sampling and evaluation"
    )
    room = (
        f"KV cache holds {_count(pool.kv_tokens)} tokens, {pool.kv_tokens / pool.longest_tokens:,.0f} longest sequences"
    )
    yield f"  memory while sampling: {_memory(pool.sampling, pool.device.memory_gib, pool.sampling_fits)}; {room}"
    if not pool.sampling_fits:
        yield "    one sequence does not fit: raise sampling.tensor_parallel_size, or lower max_new_tokens"
    yield f"  memory while training: {_memory(pool.training, pool.device.memory_gib, pool.training_fits)}"
    if not pool.training_fits:
        yield (
            "    in order of cost: training.gradient_checkpointing=true, a smaller micro_batch_size, a higher zero_stage, "
            "more workers, LoRA, offload_optimizer=true"
        )


def _actual_lines(plan: CostEstimate, actual: Actual) -> Iterator[str]:
    """Planned beside measured; phases are compared with the first pool."""
    workload = plan.workload
    rows = [
        ("training questions", f"{workload.train:,}", _maybe(actual.train)),
        ("test questions", f"{workload.test:,}", _maybe(actual.test)),
        ("prompt, tokens", f"{workload.prompt_tokens:,.0f}", _maybe(actual.prompt_tokens)),
        ("completion, tokens", f"{workload.completion_tokens:,.0f}", _maybe(actual.completion_tokens)),
        (
            "kept questions",
            f"{plan.assumptions.kept_share:.0%}",
            "" if actual.kept_share is None else f"{actual.kept_share:.0%}",
        ),
    ]
    for phase in plan.pools[0].phases:
        measured = actual.seconds.get(phase.name)
        rows.append((phase.name, _duration(phase.seconds), "" if measured is None else _duration(measured)))
    yield f"planned on {plan.pools[0].count} x {plan.pools[0].device.name}, and measured in {plan.config.run.dir}"
    yield from _table(("", "planned", "actual"), rows)


def _memory(memory: Memory, available_gib: float, fits: bool) -> str:
    parts = " + ".join(f"{name} {_size(size)}" for name, size in memory.parts.items() if size > 0)
    return f"{parts} = {_size(memory.total)} of {available_gib:g} GiB, {'fits' if fits else 'DOES NOT FIT'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *rest]).rstrip()


def _wrap(items: Sequence[str], width: int = 118) -> Iterator[str]:
    line = "  "
    for item in items:
        if len(line) + len(item) + 2 > width and line.strip():
            yield line.rstrip()
            line = "  "
        line += item + "; " * (item is not items[-1])
    yield line.rstrip()


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f}"


def _size(gib: float) -> str:
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:,.0f} s"


def _maybe(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
