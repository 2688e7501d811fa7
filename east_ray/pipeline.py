"""Algorithm 1 of the paper (Wang et al. 2025): sample, verify, weigh, select, train, evaluate; T rounds, several arms.

`algorithm` is that loop as data: the steps in order, each naming what it reads. `runs/artifacts.py` runs, skips or
refuses them by their manifests; `steps.py` binds each to the code that does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from east_ray import steps
from east_ray.arms import Group, Policy, splits_to_evaluate
from east_ray.config.load import Config
from east_ray.runs.artifacts import Step, restart_from, run_steps
from east_ray.runs.directory import RunDirectory


def algorithm(run: RunDirectory, config: Config) -> Iterator[Step]:
    """Yield the steps of a whole run, in order. Nothing is computed here, and no fingerprint depends on a result."""
    base = Policy(config.model.path)
    policies = {arm.name: base for arm in config.arms}
    yield (questions := steps.questions(run, config))

    for t in range(config.run.rounds):
        arms = tuple(arm for arm in config.arms if t < (arm.rounds or config.run.rounds))
        # Every arm starts from the same model, so round 0 is sampled once; afterwards each samples from its own.
        groups = [Group(t, arms, base)] if t == 0 else [Group(t, (arm,), policies[arm.name]) for arm in arms]

        yield (samples := steps.sample(run, config, groups, questions))
        yield (grades := steps.verify(run, config, groups, samples))
        yield (weights := steps.weigh(run, config, groups, questions, grades))
        yield (examples := steps.select(run, config, groups, questions, samples, grades, weights))

        starts = policies if config.run.start_from == "previous" else dict.fromkeys(policies, base)
        yield (models := steps.train(run, config, groups, examples, starts))

        policies = {
            arm.name: Policy(run.uri_of(trained.outputs[0]), trained)
            for arm, trained in zip(arms, models.artifacts, strict=True)
        }
        measured = {"default": base, **policies} if t == 0 else policies
        for split in splits_to_evaluate(config):
            yield steps.evaluate(run, config, t, split, measured, questions)


def run_algorithm(
    run: RunDirectory,
    config: Config,
    connect: Callable[[], None],
    *,
    only: str | None = None,
    restart: str | None = None,
) -> bool:
    """Run what is not finished yet, or one step of it; False when all of it was.

    `connect` starts Ray and is called before the first step that needs it. UserError when a finished step was made
    with other settings than `config` now says.
    """
    all_steps = list(algorithm(run, config))
    if restart is not None:
        restart_from(all_steps, restart)
    return run_steps(all_steps, connect, only)
