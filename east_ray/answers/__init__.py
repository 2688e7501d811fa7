"""The answer in a text, what it means, and whether it is right. `PARSERS` and `CanonicalAnswer` are extension points."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from east_ray.answers.canonical import PARSERS
    from east_ray.answers.meaning import CanonicalAnswer

__all__ = ["PARSERS", "CanonicalAnswer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"east_ray.answers.{'canonical' if name == 'PARSERS' else 'meaning'}"), name)
