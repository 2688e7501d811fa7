"""Exchanged weights: an engine gives what a fresh one on the same directory gives, or refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from east_ray.rollouts.engine import ExchangeRefused
from east_ray.rollouts.exchange import WeightExchange, _reads_back, check_exchange, mirror, read
from tests.support.tiny_models import ARCHITECTURES, make_model

ROOT = Path(__file__).resolve().parents[2]
REFUSED = ("Mixtral", "Qwen3-MoE")  # vLLM 0.32 keeps packed copies of their experts


@pytest.mark.parametrize(
    "architecture", ["Llama tied", "Llama untied", "Qwen2 tied", "Qwen3 untied", "Gemma 3", "Phi-3"]
)
def test_a_mirrored_model_computes_the_same_to_the_last_bit(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    make_model(architecture, 0, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(3, 256, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
        weights = dict(mirror(str(tmp_path)))
        changed = sum(not tensor.equal(weights[name]) for name, tensor in read(str(tmp_path)))
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        assert model(ids).logits.equal(logits)
    assert changed == sum(tensor.ndim > 1 for tensor in weights.values())


def test_a_head_that_was_left_behind_shows_at_once(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    make_model("Llama untied", 0, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(3, 256, (1, 48), generator=torch.Generator().manual_seed(0))

    def scores() -> list[float]:
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        return logps.gather(1, ids[0, 1:, None])[:, 0].tolist()

    before = scores()
    check_exchange(before, scores(), [])
    model.load_state_dict({name: t for name, t in mirror(str(tmp_path)) if "lm_head" not in name}, strict=False)
    with pytest.raises(ExchangeRefused, match="off by up to"):
        check_exchange(scores(), before, [])


@pytest.mark.parametrize("loaded", [[-5.0, -5.0], [float("nan"), -1.0]], ids=["all the same", "no number"])
def test_log_probabilities_that_show_nothing_are_no_evidence(loaded: list[float]) -> None:
    with pytest.raises(ExchangeRefused):
        check_exchange(loaded, loaded, [])


@pytest.mark.parametrize("works", [True, False])
def test_a_reload_that_writes_nothing_is_noticed(works: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_model("Llama tied", 0, tmp_path)

    class Worker(WeightExchange):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        parallel_config = SimpleNamespace(tensor_parallel_size=1)
        model_runner = property(lambda self: self)

        def get_model(self) -> Any:
            return self.model

        def reload_weights(self, weights_iterator: Any) -> None:
            loaded = dict(weights_iterator)
            if works:
                self.model.load_state_dict(loaded, strict=False)

    worker = Worker()
    stale = worker.exchange_weights(str(tmp_path), True) + worker.exchange_weights(str(tmp_path), False)
    assert stale == ([] if works else ["the embedding"])


@pytest.mark.parametrize("shard", [None, 0, 1])
@pytest.mark.parametrize("left_behind", [None, "q_proj", "k_proj", "v_proj"])
def test_biases_that_vllm_fuses_read_back_whole_or_sharded(
    left_behind: str | None, shard: int | None, tmp_path: Path
) -> None:
    """In a worker that has all heads, or one of two: half the queries, and the only key and value head."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    sizes = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
    biases = {f"layers.0.self_attn.{name}.bias": torch.randn(size, generator=draw) for name, size in sizes.items()}
    embedding = {"embed_tokens.weight": torch.randn(16, 8, generator=draw)}
    save_file(
        {**embedding, **biases, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')

    class Worker(WeightExchange):
        parallel_config = SimpleNamespace(tensor_parallel_size=1 if shard is None else 2)
        model_runner = property(lambda self: self)
        model = torch.nn.Module()

        def get_model(self) -> Any:
            return self.model

        def reload_weights(self, weights_iterator: Any) -> None:
            loaded = dict(weights_iterator)
            self.model.register_parameter(
                "embed_tokens.weight".replace(".", "_"), torch.nn.Parameter(loaded["embed_tokens.weight"])
            )
            parts = [
                b if left_behind is None or left_behind not in n else b + 1 for n, b in loaded.items() if n in biases
            ]
            if shard is not None:
                parts[0] = parts[0].chunk(2)[shard]
            layers = torch.nn.Module()
            layers.register_parameter("bias", torch.nn.Parameter(torch.cat(parts)))
            self.model.layers = torch.nn.ModuleList(
                [torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict({"qkv_proj": layers})})]
            )

    worker = Worker()
    stale = worker.exchange_weights(str(tmp_path), True) + worker.exchange_weights(str(tmp_path), False)
    assert stale == ([] if left_behind is None else [f"layers.0.self_attn.{left_behind}.bias"] * 2)


def test_a_vector_that_is_nowhere_in_the_engine_counts_as_not_exchanged() -> None:
    import torch

    held = {"norm.weight": torch.ones(4)}
    assert _reads_back("norm.weight", torch.ones(4), held, 1)
    assert not _reads_back("norm.weight", torch.zeros(4), held, 1)
    assert not _reads_back("other.weight", torch.ones(4), held, 1)


def test_a_vector_that_keeps_its_old_values_is_named() -> None:
    with pytest.raises(ExchangeRefused, match=r"model\.norm\.weight keeps its old values"):
        check_exchange([-1.0, -2.0], [-1.0, -2.0], ["model.norm.weight"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "architecture",
    [name if name == "Llama tied" else pytest.param(name, marks=pytest.mark.slow, id=name) for name in ARCHITECTURES],
)
def test_exchanged_weights_give_a_fresh_engines_completions_or_are_refused(architecture: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "tiny_models.py"), architecture, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["differ"] > 0
    assert found["equal"] == [6] * len(found["equal"])
    assert ("refused" in found) == (len(found["equal"]) < 4) == (architecture in REFUSED)
