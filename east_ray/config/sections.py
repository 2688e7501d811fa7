"""Per-step configuration, with units, bounds and the paper's defaults (Wang et al. 2025, arXiv 2503.23913).

A step takes the section it needs, never the whole config. The training section has its own file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field of a section: its default, what it means, and pydantic's bounds."""
    return Field(default=default, description=description, **bounds)


Measure = Literal["entropy", "inaccuracy", "dominant_wrong"]
MappingName = Literal["power", "mean", "linear"]


class Section(BaseModel):
    """Frozen; unknown keys are refused by `config.load` with the nearest valid name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Settings that do not shape the artifacts: they may change between two commands on one run.
    operational: ClassVar[frozenset[str]] = frozenset()

    # Settings younger than finished runs: left out of the fingerprint while they have their default.
    added: ClassVar[frozenset[str]] = frozenset()

    # Settings that are gone, with the value finished runs have: it is accepted, and stays in the fingerprint.
    retired: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        return {name: value for name, value in given.items() if name not in cls.retired or value != cls.retired[name]}

    def identity(self) -> dict[str, Any]:
        """The settings that shape a step's artifact; its manifest records exactly these."""
        unset = {
            name
            for name in self.added
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True)
        }
        return self.model_dump(mode="json", exclude={*self.operational, *unset}) | self.retired


class ModelConfig(Section):
    """The base model of a run."""

    path: str = Field(
        description="Hugging Face model directory, or a hub name such as meta-llama/Llama-3.2-1B-Instruct."
    )
    revision: str | None = setting(None, "Hub revision; ignored for a directory.")
    dtype: Literal["bfloat16", "float32", "float16"] = setting("bfloat16", "Type of all weights (B.2).")
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model. Only for models you trust.")


class QuestionsConfig(Section):
    """Question files, their columns, and the prompt."""

    train: str = Field(
        description="JSONL or Parquet file (local, s3://, gs://), or a hub dataset as hf://owner/name[/config]:split."
    )
    test: str | None = setting(None, "The same, for evaluation.")
    train_limit: int | None = setting(None, "Use only this many training questions, from the start.", gt=0)
    test_limit: int | None = setting(None, "Use only this many test questions, from the start.", gt=0)
    validation_share: float = setting(
        0.0, "Share of training questions held out to choose the exponent on.", ge=0, lt=1
    )
    id_column: str = setting("id", "Column with a unique id; the row number if the file has none.")
    question_column: str = setting("question", "Column with the question's text.")
    answer_column: str = setting(
        "answer", "Column with the reference: a bare answer, a GSM8K solution (#### 42) or a MATH solution (\\boxed{})."
    )
    skip_without_reference: bool = setting(False, "Skip and log questions without a reference (MATH has two).")
    system_prompt: str | None = setting(
        "Please reason step by step, and put your final answer within \\boxed{}.",
        "Instruction before every question (A); none if empty.",
    )
    instruction_role: Literal["auto", "system", "user"] = setting(
        "auto", "Turn that holds the instruction; auto: the user's where the chat template has no system turn."
    )
    chat_template_arguments: dict[str, Any] = setting({}, "Passed to the chat template, e.g. enable_thinking = false.")

    added: ClassVar[frozenset[str]] = frozenset({"instruction_role", "chat_template_arguments"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if taken := {"conversation", "tokenize", "add_generation_prompt", "return_dict"} & {
            *self.chat_template_arguments
        }:
            raise ValueError(f"chat_template_arguments cannot hold {', '.join(sorted(taken))}: the run sets it")
        return self


class SamplingConfig(Section):
    """Sampling parameters, and the engines that sample."""

    num_samples: int = setting(128, "n, completions per question (4.1).", ge=1)
    temperature: float = setting(1.0, "Sampling temperature; 1.0 measures the model's own distribution.", ge=0)
    top_p: float = setting(1.0, "Nucleus share.", gt=0, le=1)
    max_new_tokens: int = setting(2048, "Longest completion, tokens; longer ones count as truncated.", ge=1)
    questions_per_shard: int = setting(32, "Questions per file, the unit of resuming; fewer with over 8 engines.", ge=1)
    min_engines: int | None = setting(
        None, "Fewest vLLM engines in the pool, which then grows; unset: all at once.", ge=1
    )
    max_engines: int = setting(1, "Most vLLM engines in the pool.", ge=1)
    gpus_per_engine: float = setting(0, "GPUs of one engine; 0 runs vLLM on the CPU, 0.5 is half a GPU each.", ge=0)
    cpus_per_engine: float = setting(1, "CPU cores one engine reserves.", ge=0)
    tensor_parallel_size: int = setting(1, "GPUs that share each layer.", ge=1)
    pipeline_parallel_size: int = setting(1, "GPUs that share the layers.", ge=1)
    kv_cache_gib: float = setting(4.0, "GiB of a CPU engine; on GPUs set engine_args.gpu_memory_utilization.", gt=0)
    engine_args: dict[str, Any] = setting({}, "More vLLM engine arguments, passed unchanged.")
    labels: dict[str, str] = setting({}, "Ray labels of the nodes that may run an engine, e.g. market-type = spot.")
    max_failed_share: float = setting(0.01, "The run stops when a larger share of the questions failed.", ge=0, le=1)

    retired: ClassVar[dict[str, Any]] = {"adaptive": None}
    operational: ClassVar[frozenset[str]] = frozenset(
        {"min_engines", "max_engines", "gpus_per_engine", "cpus_per_engine", "tensor_parallel_size"}
        | {"pipeline_parallel_size", "kv_cache_gib", "engine_args", "labels", "max_failed_share"}
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_engines is not None and self.max_engines < self.min_engines:
            raise ValueError(f"max_engines={self.max_engines} is below min_engines={self.min_engines}")
        gpus = float(self.gpus_per_engine)
        if not (gpus.is_integer() or (gpus < 1 and round(1 / gpus, 2).is_integer())):
            raise ValueError(f"gpus_per_engine={gpus:g}: give whole GPUs, or 1/2, 1/3, 1/4, ... of one")
        parallel = self.tensor_parallel_size * self.pipeline_parallel_size
        if self.gpus_per_engine > 0 and parallel > 1 and self.gpus_per_engine != parallel:
            raise ValueError(
                f"gpus_per_engine={self.gpus_per_engine:g} but tensor_parallel_size x pipeline_parallel_size = {parallel}; make them equal"
            )
        return self


class GradingConfig(Section):
    """Extracting, judging and clustering answers."""

    cluster: Literal["canonical", "string"] = setting(
        "canonical", "Cluster answers by mathematical meaning, or by string as the released scripts do."
    )
    unanswered: Literal["cluster", "ignore"] = setting(
        "cluster", "Those without an answer: one cluster, or no part of the entropy."
    )
    answer_tags: bool = setting(True, "Read <answer>...</answer> before anything else (R1-style).")
    open_thought: bool = setting(False, "Accept an answer from a <think> that never closes.")
    last_number: bool = setting(False, "Fall back to the last number in the text, as the released scripts do.")
    deadline_seconds: float = setting(5.0, "Limit of one symbolic comparison; beyond it the verdict is an error.", gt=0)
    memory_gib: float = setting(1.0, "Memory limit of one symbolic worker, GiB.", gt=0)
    workers: int = setting(1, "Grading actors (one CPU core each).", ge=1)
    labels: dict[str, str] = setting({}, "Ray labels of the nodes that may run a grader.")

    added: ClassVar[frozenset[str]] = frozenset({"open_thought"})
    operational: ClassVar[frozenset[str]] = frozenset({"workers", "labels"})


class WeightingConfig(Section):
    """The mapping from a question's uncertainty to its weight (eqs. 1 to 6)."""

    measure: Measure = setting("entropy", "entropy (eq. 1), inaccuracy or dominant_wrong (4.3).")
    mapping: MappingName = setting("power", "power (eq. 6), mean division (eq. 3) or linear (eq. 4).")
    exponent: float = setting(1.0, "a of eq. 6; 0 is plain self-training, the paper searches [-3, 3].", ge=-10, le=10)
    range: float | None = setting(None, "R of the linear mapping (eq. 4).", gt=0)
    clip: float | None = setting(None, "Cap on weights; their mean stays 1.", gt=1)
    min_effective_share: float = setting(0.1, "Warn when effective sample size / kept questions is lower.", ge=0, le=1)
    max_length_effect: float = setting(
        0.1,
        "Warn when weights follow length and change a token-mean loss's learning rate by more.",
        ge=0,
    )
    on_unhealthy: Literal["warn", "stop"] = setting("warn", "Reaction to unhealthy weights.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mapping == "linear") != (self.range is not None):
            raise ValueError('range belongs to mapping = "linear", and only to it: set both or neither')
        if self.mapping == "linear" and self.clip is not None:
            raise ValueError('clip does not go with mapping = "linear": its range bounds the weights already')
        return self


class SelectionConfig(Section):
    """Choice of the questions, and of the completions, that are trained on."""

    keep: Literal["mixed", "solved"] = setting(
        "mixed",
        "Keep questions with a correct and an incorrect completion (released scripts), or with a correct one (paper's SFT).",
    )
    negative: Literal["random", "dominant"] = setting(
        "random",
        "Negative drawn uniformly from the incorrect completions (paper) or from the most frequent wrong cluster.",
    )
    pairs_per_question: int = setting(1, "Positives (and negatives) per question, drawn without replacement.", ge=1)
    truncated_negatives: bool = setting(True, "Draw negatives among cut completions too, trained without an end token.")
    exclude_test_questions: bool = setting(True, "Drop training questions whose text is in the test set as well.")

    added: ClassVar[frozenset[str]] = frozenset({"truncated_negatives"})


class EvaluationConfig(Section):
    """Evaluation on the test and validation questions."""

    num_samples: int = setting(0, "Completions per test question for pass@k and maj@k; 0: greedy accuracy only.", ge=0)
    temperature: float = setting(1.0, "Temperature of these samples.", gt=0)
    max_new_tokens: int | None = setting(None, "Longest completion, tokens; sampling.max_new_tokens if unset.", ge=1)
    confidence: float = setting(0.95, "Confidence of every interval.", gt=0.5, lt=1)

    retired: ClassVar[dict[str, Any]] = {"compare_math_verify": False}
