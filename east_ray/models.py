"""Find a model: a directory, an address on an object store, or a name on the hub."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from east_ray.config.sections import ModelConfig
from east_ray.records import UserError
from east_ray.runs import storage

logger = logging.getLogger(__name__)


def local_model(path: str, revision: str | None) -> str:
    """A directory on this machine for a model given as a directory, an s3:// or gs:// address, or a hub name.

    Object stores are copied to the node once, hub models go to the Hugging Face cache. UserError when there is none.
    """
    if os.path.isdir(path) or "://" in path:
        return storage.local_copy(path)
    try:
        from huggingface_hub import snapshot_download

        return snapshot_download(path, revision=revision)
    except Exception as error:  # hub errors have no common base: no network, no such name, no permission, ...
        raise UserError(
            f"model {path!r} is no directory here and cannot be fetched from the hub ({type(error).__name__}); check "
            "model.path, or download it first and give its directory"
        ) from None


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer. UserError when there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    is_here = Path(model.path).is_dir()
    if is_here and not (Path(model.path) / "config.json").exists():
        raise UserError(
            f"model.path={model.path!r} has no config.json; give a Hugging Face model directory or a hub name"
        )
    if not is_here and storage.is_local(model.path):
        check_hub_name(model.path)
        logger.info("no directory %s here: asking the hub for a model of that name", model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            storage.local_copy(model.path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={model.path!r} comes with Python code of its own; read it, and if you trust it set "
                f"model.trust_remote_code=true"
            ) from None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "copy tokenizer.json and tokenizer_config.json beside the weights"
        if not is_here:
            remedy = "check the path, or the hub name, `hf auth login` and the network"
        raise UserError(f"model.path={model.path!r} has no usable tokenizer ({first}); {remedy}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path={model.path!r} has no chat template; use an instruct model, or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def adapter_rank(model: str) -> int:
    """Rank of the LoRA adapter in a directory; 0 when it holds a whole model, or is a hub name."""
    if storage.is_local(model):
        file = Path(model, "adapter_config.json")
        config = file.read_bytes() if file.is_file() else b"{}"
    else:
        uri = storage.join(model, "adapter_config.json")
        config = storage.read_bytes(uri) if storage.exists(uri) else b"{}"
    return int(json.loads(config).get("r", 0))


HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_hub_name(path: str) -> None:
    """UserError when a model.path, which is no directory here, cannot be the name of a model on a hub either."""
    if not HUB_NAME.fullmatch(path):
        raise UserError(f"no model directory at model.path={path!r}; give one, or a hub name such as owner/name")
