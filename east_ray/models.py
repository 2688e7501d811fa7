"""Find a model: a directory, an address on an object store, or a name on the hub; all end as a directory on this node."""

from __future__ import annotations

import json
import logging
import os
import re
import textwrap
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from east_ray.config.sections import ModelConfig
from east_ray.records import Unavailable, UserError
from east_ray.runs.directory import MANIFEST, RunDirectory, fingerprint_source
from east_ray.runs.storage import Directory

logger = logging.getLogger(__name__)

# Of a repository on the hub only what is used is fetched: many hold the same weights two or three times.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
WEIGHTS = ("*.safetensors", "*.bin")  # the second kind only where there is none of the first
COPIES = ("original/*", "consolidated*", "onnx/*", "openvino/*", "coreml/*")
PINS = "commits.json"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def pin(run: RunDirectory, model: ModelConfig) -> ModelConfig:
    """The model with the commit its hub revision meant when this run first asked, so that every node and every resumed
    command has the same weights whatever is pushed meanwhile. Directories and stores are left as they are.

    A run whose questions were prepared for a model that was not pinned continues without one.
    """
    if os.path.isdir(model.path) or "://" in model.path:
        return model
    check_hub_name(model.path)
    asked = f"{model.path}@{model.revision or 'main'}"
    pins: dict[str, str] = run.read_json(PINS) if run.exists(PINS) else {}
    if asked not in pins:
        if run.exists("questions", MANIFEST):
            unpinned = fingerprint_source(model.path, model.revision)
            if run.read_json("questions", MANIFEST)["inputs"].get("model") == unpinned:
                return model
        from huggingface_hub import HfApi

        try:
            pins[asked] = HfApi().resolve_revision(model.path, revision=model.revision).resolved
        except Exception as error:
            raise _cannot_fetch(model.path, error) from None
        run.write_json(pins, PINS)
        logger.info("%s is commit %s", asked, pins[asked])
    return model.model_copy(update={"revision": pins[asked]})


def local_model(path: str, revision: str | None = None, *, weights: bool = True) -> str:
    """A directory on this node for a model given as a directory, an s3:// or gs:// address, or a hub name.

    Object stores are copied once per node. Hub models go to the Hugging Face cache, once however many processes ask,
    and without their weights when only the tokenizer is wanted. UserError when there is no such model.
    """
    if os.path.isdir(path) or "://" in path:
        return Directory(path).local_copy()
    check_hub_name(path)
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> str:
        wanted = [*SMALL_FILES, *patterns]
        return snapshot_download(path, revision=revision, allow_patterns=wanted, ignore_patterns=list(COPIES))

    try:
        with _lock(path):
            directory = fetch()
            kinds = (kind for kind in WEIGHTS if weights and any(Path(fetch(kind)).glob(kind)))
            found = next(kinds, None)
    except Exception as error:
        raise _cannot_fetch(path, error) from None
    if weights and not found:
        raise UserError(f"model.path={path!r} has neither {' nor '.join(WEIGHTS)} on the hub; give another model")
    return directory


def read_json(path: str, name: str, revision: str | None = None) -> dict[str, Any] | None:
    """One JSON file of a model, without its weights; None when the model has no such file."""
    if "://" in path:
        directory = Directory(path)
        data = directory.read_bytes(name) if directory.exists(name) else None
    else:
        file = Path(local_model(path, revision, weights=False), name)
        data = file.read_bytes() if file.is_file() else None
    return None if data is None else json.loads(data)


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer. UserError when there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    directory = local_model(model.path, model.revision, weights=False)
    if not Path(directory, "config.json").exists():
        raise UserError(
            f"model.path={model.path!r} has no config.json; give a Hugging Face model directory or a hub name"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={model.path!r} comes with Python code of its own; read it, and if you trust it set "
                f"model.trust_remote_code=true"
            ) from None
        raise UserError(
            f"model.path={model.path!r} has no usable tokenizer ({_first_line(error)}); copy tokenizer.json and "
            f"tokenizer_config.json beside the weights"
        ) from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path={model.path!r} has no chat template; use an instruct model, or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def check_hub_name(path: str) -> None:
    """UserError when a model.path, which is no directory here, cannot be the name of a model on a hub either."""
    if not HUB_NAME.fullmatch(path):
        raise UserError(f"no model directory at model.path={path!r}; give one, or a hub name such as owner/name")


def _lock(name: str) -> Any:
    """Held while a hub model is fetched, so that the engines that start together on a node fetch it once."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import WeakFileLock

    locks = Path(HF_HUB_CACHE, ".locks")
    with suppress(OSError):  # a cache that was filled beforehand may be read-only
        locks.mkdir(parents=True, exist_ok=True)
    return (
        WeakFileLock(locks / f"east-ray-{name.replace('/', '--')}.lock") if os.access(locks, os.W_OK) else nullcontext()
    )


def _cannot_fetch(path: str, error: Exception) -> UserError:
    """Hub errors have no common base: no network, no such name, no permission, ..."""
    kind = UserError if _is_final(error) else Unavailable
    return kind(
        f"model.path={path!r} is not a directory here and cannot be fetched from the hub ({_cause(error)}); correct the path, "
        "or for a hub model check its name, `hf auth login` and the network"
    )


def _is_final(error: BaseException | None) -> bool:
    """Would asking again bring the same answer? A hub that is overloaded or out of reach may answer later."""
    from huggingface_hub import errors

    final = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
    final += (errors.DisabledRepoError, errors.HFValidationError, errors.OfflineModeIsEnabled)
    while error is not None:
        if isinstance(error, final):
            return True
        if isinstance(error, errors.HfHubHTTPError) and 400 <= error.response.status_code < 500:
            return error.response.status_code not in (408, 429)
        error = error.__cause__ or error.__context__
    return False


def _cause(error: Exception) -> str:
    """A few words: the hub's client writes up to 500 characters."""
    text = _first_line(error)
    if "offline mode" in text or "outgoing traffic has been disabled" in text:
        return "HF_HUB_OFFLINE is set, and the cache does not hold it"
    if "ConnectError" in text or "ConnectTimeout" in text:
        return "the hub does not answer"
    return textwrap.shorten(text, 120, placeholder=" ...")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
