"""The steps of a round bound to the code that does them: which directory, which settings, which inputs, which call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from east_ray.arms import Group, Policy, losses_of, mappings_of, weight_mapping
from east_ray.config.load import Arm, Config
from east_ray.runs.directory import RunDirectory, fingerprint, fingerprint_source
from east_ray.runs.steps import Part, Step
from east_ray.training.job import check_trackers

logger = logging.getLogger(__name__)

SPLITS = {"validation": "validate", "test": "evaluate"}


def prepare(run: RunDirectory, config: Config) -> Step:
    """Read the questions and render their prompts, once for the whole run."""
    from east_ray.questions import questions

    sources = {name: source for name in ("train", "test") if (source := getattr(config.questions, name))}
    part = Part(
        run.stage("questions"),
        settings=config.questions.model_dump()
        | {"seed": config.run.seed if config.questions.validation_share else None},
        external={name: fingerprint_source(source) for name, source in sources.items()}
        | {"model": fingerprint_source(config.model.path, config.model.revision)},
    )

    def work(_: Sequence[Part]) -> list[Any]:
        from east_ray.evaluation.summary import detectable_differences

        with part.discard_on_user_error():
            summary = questions.prepare(
                run, part.stage.name, questions=config.questions, model=config.model, seed=config.run.seed
            )
        if summary.test:
            logger.info("%s", detectable_differences(summary.test, config.evaluation.confidence))
        return [summary]

    return Step("questions", [part], work)


def sample(run: RunDirectory, config: Config, groups: Sequence[Group], questions: Step) -> Step:
    """Draw n completions per question. Grading overlaps with it; the shards it leaves are what `verify` then finds."""
    parts = [
        imported_part(run, group)
        or Part(
            run.stage(group.place, "samples"),
            settings={
                **config.sampling.identity(),
                "seed": config.run.seed,
                "round": group.t,
                "dtype": config.model.dtype,
            },
            needs={"questions": questions.parts[0], **group.policy.needs},
            extendable=frozenset({"num_samples"}),
        )
        for group in groups
    ]
    graded = verify(run, config, groups, Step("sample", parts, lambda _: []))

    def work(pending: Sequence[Part]) -> Sequence[Any]:
        from east_ray.rollouts.run import RolloutJob, run_rollouts

        jobs = []
        for group, samples, grades in zip(groups, parts, graded.parts, strict=True):
            if samples in pending:
                if not grades.is_finished:
                    grades.begin()
                jobs.append(
                    RolloutJob(group.policy.path, "questions/train.parquet", samples.stage.name, grades.stage.name)
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

    return Step("sample", parts, work)


def imported_part(run: RunDirectory, group: Group) -> Part | None:
    """The samples part as `import-samples` left it, if it did: then its own manifest says what it was made of."""
    stage = run.stage(group.place, "samples")
    manifest = stage.manifest()
    if manifest is None or "imported" not in manifest["settings"]:
        return None
    return Part(stage, settings=manifest["settings"], external=manifest["inputs"])


def verify(run: RunDirectory, config: Config, groups: Sequence[Group], samples: Step) -> Step:
    """Extract, judge and cluster every completion's answer."""
    parts = [
        Part(run.stage(group.place, "grades"), settings=config.grading.identity(), needs={"samples": sampled})
        for group, sampled in zip(groups, samples.parts, strict=True)
    ]

    def work(pending: Sequence[Part]) -> list[Any]:
        from east_ray.rollouts.run import grade_samples

        return [
            grade_samples(run, part.needs["samples"].stage.name, part.stage.name, grading=config.grading)
            for part in pending
        ]

    return Step("verify", parts, work)


def weigh(run: RunDirectory, config: Config, groups: Sequence[Group], questions: Step, grades: Step) -> Step:
    """Measure every question's uncertainty and map it to weights with one global normaliser (eqs. 1 to 6)."""
    parts = [
        Part(
            run.stage(group.place, "weights"),
            settings={
                "mappings": [mapping.column for mapping in mappings_of(config, group.arms)],
                "selection": config.selection.model_dump(),
                "min_effective_share": config.weighting.min_effective_share,
                "max_length_effect": config.weighting.max_length_effect,
                "on_unhealthy": config.weighting.on_unhealthy,
            },
            needs={"questions": questions.parts[0], "grades": graded},
        )
        for group, graded in zip(groups, grades.parts, strict=True)
    ]

    def work(pending: Sequence[Part]) -> list[Any]:
        from east_ray.questions.questions import in_test_set
        from east_ray.weighting.weigh import weigh

        excluded = in_test_set(run, "questions") if config.selection.exclude_test_questions else frozenset()
        return [
            weigh(
                run,
                grades=part.needs["grades"].stage.name,
                output=part.stage.name,
                mappings=mappings_of(config, group.arms),
                selection=config.selection,
                weighting=config.weighting,
                excluded=excluded,
            )
            for group, part in zip(groups, parts, strict=True)
            if part in pending
        ]

    return Step("weigh", parts, work)


def select(
    run: RunDirectory,
    config: Config,
    groups: Sequence[Group],
    questions: Step,
    samples: Step,
    grades: Step,
    weights: Step,
    earlier: dict[str, list[str]],
) -> Step:
    """Choose one positive and one negative per kept question; `earlier` gathers each arm's examples for data = "accumulate"."""
    parts = []
    for group, sampled, graded, weighed in zip(groups, samples.parts, grades.parts, weights.parts, strict=True):
        part = Part(
            run.stage(group.place, "examples"),
            settings={
                **config.selection.model_dump(),
                "losses": losses_of(config, group.arms),
                "seed": config.run.seed,
                "round": group.t,
                "data": config.run.data,
            },
            needs={"questions": questions.parts[0], "samples": sampled, "grades": graded, "weights": weighed},
        )
        parts.append(part)
    before = {group.place: list(earlier[group.arms[0].name]) for group in groups}
    if config.run.data == "accumulate":
        for group, part in zip(groups, parts, strict=True):
            for arm in group.arms:
                earlier[arm.name].append(part.stage.name)

    def work(pending: Sequence[Part]) -> list[Any]:
        from east_ray.examples.select import select

        return [
            select(
                run,
                questions="questions/train.parquet",
                samples=part.needs["samples"].stage.name,
                grades=part.needs["grades"].stage.name,
                weights=part.needs["weights"].stage.name,
                output=part.stage.name,
                losses=losses_of(config, group.arms),
                selection=config.selection,
                seed=config.run.seed,
                round_index=group.t,
                earlier=before[group.place],
            )
            for group, part in zip(groups, parts, strict=True)
            if part in pending
        ]

    return Step("select", parts, work)


def train(
    run: RunDirectory, config: Config, groups: Sequence[Group], examples: Step, starts: Mapping[str, Policy]
) -> Step:
    """Fine-tune every arm on its group's examples with its own weights (eq. 7); one part per arm, in the arms' order."""
    parts, arms = [], []
    for group, chosen in zip(groups, examples.parts, strict=True):
        for arm in group.arms:
            own = config.for_arm(arm)
            check_trackers(own.training.report_to)
            place = f"round-{group.t:02d}/arms/{arm.name}"
            parts.append(
                Part(
                    run.stage(place, "training"),
                    settings={
                        **own.training.identity(),
                        "weights": weight_mapping(config, arm).column,
                        "seed": own.run.seed,
                        "dtype": config.model.dtype,
                    },
                    needs={"examples": chosen, **starts[arm.name].needs},
                    external={}
                    if starts[arm.name].trained
                    else {"model": fingerprint_source(config.model.path, config.model.revision)},
                    outputs=(f"{place}/model",),
                )
            )
            arms.append(arm)

    def work(pending: Sequence[Part]) -> Iterator[Any]:
        from east_ray.training.driver import train

        stop = threading.Event()

        def train_arm(arm: Arm, part: Part) -> Any:
            own = config.for_arm(arm)
            return train(
                run,
                examples=f"{part.needs['examples'].stage.name}/{own.training.loss}.parquet",
                weight_column=weight_mapping(config, arm).column,
                base_model=starts[arm.name].path,
                output=part.outputs[0],
                training=own.training,
                model=config.model,
                seed=own.run.seed,
                title=f"train {arm.name}",
                stop=stop,
            )

        with ThreadPoolExecutor(max_workers=config.run.parallel_arms) as pool:
            chosen = [(arm, part) for arm, part in zip(arms, parts, strict=True) if part in pending]
            trainings = [pool.submit(train_arm, *pair) for pair in chosen]
            try:
                for training in trainings:
                    yield training.result()
            except BaseException:  # an error or Ctrl-C: else it would be shown only when the other arms have ended
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    return Step("train", parts, work)


def evaluate(
    run: RunDirectory, config: Config, t: int, split: str, policies: Mapping[str, Policy], questions: Step
) -> Step:
    """Greedy accuracy of each policy on one split; one engine serves them all."""
    step = SPLITS[split]
    directory = "evaluation" if split == "test" else "validation"
    settings = {
        **config.evaluation.identity(),
        "max_new_tokens": config.evaluation.max_new_tokens or config.sampling.max_new_tokens,
        "grading": fingerprint(config.grading.identity()),
        "dtype": config.model.dtype,
        "seed": config.run.seed if config.evaluation.num_samples else None,
    }
    parts = {
        name: Part(
            run.stage("base" if policy.trained is None else f"round-{t:02d}/arms/{name}", directory),
            settings=settings,
            needs={"questions": questions.parts[0], **policy.needs},
        )
        for name, policy in policies.items()
    }

    def work(pending: Sequence[Part]) -> list[Any]:
        from east_ray.evaluation.evaluate import evaluate
        from east_ray.training.model_card import write_model_card

        results = evaluate(
            run,
            {name: (policies[name].path, part.stage.name) for name, part in parts.items() if part in pending},
            questions=f"questions/{split}.parquet",
            model=config.model,
            sampling=config.sampling,
            grading=config.grading,
            evaluation=config.evaluation,
            seed=config.run.seed,
            round_index=t,
        )
        for name, part in parts.items():
            if part in pending and (trained := policies[name].trained):
                write_model_card(run, trained.outputs[0])
        return [results[name] for name, part in parts.items() if part in pending]

    return Step(step, list(parts.values()), work)
