#!/usr/bin/env bash
# One would guess: ray.init(address="local", include_dashboard=False) starts a cluster of its own on free ports, so two of
# them on one machine have nothing to do with each other, and without a dashboard nothing serves HTTP.
# True (ray 2.60.0): the agent of every node serves HTTP on port 52365 all the same, and the node is registered only when the
# agent has that port or has failed six times to get it, with pauses that double. A second local Ray therefore starts
# more than 3 seconds later than the first, every time, and in the end without that server. The agent of a Ray whose driver
# was killed still had the port 48 seconds later (seen, not shown here), so a command that is run again waits as well.
# Why it matters: short commands, tests and sweeps that start a local Ray each, and whatever is run again after a kill. ray.init
# has no argument for the port, `ray start --dashboard-agent-listen-port` has; 0 is any free one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "ray[default]==2.60.0"
cat > "$work/start.py" <<'PYTHON'
import sys, time
from pathlib import Path

import ray

started = time.monotonic()
context = ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=1)
seconds = time.monotonic() - started
log = Path(context["session_dir"], "logs", "dashboard_agent.log")
refused = log.read_text().count("Failed to bind to port 52365")
print(f"{seconds:.1f} s to start, refused {refused} times", flush=True)
print(refused, file=open(sys.argv[1], "w"))
if len(sys.argv) > 2:
    time.sleep(float(sys.argv[2]))
PYTHON
cd "$work"
"$work/venv/bin/python" -c 'import ray; print("ray", ray.__version__)'
"$work/venv/bin/python" start.py first 60 2>/dev/null &
first=$!
trap 'kill $first 2>/dev/null || true; rm -rf "$work"' EXIT
until [ -s first ]; do sleep 0.2; done
"$work/venv/bin/python" start.py second 2>/dev/null
if [ "$(cat second)" -ge 3 ]; then
    echo "as described: the second local Ray was refused the first one's port"
else
    echo "changed: the second local Ray was refused $(cat second) times" >&2
    exit 1
fi
