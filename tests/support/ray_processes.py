"""Ray instances of our own beside whatever else runs here: own ports, own directory, own token; ended by their process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# What every process of a test on this machine needs: one thread each, real vLLM on the CPU, no network.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


HEAD_ID = "f" * 51 + "00000"  # how Ray's provider of nodes on this machine knows its head


@dataclass(frozen=True)
class Head:
    """A Ray head with dashboard and job server; `environment` is what a client of it needs, `address` the cluster's."""

    dashboard: str
    environment: dict[str, str]
    address: str


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on; all are held until the last is found."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short name: Ray's sockets below it may not be longer than 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def ray_head(num_cpus: int = 2, node_types: Mapping[str, Mapping[str, object]] | None = None) -> Iterator[Head]:
    """Start `ray start --head --block` with token authentication, as on a cluster, and end it afterwards.

    With `node_types`, as in a launcher file, Ray's autoscaler starts and ends further "nodes" on this machine.
    """
    port, dashboard, client, *agents = free_ports(7)
    with short_directory() as directory:
        token = directory / "auth_token"
        token.write_text(secrets.token_hex(32))
        environment = os.environ | ENVIRONMENT
        environment["PATH"] = f"{BIN}:{environment['PATH']}"  # as in an activated environment: jobs call `python`
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(directory)}
        environment.pop("RAY_ADDRESS", None)
        options = {
            "port": port,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agents[0],
            "dashboard-agent-grpc-port": agents[1],
            "runtime-env-agent-port": agents[2],
            "metrics-export-port": agents[3],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": num_cpus,
            "object-store-memory": 300 << 20,
            "temp-dir": directory / "ray",
        }
        if node_types:
            (directory / "autoscaling.json").write_text(json.dumps(autoscaling(node_types, f"127.0.0.1:{port}")))
            options |= {"autoscaling-config": directory / "autoscaling.json", "node-ip-address": "127.0.0.1"}
            environment |= {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": "1",
            }
            environment |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), HEAD_ID)
        command = [BIN / "ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
        log = directory / "head.log"
        with log.open("w") as output:
            head = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for_job_server(address, environment, head, log)
            yield Head(address, environment, f"127.0.0.1:{port}")
        finally:
            below = []
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(head.pid).children(recursive=True)
            end(head)
            for process in psutil.wait_procs(below, timeout=10)[1]:  # the autoscaler's nodes have sessions of their own
                process.kill()


def autoscaling(node_types: Mapping[str, Mapping[str, object]], address: str) -> dict[str, object]:
    """A launcher file for Ray's provider of nodes that are processes on this machine."""
    return {
        "cluster_name": "here",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 8,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": address,
            "disable_launch_config_check": True,
            "disable_node_updaters": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }


class Nodes:
    """A Ray cluster of several nodes; `remove` kills one as a lost machine would, `add` brings another of its kind."""

    def __init__(self, keeper: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._keeper = keeper
        self._one_at_a_time = threading.Lock()
        self.environment = environment | {"RAY_ADDRESS": self._answer()}

    def remove(self, name: str) -> None:
        self._ask("remove", name)

    def add(self, name: str) -> None:
        """`name` is a kind, or KIND@LABEL for one more of it."""
        self._ask("add", name)

    def actors(self) -> list[tuple[str, str]]:
        """(class, name of its node) of every actor that was ever started."""
        return [(kind, node) for kind, node in self._ask("actors")]

    def _ask(self, *words: str) -> Any:
        assert self._keeper.stdin is not None
        with self._one_at_a_time:
            self._keeper.stdin.write(" ".join(words) + "\n")
            self._keeper.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self._keeper.stdout is not None
        answer = self._keeper.stdout.readline()
        assert answer, "the cluster's process ended"
        return json.loads(answer)


@contextmanager
def ray_nodes(nodes: Mapping[str, Mapping[str, object]]) -> Iterator[Nodes]:
    """A head that runs no work and the given nodes: name -> {num_cpus, num_gpus, labels}."""
    with short_directory() as directory:
        environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(directory)}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, str(ROOT / "tests" / "support" / "node_keeper.py"), json.dumps(nodes)]
        with (directory / "keeper.log").open("w") as log:
            keeper = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            yield Nodes(keeper, environment)
        finally:
            end(keeper)


def wait_for_job_server(address: str, environment: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(60):
        listing = subprocess.run(
            [BIN / "ray", "job", "list", "--address", address], env=environment, capture_output=True, check=False
        )
        if listing.returncode == 0:
            return
        assert head.poll() is None, log.read_text()
    raise AssertionError(f"no job server after 60 tries: {log.read_text()}")


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process that leads a session of its own, with everything it started."""
    process.terminate()  # both `ray start --block` and a Cluster's process end their children on SIGTERM
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
