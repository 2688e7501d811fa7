"""Exchange the weights of a running engine, and show that nothing of the old model is left behind.

vLLM keeps more than the tensors that `reload_weights` writes: packed copies of the output head and of experts, for
example, which may stay the old model's while every tensor reads back right. So no exchange is trusted. Flip the sign of
some coordinates of the residual stream, in every matrix that reads it or writes to it: RMSNorm commutes with that, and
sign flips are exact in floating point, so this mirrored model computes the same log-probabilities to the last bit. An
engine goes to a new model by way of the new model's mirror image. A matrix that was left behind works in the wrong
coordinates in at least one of the two, and the log-probabilities of a fixed sequence then differ by far.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from east_ray.rollouts.engine import ExchangeRefused

# Square matrices that write to the residual stream; other square ones read it. Of the rest the shape tells.
WRITERS = ("o_proj", "out_proj", "down_proj", "w2", "wo", "dense", "c_proj", "fc2")
# What vLLM fuses, and into what. The mirror image leaves their biases alone, so they must read back.
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
TOLERANCE = 0.01  # of the log-probabilities' standard deviation; CPU engines are equal to the last bit


class WeightExchange:
    """vLLM's worker extension: methods that `collective_rpc` finds in every worker."""

    _mirrored_rows: dict[str, Any]

    def exchange_weights(self, path: str, mirrored: bool) -> list[str]:
        """Load the safetensors of a directory, or its mirror image; return the names of what keeps old values.

        Vectors must read back as loaded, and the embedding must change between the mirror image and the model itself: a
        reload that wrote nothing at all would give both the same log-probabilities.
        """
        worker: Any = self
        vectors = {}

        def weights() -> Iterator[tuple[str, Any]]:
            for name, tensor in mirror(path) if mirrored else read(path):
                if tensor.ndim == 1:
                    vectors[name] = tensor
                yield name, tensor

        worker.reload_weights(weights_iterator=weights())
        model = worker.model_runner.get_model()
        _process_shared_modules(model)
        parameters = dict(model.named_parameters())
        shards = worker.parallel_config.tensor_parallel_size
        stale = [name for name, vector in vectors.items() if not _reads_back(name, vector, parameters, shards)]
        rows = {
            name: p[:64].detach().cpu().clone() for name, p in parameters.items() if "embed" in name and p.ndim == 2
        }
        if not mirrored and (not rows or all(row.equal(self._mirrored_rows[name]) for name, row in rows.items())):
            stale.append("the embedding")
        self._mirrored_rows = rows
        return stale


def check_exchange(mirrored: Sequence[float], loaded: Sequence[float], stale: Sequence[str]) -> None:
    """ExchangeRefused unless the mirror image and the model itself give a sequence the same log-probabilities."""
    if stale:
        raise ExchangeRefused(f"{stale[0]} keeps its old values")
    difference = float(np.max(np.abs(np.subtract(mirrored, loaded))))
    allowed = TOLERANCE * float(np.std(loaded))
    if not difference <= allowed or not allowed > 0:  # also when a value is no number
        raise ExchangeRefused(
            f"log-probabilities after the exchange are off by up to {difference:.2g} nats ({allowed:.2g} allowed)"
        )


def read(path: str) -> Iterator[tuple[str, Any]]:
    """Every tensor of a model directory, by name. FileNotFoundError when it holds no safetensors."""
    from safetensors import safe_open

    index = Path(path, "model.safetensors.index.json")
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    for file in files:
        with safe_open(Path(path, file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def mirror(path: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a model that computes the same as the one in the directory, with part of its coordinates negated."""
    import torch

    config = json.loads(Path(path, "config.json").read_text())
    width = int(config.get("hidden_size") or config["text_config"]["hidden_size"])
    sign_H = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], width))
    for name, tensor in read(path):
        yield name, _mirrored(name, tensor, sign_H.to(tensor.dtype))


def _mirrored(name: str, tensor: Any, sign_H: Any) -> Any:
    module = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    width = len(sign_H)
    if tensor.ndim == 1:  # norms scale coordinates one by one; only the bias of a writer is added to the stream
        return tensor * sign_H if name.endswith(".bias") and module in WRITERS and len(tensor) == width else tensor
    reads, writes = tensor.shape[-1] == width, tensor.shape[-2] == width
    if reads and writes:
        reads, writes = module not in WRITERS, module in WRITERS
    if reads:
        return tensor * sign_H
    return tensor * sign_H[:, None] if writes else tensor


def _reads_back(name: str, vector: Any, parameters: Mapping[str, Any], shards: int) -> bool:
    """Is a file's vector in the engine: under its name or within what it is fused into, whole or one of its shards?

    Inverse frequencies, which old files hold, follow from the configuration.
    """
    *path, module, kind = name.rsplit(".", 2)
    parameter = parameters.get(name, parameters.get(".".join([*path, FUSED.get(module, module), kind])))
    if parameter is None:
        return kind == "inv_freq"
    held, vector = parameter.detach().cpu().flatten(), vector.to(parameter.dtype)
    counts = [count for count in range(1, shards + 1) if shards % count == 0 and len(vector) % count == 0]
    pieces = [piece for count in counts for piece in vector.chunk(count) if len(piece) <= len(held)]
    return any(bool((held.unfold(0, len(piece), 1) == piece).all(dim=1).any()) for piece in pieces)


def _process_shared_modules(model: Any) -> None:
    """Derive again what modules hold of a weight that they share: vLLM 0.32's reload does so only for the first of them."""
    seen: set[int] = set()
    for module in model.modules():
        weights = [parameter.data_ptr() for parameter in module.parameters(recurse=False)]
        method: Any = getattr(module, "quant_method", None)
        if weights and seen.issuperset(weights) and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(module)
        seen.update(weights)
