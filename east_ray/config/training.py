"""Training configuration: losses, batches, adapters, workers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from east_ray.config.sections import Section

Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]
Loss = Literal["sft", "dpo", "kto"]


def _as_names(value: Any) -> Any:
    """`none` and `tensorboard,wandb`, as typed after --set, are lists too; `all-linear` is a choice of its own."""
    return value.split(",") if isinstance(value, str) and value != "all-linear" else value


class SftConfig(Section):
    """Settings of the SFT loss."""

    learning_rate: float = Field(default=2e-6, gt=0, description="Peak learning rate (4.1).")


class PreferenceConfig(Section):
    """Settings of a preference loss (DPO, KTO)."""

    learning_rate: float = Field(default=2e-7, gt=0, description="Peak learning rate (4.1).")
    beta: float = Field(default=0.01, gt=0, description="Strength of the pull towards the reference model (4.1).")


class LoraConfig(Section):
    """A low-rank adapter, in peft's terms."""

    rank: int = Field(default=16, ge=1, description="Rank (B.2).")
    alpha: int = Field(default=16, ge=1, description="Scaling alpha (B.2).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: Annotated[tuple[str, ...] | Literal["all-linear"], BeforeValidator(_as_names)] = Field(
        default="all-linear", description="Modules that get an adapter."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules names lm_head, whose weights TRL reads past an adapter; leave it out")
        return self


class TrainingConfig(Section):
    """The loss, its optimisation, and the workers that train."""

    loss: Loss = Field(default="sft", description="The loss that is weighted (eq. 7): sft, dpo or kto.")
    sft: SftConfig = Field(default_factory=SftConfig, description="Settings used when loss = sft.")
    dpo: PreferenceConfig = Field(default_factory=PreferenceConfig, description="Settings used when loss = dpo.")
    kto: PreferenceConfig = Field(
        default_factory=lambda: PreferenceConfig(beta=0.05), description="Settings used when loss = kto."
    )
    epochs: float = Field(default=3, gt=0, description="Passes over the examples (4.1).")
    max_steps: int = Field(default=-1, description="Stop after this many optimizer steps; -1 trains all epochs.")
    batch_size: int = Field(default=16, ge=1, description="Examples per optimizer step over all workers (4.1).")
    micro_batch_size: int = Field(default=4, ge=1, description="Examples per forward pass and worker.")
    warmup_ratio: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises (4.1)."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradient clipping norm.")
    max_length: int = Field(
        default=4096, ge=1, description="Longest prompt + completion, tokens; longer examples are refused, never cut."
    )
    normalization: Literal["token", "sequence"] = Field(
        default="token",
        description="SFT: token mean over the optimizer batch (as TRL), or mean of the per-sequence means.",
    )
    weight_granularity: Literal["example", "microbatch"] = Field(
        default="example",
        description="Exact weight per example, or mean loss x mean weight per micro-batch (released scripts; for comparison).",
    )
    local_weight: Literal["none", "perplexity", "wpo"] = Field(
        default="none",
        description="Baselines LW(P) (eq. 8-9) and LW(W) (eq. 10), computed from the policy's own token probabilities.",
    )
    lora: LoraConfig | None = Field(default=None, description="Train a LoRA adapter instead of all parameters.")
    workers: int = Field(default=1, ge=1, description="Ray Train workers (one GPU each when use_gpu).")
    use_gpu: bool = Field(default=False, description="Train on GPUs.")
    cpus_per_worker: float = Field(default=1, gt=0, description="CPU cores one worker reserves.")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage.")
    offload_optimizer: bool = Field(default=False, description="Keep optimizer state in host memory.")
    padding_free: bool = Field(
        default=True,
        description="Compute rows without their padding and a pair's common prompt once; false: as TRL does, bit for bit.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations to save memory.")
    precompute_reference: bool = Field(
        default=False,
        description="DPO: compute the reference log-probabilities once, instead of keeping the reference model.",
    )
    checkpoint_steps: int = Field(default=50, ge=1, description="Optimizer steps between checkpoints.")
    max_failures: int = Field(
        default=3, ge=0, description="How often a worker group that died is restarted from its last checkpoint."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Ray labels of the nodes that may run a worker.")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_as_names)] = Field(
        default=(),
        description='Trackers: "tensorboard" (also when nothing is named and it is installed), "wandb", "mlflow"; or "none".',
    )

    added: ClassVar[frozenset[str]] = frozenset({"padding_free"})
    operational: ClassVar[frozenset[str]] = frozenset(
        {"cpus_per_worker", "checkpoint_steps", "max_failures", "labels", "report_to"}
    )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the loss that is trained."""
        return getattr(self, self.loss).learning_rate

    @property
    def beta(self) -> float | None:
        """Beta of the loss that is trained; None for SFT."""
        return None if self.loss == "sft" else getattr(self, self.loss).beta

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of one worker in one optimizer step."""
        return self.batch_size // (self.micro_batch_size * self.workers)

    @model_validator(mode="after")
    def _check(self) -> Self:
        per_pass = self.micro_batch_size * self.workers
        if self.batch_size % per_pass:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size x workers = "
                f"{self.micro_batch_size} x {self.workers} = {per_pass}"
            )
        if self.loss == "kto" and self.micro_batch_size < 2:
            raise ValueError(
                "micro_batch_size must be at least 2 with loss = kto: its KL term pairs neighbouring completions"
            )
        return self
