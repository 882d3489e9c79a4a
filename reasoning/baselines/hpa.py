"""The Kubernetes Horizontal Pod Autoscaler (autoscaling/v2) on the utilisation of a pool.

A node is its replica. Utilisation is demanded GPUs, at work and waited for, over GPUs of ready
nodes, so it exceeds 1 where a queue waits: one that stopped at 1 could never ask for more than a
fixed share. Source: reference in `replicas` and `behaviour`.
"""

from typing import Final

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.behaviour import Asked, Behaviour, ScalingPast, follow
from gpuloop.reasoning.baselines.controller import Remembering, demand_known, present_nodes
from gpuloop.reasoning.baselines.replicas import ReplicaMetrics, desired_replicas
from gpuloop.reasoning.rule import RuleConfig, demand_gpus
from gpuloop.schemas.policy import FEATURE_NAMES, Floats, PoolBatch

QUALITY: Final = FEATURE_NAMES.index("telemetry_quality")


class HpaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An autoscaler with one metric; the target is its service knob."""

    target: float = 0.8
    """Utilisation of ready nodes to be kept; above 0."""
    behaviour: Behaviour = Behaviour()

    def __post_init__(self) -> None:
        """Refuse a target that nothing could keep."""
        if not self.target > 0.0:
            raise ValueError("the target utilisation must be above 0")


class Hpa(Remembering[ScalingPast]):
    """HPA v2 with one utilisation metric."""

    def __init__(self, config: HpaConfig, mix: RuleConfig) -> None:
        """Start without pools."""
        super().__init__(mix, lambda pools: ScalingPast.empty(pools, config.behaviour))
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes; it never goes to none by itself."""
        behaviour, metrics = self._config.behaviour, node_metrics(batch)
        asked = Asked(
            now_us=batch.tick_us,
            current=metrics.current,
            desired=desired_replicas(metrics, self._config.target, behaviour.tolerance),
            known=demand_known(batch) & (metrics.measured >= 1.0),
            least=np.maximum(batch.nodes_min, 1.0),
            most=batch.nodes_max,
        )
        return follow(self.past_of(batch), asked, behaviour)


def node_metrics(batch: PoolBatch) -> ReplicaMetrics:
    """Return the pool's nodes as replicas with metrics.

    A node on its way out does not count, one on its way in is not ready. Where telemetry is not
    whole, the share of it that is missing is that of the nodes without a metric.
    """
    current = present_nodes(batch)
    ready = np.minimum(batch.ready_nodes.sum(axis=1), current)
    heard = np.where(batch.telemetry_fresh, 1.0, np.clip(batch.observation[:, QUALITY], 0.0, 1.0))
    measured = np.floor(ready * heard + 1e-9)
    gpus = np.maximum(ready, 1.0) * np.maximum(batch.gpus_per_node, 1.0)
    demand = np.nan_to_num(demand_gpus(batch), posinf=0.0, neginf=0.0)
    return ReplicaMetrics(
        current=current,
        measured=measured,
        utilisation=demand / gpus,
        missing=ready - measured,
        unready=current - ready,
    )
