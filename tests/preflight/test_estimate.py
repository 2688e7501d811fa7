"""Estimates: which phases a config has, what they cost, and what does not fit; against hand-made figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from east_ray.arms import paper_arms, sweep_arms
from east_ray.config.load import from_dict, load
from east_ray.preflight.devices import ASSUMED, read_devices
from east_ray.preflight.estimate import Phase, estimate
from east_ray.preflight.plan import render
from east_ray.preflight.speed import pool_seconds
from east_ray.records import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
PAPER = [f"{data}-llama-{size}" for data in ("gsm8k", "math") for size in ("1b", "8b")]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings_fit_eight_gpus_with_80_gb(name: str) -> None:
    result = estimate(load(CONFIGS / f"{name}.toml"))
    assert [pool.device.name for pool in result.pools] == ["A100 80 GB", "H100 80 GB"]
    for pool in result.pools:
        assert pool.sampling_fits
        assert pool.training_fits
        assert 0.2 < pool.seconds / 3600 < 12
    assert result.pools[1].seconds < result.pools[0].seconds


def test_the_samples_tokens_are_questions_times_n_times_length() -> None:
    result = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["8xH100"])
    sample = result.pools[0].phases[0]
    assert sample.name == "round 0: sample"
    assert sample.tokens == 7473 * 128 * result.workload.completion_tokens


def test_twice_the_engines_sample_in_about_half_the_time() -> None:
    config = load(CONFIGS / "math-llama-8b.toml", ["sampling.max_engines=16"])
    few, many = (estimate(config, [f"{count}xA100"]).pools[0].phases[0] for count in (8, 16))
    assert many.seconds == pytest.approx(few.seconds / 2, rel=0.1)
    assert many.device_hours == pytest.approx(few.device_hours, rel=0.1)


def test_three_rounds_sample_once_and_then_once_per_arm() -> None:
    config = load(CONFIGS / "gsm8k-llama-1b.toml", ["run.rounds=3"])
    phases = {phase.name: phase for phase in estimate(config, ["8xA100"]).pools[0].phases}
    assert len(phases) == 9
    assert phases["round 1: sample"].tokens == 2 * phases["round 0: sample"].tokens
    assert phases["round 0: evaluate"].tokens == pytest.approx(1.5 * phases["round 1: evaluate"].tokens)


def test_a_sweep_and_a_reproduction_are_planned_as_they_run() -> None:
    """Of a reproduction's 33 arms two have three rounds, so later rounds sample from two policies."""
    base = load(CONFIGS / "gsm8k-llama-1b.toml", ['sweep={"weighting.exponent"=[-3,-2,-1,0,1,2,3]}'])
    swept, single = (estimate(config, ["8xH100"]).pools[0].phases for config in (sweep_arms(base), base))
    assert swept[0].tokens == single[0].tokens
    assert swept[1].tokens == pytest.approx(7 / 2 * single[1].tokens)
    phases = {phase.name: phase for phase in estimate(paper_arms(base), ["8xH100"]).pools[0].phases}
    assert phases["round 1: sample"].tokens == phases["round 2: sample"].tokens == 2 * phases["round 0: sample"].tokens
    assert phases["round 0: evaluate"].tokens == pytest.approx(34 / 2 * phases["round 2: evaluate"].tokens)


def test_examples_of_all_rounds_are_trained_on_when_they_accumulate() -> None:
    config = load(CONFIGS / "gsm8k-llama-1b.toml", ["run.rounds=3", 'run.data="accumulate"'])
    phases = {phase.name: phase for phase in estimate(config, ["8xA100"]).pools[0].phases}
    assert phases["round 2: train"].tokens == pytest.approx(3 * phases["round 0: train"].tokens)


def test_held_out_questions_are_a_phase_of_their_own() -> None:
    config = load(CONFIGS / "gsm8k-llama-1b.toml", ["questions.validation_share=0.1"])
    phases = {phase.name: phase for phase in estimate(config, ["8xA100"]).pools[0].phases}
    assert list(phases) == ["round 0: sample", "round 0: train", "round 0: validate", "round 0: evaluate"]
    assert phases["round 0: validate"].tokens == 3 * 747 * 220


def test_a_cpu_pool_has_room_for_engines_and_trainings_by_their_cores(tiny_questions: Path) -> None:
    def phases(pool: str, **settings: dict[str, float]) -> list[Phase]:
        data = {
            "model": {"path": str(tiny_questions / "model")},
            "questions": {"train": str(tiny_questions / "train.jsonl")},
            "run": {"parallel_arms": 2},
            **settings,
        }
        return list(estimate(from_dict(data, "test"), [pool]).pools[0].phases)

    two_cores = {"sampling": {"cpus_per_engine": 2, "max_engines": 2}, "training": {"cpus_per_worker": 2}}
    assert [phase.devices for phase in phases("2xCPU", **two_cores)] == [2, 2]
    assert [phase.devices for phase in phases("4xCPU", **two_cores)] == [4, 4]
    with pytest.raises(UserError, match="one engine takes 4"):
        phases("2xCPU", sampling={"cpus_per_engine": 4})


def test_a_pool_never_has_more_engines_than_shards() -> None:
    config = load(CONFIGS / "gsm8k-llama-1b.toml", ["sampling.max_engines=64", "questions.train_limit=100"])
    assert estimate(config, ["64xH100"]).pools[0].phases[0].devices == 25  # 4 questions each


@pytest.mark.parametrize(("fewest", "measured"), [(4, 118), (1, 173)])
def test_pools_that_grow_start_as_slowly_as_measured(fewest: int, measured: float) -> None:
    """Ray's autoscaler with nodes as processes: 40 shards of 8 engine-seconds, four engines, 37 s from node to engine."""
    assert pool_seconds(40 * 8, 4, fewest, 37) == pytest.approx(measured, rel=0.1)


def test_nodes_with_labels_are_booted_before_each_phase_that_asks_for_them() -> None:
    labels = ['sampling.labels={role="rollout"}', 'training.labels={role="train"}']
    here, cluster = (
        estimate(load(CONFIGS / "gsm8k-llama-1b.toml", overrides), ["8xH100"]) for overrides in ([], labels)
    )
    boot = ASSUMED.boot_seconds
    for before, after in zip(here.pools[0].phases, cluster.pools[0].phases, strict=True):
        assert after.starting > before.starting + 0.99 * boot
        assert after.seconds - after.starting == pytest.approx(before.seconds - before.starting)
    slow = estimate(load(CONFIGS / "gsm8k-llama-1b.toml", [*labels, "sampling.min_engines=1"]), ["8xH100"]).pools[0]
    assert slow.phases[0].seconds > cluster.pools[0].phases[0].seconds + boot / 2


def test_a_model_too_large_for_one_gpu_does_not_fit_and_the_plan_says_what_to_do() -> None:
    config = load(CONFIGS / "math-llama-8b.toml", ["training.gradient_checkpointing=false"])
    result = estimate(config, ["8xL4"])
    pool = result.pools[0]
    assert pool.sampling_fits
    assert not pool.training_fits
    text = render(result)
    assert "DOES NOT FIT" in text
    assert "gradient_checkpointing=true" in text


def test_weights_larger_than_the_gpu_leave_no_kv_cache(tmp_path: Path) -> None:
    sizes = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "num_key_value_heads": 8, "vocab_size": 128256}))
    config = load(CONFIGS / "math-llama-8b.toml", [f"model.path={tmp_path}"])
    result = estimate(config, ["8xH100"])
    assert not result.pools[0].sampling_fits
    assert "tensor_parallel_size" in render(result)
    wide = load(
        CONFIGS / "math-llama-8b.toml",
        [f"model.path={tmp_path}", "sampling.tensor_parallel_size=4", "sampling.gpus_per_engine=4"],
    )
    assert estimate(wide, ["8xH100"]).pools[0].sampling_fits


def test_the_price_is_device_hours_times_the_table_with_training_never_on_spot() -> None:
    pool = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["8xH100"]).pools[0]
    phases = (Phase("sample", 8, 1e6, 60, 1800, True), Phase("train", 8, 1e6, 60, 900, False))
    device = dataclasses.replace(pool.device, on_demand=4.0, spot=1.5)
    priced = dataclasses.replace(pool, phases=phases, device=device)
    assert priced.price(spot=False) == pytest.approx(4 * 4 + 2 * 4)
    assert priced.price(spot=True) == pytest.approx(4 * 1.5 + 2 * 4)


def test_spot_is_nowhere_dearer_than_on_demand_in_the_price_table() -> None:
    for device in read_devices().values():
        assert 0 < device.spot <= device.on_demand


@pytest.mark.parametrize("pool", ["H100", "0xH100", "eightxH100", "8xZ9"])
def test_a_pool_that_makes_no_sense_is_refused(pool: str) -> None:
    with pytest.raises(UserError, match="pool"):
        estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), [pool])


def test_a_pool_smaller_than_the_training_gang_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.workers is 8"):
        estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["4xH100"])


def test_every_assumption_is_printed() -> None:
    result = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"))
    text = render(result)
    for field in dataclasses.fields(ASSUMED):
        assert f"{field.name} {getattr(ASSUMED, field.name):g}" in text
