"""Ray as the commands start it: quiet, and with the user's own environment variables left alone."""

from __future__ import annotations

import json
import logging

import pytest

from east_ray.console import QUIET, quiet_ray_data, silence_libraries
from east_ray.runs.cluster import ENVIRONMENT, _environment_of_nodes


def test_ray_data_keeps_its_own_messages_to_its_log_file() -> None:
    with quiet_ray_data():
        pass
    streams = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    assert streams
    assert all(handler.level >= logging.CRITICAL for handler in streams)


def test_a_variable_that_the_user_has_set_stays_and_reaches_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    silence_libraries()
    assert _environment_of_nodes()["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert _environment_of_nodes()["HF_HUB_VERBOSITY"] == "error"


def test_a_variable_of_the_jobs_own_runtime_environment_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime_env": {"env_vars": {"VLLM_LOGGING_LEVEL": "DEBUG", "PYTHONUNBUFFERED": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    sent = _environment_of_nodes()
    assert "VLLM_LOGGING_LEVEL" not in sent
    assert set(sent) <= set(QUIET) | set(ENVIRONMENT)
    assert "HF_HUB_DISABLE_TELEMETRY" in sent
