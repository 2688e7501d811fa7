"""Training configuration: losses, batches, adapters, workers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from east_ray.config.sections import Section, setting

Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]
Loss = Literal["sft", "dpo", "kto"]


def _as_names(value: Any) -> Any:
    """`none` and `tensorboard,wandb`, as typed after --set, are lists too; `all-linear` is a choice of its own."""
    return value.split(",") if isinstance(value, str) and value != "all-linear" else value


class SftConfig(Section):
    """Settings of the SFT loss."""

    learning_rate: float = setting(2e-6, "Peak learning rate (4.1).", gt=0)


class PreferenceConfig(Section):
    """Settings of a preference loss (DPO, KTO)."""

    learning_rate: float = setting(2e-7, "Peak learning rate (4.1).", gt=0)
    beta: float = setting(0.01, "Strength of the pull towards the reference model (4.1).", gt=0)


class LoraConfig(Section):
    """A low-rank adapter, in peft's terms."""

    rank: int = setting(16, "Rank (B.2).", ge=1)
    alpha: int = setting(16, "Scaling alpha (B.2).", ge=1)
    dropout: float = setting(0.0, "Dropout on the adapter's input.", ge=0, lt=1)
    target_modules: Annotated[tuple[str, ...] | Literal["all-linear"], BeforeValidator(_as_names)] = setting(
        "all-linear", "Modules that get an adapter."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules names lm_head, whose weights TRL reads past an adapter; leave it out")
        return self


class TrainingConfig(Section):
    """The loss, its optimisation, and the workers that train."""

    loss: Loss = setting("sft", "The loss that is weighted (eq. 7): sft, dpo or kto.")
    sft: SftConfig = setting(SftConfig(), "Settings used when loss = sft.")
    dpo: PreferenceConfig = setting(PreferenceConfig(), "Settings used when loss = dpo.")
    kto: PreferenceConfig = setting(PreferenceConfig(beta=0.05), "Settings used when loss = kto.")
    epochs: float = setting(3, "Passes over the examples (4.1).", gt=0)
    max_steps: int = setting(-1, "Stop after this many optimizer steps; -1 trains all epochs.")
    batch_size: int = setting(16, "Examples per optimizer step over all workers (4.1).", ge=1)
    micro_batch_size: int = setting(4, "Examples per forward pass and worker.", ge=1)
    warmup_ratio: float = setting(0.1, "Share of the steps in which the learning rate rises (4.1).", ge=0, lt=1)
    weight_decay: float = setting(0.0, "AdamW weight decay.", ge=0)
    max_grad_norm: float = setting(1.0, "Gradient clipping norm.", ge=0)
    max_length: int = setting(4096, "Longest prompt + completion, tokens; longer ones are refused, never cut.", ge=1)
    normalization: Literal["token", "sequence"] = setting(
        "token", "SFT: token mean over the optimizer batch (as TRL), or mean of the per-sequence means."
    )
    weight_granularity: Literal["example", "microbatch"] = setting(
        "example",
        "Exact weight per example, or mean loss x mean weight per micro-batch (released scripts; for comparison).",
    )
    local_weight: Literal["none", "perplexity", "wpo"] = setting(
        "none", "Baselines LW(P) (eq. 8-9) and LW(W) (eq. 10), computed from the policy's own token probabilities."
    )
    lora: LoraConfig | None = setting(None, "Train a LoRA adapter instead of all parameters.")
    workers: int = setting(1, "Ray Train workers (one GPU each when use_gpu).", ge=1)
    use_gpu: bool = setting(False, "Train on GPUs.")
    cpus_per_worker: float = setting(1, "CPU cores one worker reserves.", gt=0)
    zero_stage: Literal[0, 1, 2, 3] = setting(2, "DeepSpeed ZeRO stage.")
    offload_optimizer: bool = setting(False, "Keep optimizer state in host memory.")
    padding_free: bool = setting(
        True, "Compute rows without their padding and a pair's common prompt once; false: as TRL does, bit for bit."
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations to save memory.")
    precompute_reference: bool = setting(False, "DPO: compute the reference's log-probabilities once.")
    checkpoint_steps: int = setting(50, "Optimizer steps between checkpoints.", ge=1)
    max_failures: int = setting(3, "How often a worker group that died is restarted from its last checkpoint.", ge=0)
    labels: dict[str, str] = setting({}, "Ray labels of the nodes that may run a worker.")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_as_names)] = setting(
        (), 'Trackers: "tensorboard" (also when nothing is named and it is installed), "wandb", "mlflow"; or "none".'
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
