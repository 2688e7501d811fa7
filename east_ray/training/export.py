"""Export of a trained model as a plain Hugging Face directory.

An export is its base model's own files (tokenizer, chat template, generation config, custom code) with new weights under
the same tensor names, so whatever loads the base loads the export. It is read back and compared before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import peft
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from east_ray.records import UserError

WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")
OUR_FILES = ("README.md", "training.json", "manifest.json", "intent.json")
SHARD_SIZE = "5GB"


def write_model(model: PreTrainedModel, state: Mapping[str, torch.Tensor], base: str, target: str, dtype: str) -> str:
    """Write `model` with the weights `state` as a directory like `base`, read it back, and return its weights' digest.

    UserError when a weight is not finite; AssertionError when a tensor is not read back bit for bit, or has a name or shape
    that `base` does not know. What `base` holds beyond the model's own tensors is left out (`judge_base`).
    """
    tensors = _cast(state, getattr(torch, dtype))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} is not finite after training: lower the learning rate and train again")
    shutil.rmtree(target, ignore_errors=True)
    model.generation_config = GenerationConfig()  # the base's own file is copied, and need not be one that may be saved
    model.save_pretrained(target, state_dict=tensors, max_shard_size=SHARD_SIZE)
    _take_over_files(base, target, dtype)

    shapes = {}
    for name, tensor in read_tensors(target):
        assert name not in tensors or torch.equal(tensor, tensors[name]), f"{name} was not written as trained"
        shapes[name] = tuple(tensor.shape)
    expected = tensor_shapes(base) or shapes
    unknown = sorted(shapes.items() - expected.items())
    assert not unknown, f"{base} has no tensors of these names and shapes: {unknown[:4]}"
    return weights_digest(target)


def judge_base(base: str, trust_remote_code: bool) -> list[str]:
    """Names of `base`'s tensors and weight files that an export will do without, found from their headers, before a training.

    A copy of a tied output head, rotary frequencies, weights in another format, tensors the model's class does not have.
    UserError when it is `base` that lacks tensors of its class, or has them in another shape: transformers would make them up.
    """
    found = tensor_shapes(base)
    if not found:  # only formats other than safetensors
        return []
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would print a table
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, device_map="meta", ignore_mismatched_sizes=True, trust_remote_code=trust_remote_code
        )
    finally:
        transformers_logging.set_verbosity(level)
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if _are_equal(base, name, source)}
    written = revert_weight_conversion(model, model.state_dict())
    expected = {name: tuple(tensor.shape) for name, tensor in written.items() if name not in tied}
    if lacking := sorted(name for name, shape in expected.items() if found.get(name) != shape):
        raise UserError(
            f"{base} has no {', '.join(lacking[:4])}{' ...' if lacking[4:] else ''} of the shape that its config.json says "
            f"({len(lacking)} of {len(expected)} tensors): it would be trained from random values; give a complete model"
        )
    read = {file.name for file in _tensor_files(base).values()}
    others = [name for name in os.listdir(base) if name.endswith(WEIGHT_FILES[0]) and name not in read]
    return sorted([*(found.keys() - expected.keys()), *others])


def _are_equal(directory: str, name: str, other: str) -> bool:
    """Is a tied tensor its source's copy, or not written at all? One that differs is loaded, trained and written."""
    files = _tensor_files(directory)
    if name not in files or other not in files:
        return True
    with safe_open(files[name], "pt") as mine, safe_open(files[other], "pt") as theirs:
        return torch.equal(mine.get_tensor(name), theirs.get_tensor(other))


def merge_adapter(
    model: peft.PeftModel, state: Mapping[str, torch.Tensor], base: str, adapter_dir: str, trust_remote_code: bool
) -> PreTrainedModel:
    """Save the adapter of `model`, whose gathered parameters are `state`, and return the base model with it merged in.

    The sum is taken in float32; `write_model` rounds it to the model's type.
    """
    adapter = peft.get_peft_model_state_dict(model, state_dict=dict(state))
    os.makedirs(adapter_dir, exist_ok=True)
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in adapter.items()}
    save_file(contiguous, os.path.join(adapter_dir, "adapter_model.safetensors"), metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(adapter_dir)
    unset_hf_deepspeed_config()  # else loading under ZeRO-3 would wait for the other ranks, which do not call this
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    return peft.PeftModel.from_pretrained(whole, adapter_dir).merge_and_unload()


def read_tensors(directory: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor in a model directory's safetensors files, by name."""
    for name, file in sorted(_tensor_files(directory).items()):
        with safe_open(file, "pt") as tensors:
            yield name, tensors.get_tensor(name)


def tensor_shapes(directory: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a model directory's safetensors files, from their headers alone."""
    shapes = {}
    for name, file in _tensor_files(directory).items():
        with safe_open(file, "pt") as tensors:
            shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def _tensor_files(directory: str) -> dict[str, Path]:
    """The safetensors file of each tensor, as transformers finds them: by the index, in model.safetensors, or anywhere."""
    index, single = Path(directory, "model.safetensors.index.json"), Path(directory, "model.safetensors")
    if index.is_file():
        names = json.loads(index.read_bytes())["weight_map"]
        return {name: Path(directory, file) for name, file in names.items()}
    files = {}
    for file in [single] if single.is_file() else sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), file))
    return files


def weights_digest(directory: str) -> str:
    """sha256 over names, types, shapes and bytes of all tensors, whichever files hold them."""
    digest = hashlib.sha256()
    for name, tensor in read_tensors(directory):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`state` on the CPU in another type; parameters that share memory (tied embeddings) still do."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    tensors = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        tensors[name] = copies[key]
    return tensors


def _take_over_files(base: str, target: str, dtype: str) -> None:
    """Replace `target`'s files other than weights by the base model's; TRL changed some of them in memory."""
    for directory, remove in ((target, True), (base, False)):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if os.path.isdir(path) or name.endswith(WEIGHT_FILES) or name in OUR_FILES:
                continue
            if remove:
                os.remove(path)
            else:
                shutil.copyfile(path, os.path.join(target, name))
    config = json.loads(Path(target, "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True) + "\n"
    Path(target, "config.json").write_text(text, encoding="utf-8")
