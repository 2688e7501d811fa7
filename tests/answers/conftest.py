"""A grader with default settings, one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from east_ray.answers.grading import Grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader
