"""Where the small actors run that the driver talks to: on the driver's own node, which is lost only with the run itself."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on_driver_node(actor: type) -> Any:
    """Start `actor` on this process's node; on any other, a spot machine that is taken away would end the run with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(actor).options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
