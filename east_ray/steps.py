"""The steps of Algorithm 1, bound to the code that does them: which directory, which settings and inputs, which call."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from east_ray.arms import Group, Policy, losses_of, mappings_of, weight_mapping
from east_ray.config.load import Config
from east_ray.runs.artifacts import Artifact, Refused, Step
from east_ray.runs.directory import RunDirectory, fingerprint, fingerprint_source
from east_ray.training.job import ArmTraining, check_trackers

logger = logging.getLogger(__name__)

SPLITS = {"validation": ("validate", "validation"), "test": ("evaluate", "evaluation")}  # split -> step, directory


def questions(run: RunDirectory, config: Config) -> Step:
    """Read the questions and render their prompts, once for the whole run."""
    sources = {name: source for name in ("train", "test") if (source := getattr(config.questions, name))}

    def work() -> Any:
        from east_ray.evaluation.summary import detectable_differences
        from east_ray.questions.questions import prepare

        summary = prepare(run, "questions", questions=config.questions, model=config.model, seed=config.run.seed)
        if summary.test:
            logger.info("%s", detectable_differences(summary.test, config.evaluation.confidence))
        return summary

    artifact = Artifact(
        run,
        "questions",
        settings=config.questions.identity() | {"seed": config.run.seed if config.questions.validation_share else None},
        inputs={name: fingerprint_source(source) for name, source in sources.items()}
        | {"model": fingerprint_source(config.model.path, config.model.revision)},
        work=work,
        discard_on_user_error=True,
    )
    return Step("questions", [artifact], uses_ray=False)


def sample(run: RunDirectory, config: Config, groups: Sequence[Group], questions: Step) -> Step:
    """Sample n completions per question. One pool of engines serves all groups, and grading overlaps with sampling: what
    it leaves is what `verify` then finds.
    """
    samples = [_samples(run, config, group, questions) for group in groups]

    def work(pending: Sequence[Artifact]) -> Sequence[Any]:
        from east_ray.rollouts.run import RolloutJob, run_rollouts

        jobs = []
        for group, sampled in zip(groups, samples, strict=True):
            if sampled in pending:
                graded = _grades(run, config, group, sampled)
                if not graded.is_finished:
                    graded.begin()
                jobs.append(
                    RolloutJob(group.policy.path, "questions/train.parquet", sampled.directory, graded.directory)
                )
        return run_rollouts(
            run,
            jobs,
            model=config.model,
            sampling=config.sampling,
            grading=config.grading,
            seed=config.run.seed,
            round_index=groups[0].t,
        )

    return Step("sample", samples, work)


def _samples(run: RunDirectory, config: Config, group: Group, questions: Step) -> Artifact:
    directory = f"{group.directory}/samples"
    manifest = run.manifest(directory)
    if manifest is not None and "imported" in manifest["settings"]:
        return Artifact(run, directory, manifest["settings"], manifest["inputs"])  # as `import_samples` left it
    settings = {"seed": config.run.seed, "round": group.t, "dtype": config.model.dtype}
    return Artifact(
        run,
        directory,
        settings=config.sampling.identity() | settings,
        inputs={"questions": questions.artifacts[0], **group.policy.inputs},
        extendable=frozenset({"num_samples"}),
    )


def import_samples(run: RunDirectory, config: Config, file: str, questions: Step) -> Step:
    """Bring completions sampled elsewhere into round 0, in place of `sample`."""

    def work() -> Any:
        from east_ray.rollouts.imported import import_samples

        return {
            "summary": import_samples(
                run,
                file,
                questions="questions/train.parquet",
                samples=artifact.directory,
                model=config.model,
                questions_per_shard=config.sampling.questions_per_shard,
            )
        }

    artifact = Artifact(
        run,
        "round-00/samples",
        settings={"imported": Path(file).name},
        inputs={"file": fingerprint_source(file), "questions": questions.artifacts[0]},
        work=work,
        discard_on_user_error=True,
    )
    held = run.intent(artifact.directory) or run.manifest(artifact.directory)
    if held is not None and held["inputs"].get("file") != artifact.inputs["file"]:
        of = f"imported from {name} as it was" if (name := held["settings"].get("imported")) else "that were sampled"
        raise Refused(
            f"{run.uri_of(artifact.directory)} holds completions {of}, so {file} is not imported. Import it into another run "
            f"directory (--set run.dir=...), or delete {run.uri_of('round-00')} and import again"
        )
    return Step("import-samples", [artifact], uses_ray=False)


def verify(run: RunDirectory, config: Config, groups: Sequence[Group], samples: Step) -> Step:
    """Extract, judge and cluster every completion's answer."""
    pairs = zip(groups, samples.artifacts, strict=True)
    return Step("verify", [_grades(run, config, group, sampled) for group, sampled in pairs])


def _grades(run: RunDirectory, config: Config, group: Group, samples: Artifact) -> Artifact:
    directory = f"{group.directory}/grades"

    def work() -> Any:
        from east_ray.rollouts.run import grade_samples

        return grade_samples(run, samples.directory, directory, grading=config.grading)

    return Artifact(run, directory, config.grading.identity(), {"samples": samples}, work)


def weigh(run: RunDirectory, config: Config, groups: Sequence[Group], questions: Step, grades: Step) -> Step:
    """Measure every question's uncertainty and map it to weights with one global normaliser (eqs. 1 to 6)."""
    pairs = zip(groups, grades.artifacts, strict=True)
    return Step("weigh", [_weights(run, config, group, questions, graded) for group, graded in pairs])


def _weights(run: RunDirectory, config: Config, group: Group, questions: Step, grades: Artifact) -> Artifact:
    directory, mappings = f"{group.directory}/weights", mappings_of(config, group.arms)

    def work() -> Any:
        from east_ray.questions.questions import in_test_set
        from east_ray.weighting.weigh import weigh

        return weigh(
            run,
            grades=grades.directory,
            output=directory,
            mappings=mappings,
            selection=config.selection,
            weighting=config.weighting,
            excluded=in_test_set(run, "questions") if config.selection.exclude_test_questions else frozenset(),
        )

    settings = {
        "mappings": [mapping.column for mapping in mappings],
        "selection": config.selection.identity(),
        "min_effective_share": config.weighting.min_effective_share,
        "max_length_effect": config.weighting.max_length_effect,
        "on_unhealthy": config.weighting.on_unhealthy,
    }
    return Artifact(run, directory, settings, {"questions": questions.artifacts[0], "grades": grades}, work)


def select(
    run: RunDirectory,
    config: Config,
    groups: Sequence[Group],
    questions: Step,
    samples: Step,
    grades: Step,
    weights: Step,
) -> Step:
    """Choose one positive and one negative completion per kept question."""
    inputs = [
        {"questions": questions.artifacts[0], "samples": sampled, "grades": graded, "weights": weighed}
        for sampled, graded, weighed in zip(samples.artifacts, grades.artifacts, weights.artifacts, strict=True)
    ]
    return Step("select", [_examples(run, config, *pair) for pair in zip(groups, inputs, strict=True)])


def _examples(run: RunDirectory, config: Config, group: Group, inputs: Mapping[str, Artifact]) -> Artifact:
    directory, losses = f"{group.directory}/examples", losses_of(config, group.arms)

    def work() -> Any:
        from east_ray.examples.select import select

        accumulates = config.run.data == "accumulate"
        return select(
            run,
            questions="questions/train.parquet",
            samples=inputs["samples"].directory,
            grades=inputs["grades"].directory,
            weights=inputs["weights"].directory,
            output=directory,
            losses=losses,
            selection=config.selection,
            seed=config.run.seed,
            round_index=group.t,
            earlier=[f"{earlier}/examples" for earlier in group.earlier_directories] if accumulates else [],
        )

    settings = {"losses": losses, "seed": config.run.seed, "round": group.t, "data": config.run.data}
    return Artifact(run, directory, config.selection.identity() | settings, inputs, work)


def train(
    run: RunDirectory, config: Config, groups: Sequence[Group], examples: Step, starts: Mapping[str, Policy]
) -> Step:
    """Fine-tune every arm on its group's examples with its own weights (eq. 7); one artifact per arm, in the arms' order.

    Arms whose workers are shaped alike are trained by the same ones, one after another, `run.parallel_arms` at a time.
    """
    base = fingerprint_source(config.model.path, config.model.revision)
    asked: dict[Artifact, ArmTraining] = {}
    for group, chosen in zip(groups, examples.artifacts, strict=True):
        for arm in group.arms:
            own, directory = config.for_arm(arm), f"round-{group.t:02d}/arms/{arm.name}"
            check_trackers(own.training.report_to)
            settings = {
                "weights": weight_mapping(config, arm).column,
                "seed": own.run.seed,
                "dtype": config.model.dtype,
            }
            trained = Artifact(
                run,
                f"{directory}/training",
                settings=own.training.identity() | settings,
                inputs={"examples": chosen, "model": base, **starts[arm.name].inputs},
                outputs=(f"{directory}/model",),
            )
            asked[trained] = ArmTraining(
                examples=f"{chosen.directory}/{own.training.loss}.parquet",
                weight_column=weight_mapping(config, arm).column,
                base_model=starts[arm.name].path,
                output=trained.outputs[0],
                training=own.training,
                seed=own.run.seed,
                title=f"train {arm.name}",
            )

    def work(pending: Sequence[Artifact]) -> Iterator[Any]:
        from east_ray.training.driver import train_all

        arms = list(asked.values())
        return train_all(run, arms, [asked[t] for t in pending], model=config.model, at_once=config.run.parallel_arms)

    return Step("train", list(asked), work)


def evaluate(
    run: RunDirectory, config: Config, t: int, split: str, policies: Mapping[str, Policy], questions: Step
) -> Step:
    """Greedy accuracy of each policy on one split; one pool of engines serves them all."""
    step, directory = SPLITS[split]
    settings = {
        **config.evaluation.identity(),
        "max_new_tokens": config.evaluation.max_new_tokens or config.sampling.max_new_tokens,
        "grading": fingerprint(config.grading.identity()),
        "dtype": config.model.dtype,
        "seed": config.run.seed if config.evaluation.num_samples else None,
    }
    names: dict[Artifact, str] = {}
    for name, policy in policies.items():
        parent = "base" if policy.trained is None else f"round-{t:02d}/arms/{name}"
        inputs = {"questions": questions.artifacts[0], **policy.inputs}
        names[Artifact(run, f"{parent}/{directory}", settings, inputs)] = name

    def work(pending: Sequence[Artifact]) -> list[Any]:
        from east_ray.evaluation.evaluate import evaluate

        results = evaluate(
            run,
            {names[artifact]: (policies[names[artifact]].path, artifact.directory) for artifact in pending},
            questions=f"questions/{split}.parquet",
            model=config.model,
            sampling=config.sampling,
            grading=config.grading,
            evaluation=config.evaluation,
            seed=config.run.seed,
            round_index=t,
        )
        return [results[names[artifact]] for artifact in pending]

    return Step(step, list(names), work)
