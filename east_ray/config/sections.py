"""Per-step configuration, with units, bounds and the paper's defaults (Wang et al. 2025, arXiv 2503.23913).

A step takes the section it needs, never the whole config. The training section has its own file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    revision: str | None = Field(default=None, description="Hub revision; ignored for a directory.")
    dtype: Literal["bfloat16", "float32", "float16"] = Field(
        default="bfloat16", description="Type of the weights in sampling and training (B.2)."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Only for models you trust."
    )


class QuestionsConfig(Section):
    """Question files, their columns, and the prompt."""

    train: str = Field(
        description="JSONL or Parquet file (local, s3://, gs://), or a hub dataset as hf://owner/name[/config]:split."
    )
    test: str | None = Field(default=None, description="The same, for evaluation.")
    train_limit: int | None = Field(
        default=None, gt=0, description="Use only this many training questions, from the start."
    )
    test_limit: int | None = Field(default=None, gt=0, description="Use only this many test questions, from the start.")
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training questions held out to choose the exponent on (never the test set).",
    )
    id_column: str = Field(default="id", description="Column with a unique id; the row number if the file has none.")
    question_column: str = Field(default="question", description="Column with the question's text.")
    answer_column: str = Field(
        default="answer",
        description="Column with the reference: a bare answer, a GSM8K solution (#### 42) or a MATH solution (\\boxed{}).",
    )
    skip_without_reference: bool = Field(
        default=False,
        description="Skip and log questions without a reference answer (the MATH training set has two).",
    )
    system_prompt: str | None = Field(
        default="Please reason step by step, and put your final answer within \\boxed{}.",
        description="Instruction before every question (A); none if empty.",
    )
    instruction_role: Literal["auto", "system", "user"] = Field(
        default="auto",
        description="Turn that holds the instruction; auto: the user's where the chat template has no system turn.",
    )
    chat_template_arguments: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the chat template, e.g. enable_thinking = false."
    )

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

    num_samples: int = Field(default=128, ge=1, description="n, completions per question (4.1).")
    temperature: float = Field(
        default=1.0, ge=0, description="Sampling temperature; 1.0 measures the model's own distribution."
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus share.")
    max_new_tokens: int = Field(
        default=2048, ge=1, description="Longest completion, tokens; longer ones count as truncated."
    )
    questions_per_shard: int = Field(
        default=32, ge=1, description="Questions per output file, the unit of resuming; fewer with more than 8 engines."
    )
    min_engines: int | None = Field(
        default=None,
        ge=1,
        description="Fewest vLLM engines in the pool, which then grows; all of them at once if unset.",
    )
    max_engines: int = Field(default=1, ge=1, description="Most vLLM engines in the pool.")
    gpus_per_engine: float = Field(
        default=0, ge=0, description="GPUs of one engine; 0 runs vLLM on the CPU, 0.5 gives each engine half a GPU."
    )
    cpus_per_engine: float = Field(default=1, ge=0, description="CPU cores one engine reserves.")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share each layer.")
    pipeline_parallel_size: int = Field(default=1, ge=1, description="GPUs that share the layers.")
    kv_cache_gib: float = Field(
        default=4.0, gt=0, description="KV cache of a CPU engine, GiB; on GPUs set engine_args.gpu_memory_utilization."
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="More vLLM engine arguments, passed unchanged."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Ray labels of the nodes that may run an engine, e.g. market-type = spot."
    )
    max_failed_share: float = Field(
        default=0.01, ge=0, le=1, description="The run stops when more than this share of the questions failed."
    )

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

    cluster: Literal["canonical", "string"] = Field(
        default="canonical",
        description="Cluster answers by mathematical meaning, or by string as the released scripts do.",
    )
    unanswered: Literal["cluster", "ignore"] = Field(
        default="cluster",
        description="Completions without an answer form one cluster, or are left out of the entropy.",
    )
    answer_tags: bool = Field(default=True, description="Read <answer>...</answer> before anything else (R1-style).")
    open_thought: bool = Field(default=False, description="Accept an answer from a <think> that never closes.")
    last_number: bool = Field(
        default=False, description="Fall back to the last number in the text, as the released scripts do."
    )
    deadline_seconds: float = Field(
        default=5.0, gt=0, description="Wall-clock limit of one symbolic comparison; beyond it the verdict is an error."
    )
    memory_gib: float = Field(default=1.0, gt=0, description="Memory limit of one symbolic worker, GiB.")
    workers: int = Field(default=1, ge=1, description="Grading actors (one CPU core each).")
    labels: dict[str, str] = Field(default_factory=dict, description="Ray labels of the nodes that may run a grader.")

    added: ClassVar[frozenset[str]] = frozenset({"open_thought"})
    operational: ClassVar[frozenset[str]] = frozenset({"workers", "labels"})


class WeightingConfig(Section):
    """The mapping from a question's uncertainty to its weight (eqs. 1 to 6)."""

    measure: Measure = Field(default="entropy", description="entropy (eq. 1), inaccuracy or dominant_wrong (4.3).")
    mapping: MappingName = Field(default="power", description="power (eq. 6), mean division (eq. 3) or linear (eq. 4).")
    exponent: float = Field(
        default=1.0, ge=-10, le=10, description="a of eq. 6; 0 is plain self-training, the paper searches [-3, 3]."
    )
    range: float | None = Field(default=None, gt=0, description="R of the linear mapping (eq. 4).")
    clip: float | None = Field(default=None, gt=1, description="Cap on weights; their mean stays 1.")
    min_effective_share: float = Field(
        default=0.1, ge=0, le=1, description="Warn when effective sample size / kept questions is lower."
    )
    max_length_effect: float = Field(
        default=0.1,
        ge=0,
        description="Warn when weights correlate with length so that a token-mean loss changes the learning rate by more.",
    )
    on_unhealthy: Literal["warn", "stop"] = Field(default="warn", description="Reaction to unhealthy weights.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mapping == "linear") != (self.range is not None):
            raise ValueError('range belongs to mapping = "linear", and only to it: set both or neither')
        if self.mapping == "linear" and self.clip is not None:
            raise ValueError('clip does not go with mapping = "linear": its range bounds the weights already')
        return self


class SelectionConfig(Section):
    """Choice of the questions, and of the completions, that are trained on."""

    keep: Literal["mixed", "solved"] = Field(
        default="mixed",
        description="Keep questions with a correct and an incorrect completion (released scripts), or with a correct one (paper's SFT).",
    )
    negative: Literal["random", "dominant"] = Field(
        default="random",
        description="Negative drawn uniformly from the incorrect completions (paper) or from the most frequent wrong cluster.",
    )
    pairs_per_question: int = Field(
        default=1, ge=1, description="Positives (and negatives) per kept question, drawn without replacement."
    )
    truncated_negatives: bool = Field(
        default=True,
        description="Draw negatives among completions cut at max_new_tokens too; they are trained without an end token.",
    )
    exclude_test_questions: bool = Field(
        default=True, description="Drop training questions whose text is in the test set as well."
    )

    added: ClassVar[frozenset[str]] = frozenset({"truncated_negatives"})


class EvaluationConfig(Section):
    """Evaluation on the test and validation questions."""

    num_samples: int = Field(
        default=0,
        ge=0,
        description="Completions sampled per test question for pass@k and maj@k; 0: greedy accuracy only.",
    )
    temperature: float = Field(default=1.0, gt=0, description="Temperature of these samples.")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Longest completion, tokens; sampling.max_new_tokens if unset."
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence of every interval.")

    retired: ClassVar[dict[str, Any]] = {"compare_math_verify": False}
