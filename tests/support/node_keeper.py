"""Keep a Ray cluster of several nodes on this machine, as a process of its own, told what to do on stdin.

Nodes are given as JSON: name -> {num_cpus, num_gpus, labels}. Prints the cluster's address, then one JSON line per command:
`add NAME` and `remove NAME` answer with the name, `actors` with [class, node] of every actor there ever was.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main(nodes: dict[str, dict[str, object]]) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
    alive = {}
    names = {cluster.head_node.node_id: "head"}

    def add(name: str) -> str:
        node = cluster.add_node(object_store_memory=80 << 20, **nodes[name.partition("@")[0]])
        alive[name] = node
        names[node.node_id] = name
        return name

    def remove(name: str) -> str:
        cluster.remove_node(alive.pop(name), allow_graceful=False)  # SIGKILL for the raylet and all below it
        return name

    def actors() -> list[tuple[str, str]]:
        table = cluster.global_state.actor_table(None, None, None)
        return sorted((a["ActorClassName"], names.get(a["Address"]["NodeID"], "nowhere")) for a in table.values())

    for name in nodes:
        add(name)
    print(json.dumps(cluster.address), flush=True)
    commands = {"add": add, "remove": remove, "actors": actors}
    for line in sys.stdin:
        command, *arguments = line.split()
        print(json.dumps(commands[command](*arguments)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
