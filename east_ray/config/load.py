"""Run configuration: load TOML, apply `--set` overrides, validate, and report errors by dotted key."""

from __future__ import annotations

import difflib
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from east_ray.config.sections import (
    EvaluationConfig,
    GradingConfig,
    Measure,
    ModelConfig,
    QuestionsConfig,
    SamplingConfig,
    Section,
    SelectionConfig,
    WeightingConfig,
    setting,
)
from east_ray.config.training import Loss, TrainingConfig
from east_ray.records import UserError


class RunConfig(Section):
    """The run directory, the seed and the rounds."""

    dir: str = setting("runs/east", "Run directory: a path, s3://bucket/prefix or gs://bucket/prefix.", min_length=1)
    seed: int = setting(0, "Seed of samples, selections and training order.", ge=0)
    rounds: int = setting(1, "T, rounds of sample-weigh-train (Algorithm 1; 3 in the paper's section 4.2).", ge=1)
    start_from: Literal["previous", "base"] = setting(
        "previous", "Weights that training starts from after round 0: the model just trained (Algorithm 1) or the base."
    )
    data: Literal["replace", "accumulate"] = setting("replace", "Train on this round's examples, or on every round's.")
    parallel_arms: int = setting(1, "Arms trained at the same time, if the cluster has room.", ge=1)


class Arm(Section):
    """A way of training on the same samples: a name and the dotted settings it changes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]*$", description="Name in tables and directories.")
    set: dict[str, Any] = setting({}, "Dotted weighting.* and training.* settings (and run.seed) this arm changes.")
    rounds: int | None = setting(None, "Rounds of this arm; run.rounds if unset.", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.set:
            if key.split(".")[0] not in ("weighting", "training") and key != "run.seed":
                raise ValueError(
                    f"arm {self.name!r} sets {key}: arms share samples and grades, so only weighting.*, training.* and run.seed vary"
                )
        return self


class ReproduceConfig(Section):
    """Arms of `east-ray reproduce`: Table 1, and Figures 3 to 5 with SFT as in the paper."""

    losses: tuple[Loss, ...] = setting(("sft", "dpo", "kto"), "Blocks of Table 1.")
    exponents: tuple[float, ...] = setting(
        (-3, -2.5, -2, -1.5, -1.25, -1, -0.5, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 2.5, 3), "Exponents of Figure 3 (B.2)."
    )
    ablation_exponents: tuple[float, ...] = setting((0.5, 1, 1.5), "Exponents that Figure 5 averages over (4.3).")
    measures: tuple[Measure, ...] = setting(("inaccuracy", "dominant_wrong"), "Measures of Figure 5 besides entropy.")
    local_weights: bool = setting(True, "Table 1's baselines LW(W) and LW(P).")
    rounds: int = setting(3, "Rounds of Figure 4, for vanilla and EAST (4.2).", ge=1)
    seeds: tuple[int, ...] = setting((0,), "Training seeds; every arm is trained once per seed.", min_length=1)


class Config(Section):
    """All settings of a run, by section; `load` reads and checks them, `for_arm` applies an arm's changes."""

    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig
    questions: QuestionsConfig
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    grading: GradingConfig = Field(default_factory=GradingConfig)
    weighting: WeightingConfig = Field(default_factory=WeightingConfig)
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    arms: tuple[Arm, ...] = setting(
        (Arm(name="vanilla", set={"weighting.exponent": 0.0}), Arm(name="east")),
        "Ways of training on the same samples; by default plain self-training and EAST.",
        min_length=1,
    )
    sweep: dict[str, tuple[Any, ...]] = setting(
        {},
        'For `east-ray sweep`: values by dotted setting, e.g. "weighting.exponent" = [0, 1, 2]; every combination is an arm.',
    )
    reproduce: ReproduceConfig = setting(ReproduceConfig(), "For `east-ray reproduce`.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arms must have different names, got {names}")
        for arm in self.arms:
            self.for_arm(arm)
        return self

    def for_arm(self, arm: Arm) -> Config:
        """This config with the arm's settings applied and the arms themselves left out."""
        data = self.model_dump(exclude={"arms", "sweep", "reproduce"})
        sections: dict[str, Any] = {}
        for dotted, value in arm.set.items():
            _assign(data, dotted, value)
        for name, settings in data.items():
            try:
                sections[name] = type(getattr(self, name)).model_validate(settings)
            except ValidationError as error:
                raise UserError(_explain_all(error, f"arm {arm.name!r}", name)) from None
        return Config.model_construct(**sections, arms=(arm,))


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides. UserError names file, key, value and remedy."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file at {path}; see jobs/configs/ for examples") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is not readable as TOML: {error}; fix it, or start from jobs/configs/"
        ) from None
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"--set {override!r}: expected section.key=value, e.g. --set training.loss=dpo")
        _assign(data, dotted.strip(), _parse_value(text.strip()))
    return from_dict(data, source=str(path))


def from_dict(data: Mapping[str, Any], source: str) -> Config:
    """Validate settings read from `source` (named in errors). Secrets are refused: settings are written to files and printed."""
    if secret := _secret_in(data, ""):
        raise UserError(
            f"{source}: {secret} holds a secret, and settings are written to files; take it out and give it in the "
            f"environment (HF_TOKEN, WANDB_API_KEY, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or in ~/.aws"
        )
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain_all(error, source)) from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # an unquoted string, as typed in a shell


_SECRET_NAME = re.compile(
    r"(?:^|_)(?:token|secret|password|credentials?|api_?key|(?:access|private)_key)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"[a-z0-9+.-]+://[^/@?\s]+:[^/@?\s]+@|\bhf_[A-Za-z0-9]{20,}\b")


def _secret_in(value: Any, dotted: str) -> str | None:
    """Dotted name of the first setting whose name or text looks like a secret; never its value."""
    if isinstance(value, str):
        named = _SECRET_NAME.search(dotted.rpartition(".")[2]) is not None
        return dotted if value and (named or _SECRET_VALUE.search(value)) else None
    if isinstance(value, Mapping):
        inside = [(f"{dotted}.{key}".lstrip("."), item) for key, item in value.items()]
    else:
        inside = [(f"{dotted}.{i}", item) for i, item in enumerate(value)] if isinstance(value, list | tuple) else []
    return next((found for name, item in inside if (found := _secret_in(item, name))), None)


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise UserError(f"{dotted}: {parent} is not a section")
    data[last] = value


def _explain_all(error: ValidationError, source: str, *section: str) -> str:
    """One line per error, unknown keys first: a misspelt section is also a missing one."""
    items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    return "\n".join(_explain(item, (*section, *item["loc"]), source) for item in items)


def _explain(item: Any, location: tuple[Any, ...], source: str) -> str:
    dotted = ".".join(map(str, location))
    if item["type"] == "extra_forbidden":
        *parents, name = map(str, location)
        near = difflib.get_close_matches(name, _keys_at(location[:-1]), n=1)
        known = [".".join([*parents, key]) for key in near]
        known += [
            f"{section}.{name}" for section in Config.model_fields if not parents and name in _keys_at((section,))
        ]
        remedy = f"did you mean {known[0]}?" if known else "`east-ray config CONFIG` prints every key of a valid config"
        return f"{source}: unknown key {dotted}; {remedy}"
    if item["type"] == "missing":
        keys = " and ".join(_keys_at(location, required=True))
        remedy = f"add a section [{dotted}] with {keys}" if keys else f"add it or pass --set {dotted}=..."
        return f"{source}: {dotted} is required; {remedy}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "model_type":
        message = f"this is a section: set its keys, {', '.join(_keys_at(location))}"
    elif item["type"] == "string_pattern_mismatch":
        message = "use letters, digits and _ . + = -, beginning with a letter or digit"
    got = "" if isinstance(item["input"], dict | Section) else f" (got {reprlib.repr(item['input'])})"
    return ": ".join([source, *([dotted] if dotted else []), message]) + got


def _keys_at(location: Sequence[Any], required: bool = False) -> list[str]:
    """Keys of the section at a place in the config, or the required ones; none where a value stands."""
    section: Any = Config
    for part in location:
        if isinstance(part, str):  # not the number of an arm
            field = section.model_fields.get(part)
            kinds = (field.annotation, *get_args(field.annotation)) if field else ()
            section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), Section)
    return [name for name, field in section.model_fields.items() if field.is_required() or not required]
