"""A Slurm of our own on this machine: munged, slurmctld and several slurmd with one directory, ended by their process ids."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ray_processes import BIN, ENVIRONMENT, end, free_ports, short_directory

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun", "scancel")
CONFIG = """
ClusterName=here
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=n[0-{last}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{slurmd_ports}] CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """The reason why no Slurm can be started here, if there is one."""
    missing = [name for name in PROGRAMS if program(name) is None]
    return f"not installed: {', '.join(missing)} (slurmctld, slurmd, slurm-client, munge)" if missing else None


def program(name: str) -> str | None:
    """Debian keeps daemons where an ordinary user's PATH does not look."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Slurm:
    """Commands for the Slurm below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        token = directory / "auth_token"
        token.write_text(secrets.token_hex(32))
        self.environment = os.environ | ENVIRONMENT
        self.environment |= {"SLURM_CONF": str(directory / "slurm.conf"), "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environment["PATH"] = f"{BIN}:{self.environment['PATH']}"  # as in an activated environment
        self.environment.pop("RAY_ADDRESS", None)

    def ask(self, *command: str | Path, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ..."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm(nodes: int) -> Iterator[Slurm]:
    with short_directory() as directory:
        started = Slurm(directory)
        port, first = free_ports(1)[0], consecutive_ports(nodes)
        (directory / "state").mkdir()
        key = directory / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        directory.chmod(0o755)  # munged insists that others may pass to its socket
        (directory / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname(),
                user=os.environ.get("USER", "root") if os.getuid() else "root",
                directory=directory,
                port=port,
                last=nodes - 1,
                slurmd_ports=f"{first}-{first + nodes - 1}",
            )
        )
        files = {name: directory / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        munged = ["munged", "--foreground", f"--key-file={key}", f"--socket={files['socket']}"]
        munged += [f"--{name}-file={files[name]}" for name in ("pid", "log", "seed")]
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            for command in (
                munged,
                ["slurmctld", "-D", "-i"],
                *(["slurmd", "-D", "-N", f"n{n}"] for n in range(nodes)),
            ):
                with (directory / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("wb") as output:
                    command[0] = program(command[0]) or command[0]
                    daemons.append(
                        subprocess.Popen(
                            command,
                            env=started.environment,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
                while command is munged and not files["socket"].exists():
                    assert daemons[0].poll() is None, "munged did not start"
                    time.sleep(0.1)
            while started.ask("sinfo", "--noheader", "--format=%D %t", check=False) != f"{nodes} idle":
                assert all(daemon.poll() is None for daemon in daemons), "a daemon of Slurm did not start"
                time.sleep(0.5)
            yield started
        finally:
            jobs = started.ask("squeue", "--noheader", "--format=%i", check=False).split()
            if jobs:
                started.ask("scancel", *jobs, check=False)
                while started.ask("squeue", "--noheader", check=False):
                    time.sleep(1)
            for daemon in reversed(daemons):
                end(daemon)


def consecutive_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        first = free_ports(1)[0]
        try:
            for port in range(first, first + count):
                with socket.socket() as held:
                    held.bind(("127.0.0.1", port))
            return first
        except (OSError, OverflowError):
            continue
