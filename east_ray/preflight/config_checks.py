"""Doctor's checks of a config: does it fit this machine, can its run directory be written, its model fetched and prompted?"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from east_ray.config.load import Config
from east_ray.models import WEIGHTS, check_hub_name, load_tokenizer
from east_ray.preflight.estimate import estimate
from east_ray.preflight.machine_checks import GIB, Finding, Gpu, fail, ok, warn
from east_ray.preflight.model_size import DTYPE_BYTES, read_architecture
from east_ray.questions.prompts import PROBE, Prompts
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.runs.storage import is_local


def check_devices(config: Config, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """The GPUs this config asks for against those of this machine; a cluster may have others."""
    per_engine = config.sampling.gpus_per_engine
    if not config.training.use_gpu and per_engine == 0:
        return
    if not gpus:
        remedy = (
            "expected on a cluster's head; on one machine set sampling.gpus_per_engine=0 and training.use_gpu=false"
        )
        yield warn("devices", "the config trains or samples on GPUs, and this machine shows none", remedy)
    elif per_engine > len(gpus):
        remedy = "an engine must fit one node: lower sampling.tensor_parallel_size, or use larger nodes"
        yield warn("devices", f"one engine takes {per_engine:g} GPUs, this machine has {len(gpus)}", remedy)
    else:
        yield ok("devices", f"{len(gpus)} GPUs for engines of {per_engine:g}")


def check_model(config: Config) -> Iterator[Finding]:
    """Everything that needs the model: one finding when there is none, else access, memory and prompts."""
    hub = list(check_hub(config))
    if any(finding.status == "fail" for finding in hub):
        yield from hub
        return
    try:
        read_architecture(config.model)
    except UserError as error:
        yield fail("model", *_detail_and_remedy(error))
        return
    if os.path.isdir(path := config.model.path) and not any(list(Path(path).glob(kind)) for kind in WEIGHTS):
        yield fail("model", f"{path} holds no weights ({' or '.join(WEIGHTS)})", "copy the rest of the model directory")
        return
    yield from hub
    yield from check_host_memory(config)
    yield from check_chat_template(config)
    yield from check_export(config)


def check_export(config: Config) -> Iterator[Finding]:
    """What a trained model would do without of its base's directory, or what that lacks; only when it is on this disk."""
    if not os.path.isdir(config.model.path):
        return
    from east_ray.training.export import judge_base  # torch and peft

    try:
        left_out = judge_base(config.model.path, config.model.trust_remote_code)
    except UserError as error:
        yield fail("export", *_detail_and_remedy(error))
        return
    names = ", ".join(left_out[:4]) + (" ..." if left_out[4:] else "")
    yield ok("export", f"without {names}, which its class does not write" if left_out else "all of the model's tensors")


def _detail_and_remedy(error: UserError) -> tuple[str, str]:
    """A UserError says what is wrong, then, after a semicolon, what to do."""
    detail, _, remedy = str(error).partition("; ")
    return detail, remedy or "correct model.path"


def check_host_memory(config: Config, available_bytes: int | None = None) -> Iterator[Finding]:
    """CPU engines hold weights and KV cache in this machine's memory."""
    if config.sampling.gpus_per_engine > 0:
        return
    available = (psutil.virtual_memory().available if available_bytes is None else available_bytes) / GIB
    weights = read_architecture(config.model).parameters * DTYPE_BYTES[config.model.dtype] / GIB
    engines, cache = config.sampling.max_engines, config.sampling.kv_cache_gib
    needed = engines * (weights + cache + 1.5)  # an engine process without either takes 1.5 GiB
    detail = f"CPU engines ({engines}) need {needed:.1f} GiB, {available:.1f} GiB are free"
    if needed > available:
        remedy = "lower sampling.kv_cache_gib or sampling.max_engines, or use a smaller model"
        yield fail("memory", detail, remedy)
    else:
        yield ok("memory", detail)


def check_storage(config: Config) -> Iterator[Finding]:
    """Write, read and delete a small file where the run will write, and compare free space with the plan."""
    probe = f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        run = RunDirectory(config.run.dir)
        run.check_reachable()
        existed = run.exists()
        run.write_bytes(b"east-ray", probe, "probe")
        intact = run.read_bytes(probe, "probe") == b"east-ray"
        run.delete(probe)
        if run.is_local and not existed:
            os.rmdir(run.root)
    except (UserError, OSError) as error:
        remedy = "another --set run.dir=..., or credentials and permission to write there"
        yield fail("storage", f"run.dir={config.run.dir!r}: {error}", remedy)
        return
    if not intact:
        yield fail("storage", f"{config.run.dir} returned other bytes than were written", "use another filesystem")
    elif run.is_local:
        yield _free_space(config, run)
    else:
        yield ok("storage", f"{config.run.dir} can be written and read")


def _free_space(config: Config, run: RunDirectory) -> Finding:
    existing = next(parent for parent in [Path(run.root), *Path(run.root).parents] if parent.exists())
    free = shutil.disk_usage(existing).free / GIB
    try:
        needed = estimate(config).disk_gib
    except UserError:  # another check reports what prevents a plan
        return ok("storage", f"{config.run.dir} can be written, {free:.1f} GiB free")
    detail = f"{config.run.dir}: {free:.1f} GiB free, the run needs about {needed:.2g}"
    if free < needed:
        return fail("storage", detail, "free some, or --set run.dir=... on a larger disk or s3://bucket/prefix")
    return ok("storage", detail)


def check_hub(
    config: Config,
    environment: Mapping[str, str] = os.environ,
    token: Callable[[], str | None] | None = None,
    access: Callable[[str], None] | None = None,
) -> Iterator[Finding]:
    """Can the model be fetched from the hub? `token` and `access` are the hub client's. A directory, here or on an
    object store, needs neither.
    """
    if os.path.isdir(config.model.path) or not is_local(config.model.path):
        return
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        check_hub_name(config.model.path)
    except UserError as error:
        yield fail("model", *_detail_and_remedy(error))
        return
    repo, token, access = config.model.path, token or huggingface_hub.get_token, access or huggingface_hub.auth_check
    if environment.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        remedy = "unset HF_HUB_OFFLINE, or point model.path at a directory"
        yield warn("hub", f"HF_HUB_OFFLINE is set: {repo} must already be in the cache", remedy)
        return
    login = "" if token() else "; no token is set: `hf auth login`, or HF_TOKEN"
    try:
        access(repo)
        yield ok("hub", f"{repo} can be fetched")
    except GatedRepoError:
        remedy = f"accept its licence at https://huggingface.co/{repo}{login}"
        yield fail("hub", f"{repo} is gated and access is not granted yet", remedy)
    except RepositoryNotFoundError:
        yield fail("hub", f"the hub has no {repo}, or hides it", f"check the name{login}")
    except Exception as error:  # whatever the client's HTTP library raises without a network
        remedy = "check the network; for a model in the cache set HF_HUB_OFFLINE=1, or point model.path at a directory"
        yield fail("hub", f"the hub does not answer ({type(error).__name__})", remedy)


def check_chat_template(config: Config, tokenizer: Any = None) -> Iterator[Finding]:
    """Render one prompt as the run will, and flag template features that silently change prompts."""
    name = "chat template"
    try:
        tokenizer = tokenizer or load_tokenizer(config.model)
        prompts = Prompts(tokenizer, config.questions)
    except UserError as error:
        yield fail(name, *_detail_and_remedy(error))
        return
    prompt = prompts.text(PROBE)
    turn = f", the instruction in a {prompts.role} turn" if prompts.role else ""
    trouble = list(_template_trouble(config, prompts, tokenizer.get_chat_template()))
    yield from trouble or [ok(name, f"renders {len(prompts.token_ids(prompt))} tokens around a short question{turn}")]


def _template_trouble(config: Config, prompts: Prompts, template: str) -> Iterator[Finding]:
    name = "chat template"
    if prompts.text(PROBE) == prompts.text(PROBE, add_generation_prompt=False):
        detail = "does not open the assistant's turn (add_generation_prompt changes nothing)"
        yield warn(name, detail, "check that the model answers rather than continues the question")
    if "strftime_now" in template or "date_string" in template:
        detail = "puts today's date into every prompt; a run keeps the prompts of its first day, other runs differ"
        remedy = "to compare runs over days, write a fixed date into a copy's chat_template.jinja"
        yield warn(name, detail, remedy)
    thinks = "<think>" in template or "enable_thinking" in template
    if thinks and "enable_thinking" not in config.questions.chat_template_arguments:
        remedy = "raise sampling.max_new_tokens, or set questions.chat_template_arguments.enable_thinking=false"
        yield warn(name, "has thinking tags: completions may open with long thoughts", remedy)
