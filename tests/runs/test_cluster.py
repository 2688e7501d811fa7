"""Ray as the commands start it: quiet, and with the user's own environment variables left alone."""

from __future__ import annotations

import json
import logging
import os

import pytest

from east_ray.console import QUIET, quiet_ray_data, silence_libraries
from east_ray.records import UserError
from east_ray.runs.cluster import ENVIRONMENT, _environment_of_nodes, check_socket_path


def test_ray_data_keeps_its_own_messages_to_its_log_file() -> None:
    with quiet_ray_data():
        pass
    streams = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    assert streams
    assert all(handler.level >= logging.CRITICAL for handler in streams)


def test_a_nodes_agent_listens_on_a_port_that_no_other_rays_agent_wants(ray_session: None) -> None:
    from ray._private import ray_constants, worker

    assert worker._global_node.dashboard_agent_listen_port not in (0, ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)


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


def test_a_temporary_directory_too_deep_for_sockets_is_one_sentence() -> None:
    from ray._private.utils import validate_socket_filepath

    longest = "/" + "d" * 200
    while True:  # the longest that passes, by one byte
        try:
            check_socket_path({"TMPDIR": longest})
            break
        except UserError as error:
            assert "set RAY_TMPDIR to a short directory" in str(error)
            longest = longest[:-1]
    session = f"{longest}/ray/session_2026-11-27_16-56-34_123456_{os.getpid()}/sockets/plasma_store"
    validate_socket_filepath(session)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(f"{longest}d/" + session.removeprefix(f"{longest}/"))
