"""Model directories in and out: find one wherever it lives, write a trained one as a plain Hugging Face directory.

An export is its base model's own files (tokenizer, chat template, generation config, custom code) with new weights under
the same tensor names, so whatever loads the base loads the export. Leaves training itself to `training_worker`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".safetensors.index.json")
SHARD_BYTES = 5 << 30


def local_model(path: str, revision: str | None, cache_dir: str) -> str:
    """A directory on this machine for a model given as a directory, an s3:// or gs:// URI, or a hub name.

    Object stores are copied into `cache_dir`; hub models go to the Hugging Face cache.
    """
    if os.path.isdir(path):
        return os.path.abspath(path)
    if "://" in path:
        filesystem, root = pafs.FileSystem.from_uri(path)
        target = os.path.join(cache_dir, hashlib.sha256(path.encode()).hexdigest()[:16])
        os.makedirs(target, exist_ok=True)
        pafs.copy_files(root, target, source_filesystem=filesystem)
        return target
    return snapshot_download(path, revision=revision)


def write_model(state: Mapping[str, torch.Tensor], base: str, target: str, dtype: str) -> str:
    """Write `state` as a model directory like `base`, read it back, and return the digest of its weights.

    Raises AssertionError when a tensor is missing, added, of another shape, not finite, or not read back bit for bit.
    """
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(base):
        if os.path.isfile(os.path.join(base, name)) and not name.endswith(WEIGHTS):
            shutil.copyfile(os.path.join(base, name), os.path.join(target, name))
    config_path = Path(target, "config.json")
    config = json.loads(config_path.read_text())
    config.pop("torch_dtype", None)
    config_path.write_text(json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True) + "\n")

    expected = tensor_shapes(base)
    tensors = {name: state[name].detach().to("cpu", getattr(torch, dtype)).contiguous() for name in sorted(expected)}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, os.path.join(target, file), metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        Path(target, "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    _check_written(tensors, expected, target)
    return weights_digest(target)


def tensor_shapes(directory: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a model directory's safetensors files."""
    shapes = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


def weights_digest(directory: str) -> str:
    """sha256 over names, types, shapes and bytes of all tensors, whatever files they are spread over."""
    digest = hashlib.sha256()
    where = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            where.update(dict.fromkeys(tensors.keys(), file))
    for name in sorted(where):
        with safe_open(where[name], "pt") as tensors:
            tensor = tensors.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.dim() else tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_written(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Any], target: str) -> None:
    found = set()
    for file in Path(target).glob("*.safetensors"):
        with safe_open(file, "pt") as written:
            for name in written.keys():  # noqa: SIM118
                tensor = written.get_tensor(name)
                assert tuple(tensor.shape) == expected[name], f"{name}: {tuple(tensor.shape)}, base {expected[name]}"
                assert torch.isfinite(tensor).all(), f"{name} is not finite: lower training.*.learning_rate"
                assert torch.equal(tensor, tensors[name]), f"{name} was not written as trained"
                found.add(name)
    assert found == set(expected), f"tensors differ from the base model's: {sorted(found ^ set(expected))[:5]}"
