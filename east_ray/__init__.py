"""Entropy-based adaptive weighting for self-training (EAST, arXiv 2503.23913) on Ray, vLLM, TRL and DeepSpeed.

The `east-ray` command does everything; these names are for use from Python. Each is imported when it is first touched, so
that `import east_ray` loads nothing heavy. Whatever is not listed here may change between versions.

    load, Config                       a run's settings
    run_algorithm, RunDirectory        Algorithm 1, and where one run keeps everything
    extract_answer, Grader             the answer in a text; verdicts and clusters of a question's answers
    entropy, WeightMapping, weights    eq. 1; from measures to weights of mean 1 (eqs. 2 to 6)
    write_report                       the page about a run
    UserError                          what the user can fix: the message names the thing and the remedy
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from east_ray.answers.extraction import extract_answer
    from east_ray.answers.grading import Grader
    from east_ray.config.load import Config, load
    from east_ray.pipeline import run_algorithm
    from east_ray.records import UserError
    from east_ray.report.page import write_report
    from east_ray.runs.directory import RunDirectory
    from east_ray.weighting.mappings import WeightMapping, entropy, weights

__all__ = [
    "Config",
    "Grader",
    "RunDirectory",
    "UserError",
    "WeightMapping",
    "entropy",
    "extract_answer",
    "load",
    "run_algorithm",
    "weights",
    "write_report",
]

_HOME = {
    "answers.extraction": ("extract_answer",),
    "config.load": ("Config", "load"),
    "answers.grading": ("Grader",),
    "pipeline": ("run_algorithm",),
    "records": ("UserError",),
    "report.page": ("write_report",),
    "runs.directory": ("RunDirectory",),
    "weighting.mappings": ("WeightMapping", "entropy", "weights"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"east_ray.{module}"), name)
    raise AttributeError(f"module 'east_ray' has no attribute {name!r}")
