#!/bin/bash
# One run on a Slurm allocation, as a Ray cluster that ends with it. Nodes, GPUs, time and what your site asks for go before the script:
#   sbatch --nodes=2 --gpus-per-node=8 --time=12:00:00 jobs/slurm.sh CONFIG [--set section.key=value ...]
# Submit from the repository, on a file system that all nodes mount, with the Python environment activated.
#SBATCH --job-name=east-ray
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# USR1 comes before the time limit and means: stop, requeue, resume. TERM is `scancel`: stop for good.
set -u

out_of_time=false driver="" head="" workers=""

stop_driver() { if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null; fi; }
trap 'out_of_time=true; echo "slurm.sh: time is nearly up"; stop_driver' USR1
trap 'exit 143' TERM

wait_for() { # a signal interrupts `wait`, so wait until the process is gone; its status is ours
  local status
  while
    wait "$1"
    status=$?
    [ "$status" -gt 128 ] && kill -0 "$1" 2>/dev/null
  do :; done
  return "$status"
}

end() { # only what this script started; a node may hold other Ray instances of the same user
  trap '' TERM USR1
  stop_driver
  if [ -n "$driver" ]; then wait_for "$driver"; fi
  if [ -n "$workers" ]; then
    scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null # srun would answer a TERM of its own by killing Ray at once
    wait_for "$workers"
  fi
  if [ -n "$head" ]; then
    kill -TERM "$head" 2>/dev/null
    wait_for "$head"
  fi
  rm -rf "$EAST_RAY_NODE_DIR-head"
}
trap end EXIT

fail() {
  echo "slurm.sh: $1" >&2
  exit 1
}

cd "$SLURM_SUBMIT_DIR" || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
  fail "there is no token in $RAY_AUTH_TOKEN_PATH; make one with 'ray get-auth-token --generate'"
fi

# Ports and directories of this job alone, since two jobs may share a machine; what is 0 Ray chooses. Paths of sockets are short.
port=$((20000 + SLURM_JOB_ID % 1000 * 10))
export EAST_RAY_NODE_DIR=/tmp/er$SLURM_JOB_ID
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())') || fail "no Ray in this environment"
export RAY_ADDRESS=$address:$port
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the driver ends first, so nothing is left that a stopping node could wait for
common=(--block --disable-usage-stats --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)

wait_for_nodes() {
  until python - "$1" 2>/dev/null <<'END'
import sys
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]))
END
  do
    if "$out_of_time"; then exit 1; fi
    kill -0 "$head" 2>/dev/null || fail "Ray's head did not start; see the lines above"
    if [ -n "$workers" ]; then kill -0 "$workers" 2>/dev/null || fail "Ray's workers did not start; see the lines above"; fi
    sleep 1
  done
}

# The variable that makes `python` below join this cluster would make `ray start --head` refuse.
env -u RAY_ADDRESS ray start --head "${common[@]}" --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) \
  --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$EAST_RAY_NODE_DIR-head" &
head=$!
wait_for_nodes 1

if [ "$SLURM_NNODES" -gt 1 ]; then
  # shellcheck disable=SC2016 # expanded on the worker's node
  srun --overlap --mem=0 --cpu-bind=none --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --ntasks-per-node=1 \
    --exclude="$SLURMD_NODENAME" bash -c '
      directory=$EAST_RAY_NODE_DIR-$SLURM_NODEID
      trap "kill -TERM \$ray" TERM
      ray start "$@" --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$directory" & ray=$!
      while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
      rm -rf "$directory"' worker "${common[@]}" &
  workers=$!
  wait_for_nodes "$SLURM_NNODES"
fi
echo "slurm.sh: Ray runs on $SLURM_NNODES nodes, job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1))"

python jobs/run.py "$@" &
driver=$!
wait_for "$driver"
status=$?
driver=""
if "$out_of_time" && [ "$status" -ne 0 ]; then
  trap - EXIT
  end
  echo "slurm.sh: requeued; the next attempt resumes from what is finished"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
