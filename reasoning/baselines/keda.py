"""KEDA: a queue-length trigger feeding the Horizontal Pod Autoscaler, and the way to none and back.

Source: KEDA documentation, "Scaling Deployments" and the ScaledObject specification (2.20). The
autoscaler does the work between one node and many on an AverageValue metric; KEDA itself only
switches on and off.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.behaviour import Asked, Behaviour, ScalingPast, follow
from gpuloop.reasoning.baselines.controller import Remembering, Rows, demand_known, present_nodes
from gpuloop.reasoning.baselines.replicas import average_replicas
from gpuloop.reasoning.baselines.windows import NEVER_US
from gpuloop.reasoning.rule import RuleConfig, demand_gpus
from gpuloop.schemas.policy import Flags, Floats, Integers, PoolBatch
from gpuloop.schemas.units import MINUTE_US, SECOND_US


class KedaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One queue trigger; how much queue a node is worth is its service knob."""

    queue_per_gpu: float = 1.0
    """GPUs in the queue for each GPU of a node; a node's target is this times its GPUs."""
    in_flight: bool = True
    """Whether work that has started counts as queue, as it does for KEDA's broker triggers that
    count what is not acknowledged. Without it a pool shrinks as soon as all of its jobs run."""
    activation_gpus: float = 0.0
    """A queue above this makes the pool active."""
    polling_us: int = 30 * SECOND_US
    cooldown_us: int = 5 * MINUTE_US
    """Time since the pool was last seen active after which it may go to none; for nothing else."""
    least_nodes: int = 0
    idle_nodes: Literal[0] | None = None
    """Nodes of an idle pool whose least is above none; KEDA knows no number but 0."""
    behaviour: Behaviour = Behaviour()

    def __post_init__(self) -> None:
        """Refuse what KEDA refuses."""
        if not (self.queue_per_gpu > 0.0 and self.least_nodes >= 0 and self.polling_us > 0):
            raise ValueError("a trigger needs a target and an interval above 0")
        if self.idle_nodes is not None and self.least_nodes <= self.idle_nodes:
            raise ValueError("an idle pool must have fewer nodes than the least of an active one")


@dataclass(slots=True)
class KedaPast(Rows):
    """What KEDA and its autoscaler remember of n pools."""

    scaling: ScalingPast
    polled_us: Integers
    active_us: Integers
    """When the pool was last seen active."""
    active: Flags

    @classmethod
    def empty(cls, pools: int, behaviour: Behaviour) -> "KedaPast":
        """Return no past: a pool that was never active needs no cooling down."""
        never = np.full(pools, NEVER_US, np.int64)
        scaling = ScalingPast.empty(pools, behaviour)
        return cls(scaling, never, never.copy(), np.zeros(pools, np.bool_))


class Keda(Remembering[KedaPast]):
    """KEDA with one queue trigger and the autoscaler behind it."""

    def __init__(self, config: KedaConfig, mix: RuleConfig) -> None:
        """Start without pools."""
        super().__init__(mix, lambda pools: KedaPast.empty(pools, config.behaviour))
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes; none for an idle pool that may have none."""
        config, past = self._config, self.past_of(batch)
        current, known = present_nodes(batch), demand_known(batch)
        queue = demand_gpus(batch) if config.in_flight else batch.gpus_queued
        queue = np.nan_to_num(queue, posinf=0.0, neginf=0.0)
        self._poll(past, queue, batch.tick_us, known)
        least = np.maximum(np.maximum(batch.nodes_min, float(config.least_nodes)), 1.0)
        target = config.queue_per_gpu * np.maximum(batch.gpus_per_node, 1.0)
        asked = Asked(
            now_us=batch.tick_us,
            current=current,
            desired=average_replicas(queue, target, current, config.behaviour.tolerance),
            known=known,
            least=least,
            most=batch.nodes_max,
        )
        scaled = follow(past.scaling, asked, config.behaviour)
        started = np.where((current < 1.0) & past.active & known, least, scaled)
        return np.where(self._idles(past, batch.tick_us) & known, 0.0, started)

    def _poll(self, past: KedaPast, queue: Floats, now_us: Integers, known: Flags) -> None:
        """Look whether the queue is active, where that is due and can be seen."""
        due = known & (now_us - past.polled_us >= self._config.polling_us)
        past.polled_us[due] = now_us[due]
        past.active[due] = queue[due] > self._config.activation_gpus
        seen = due & past.active
        past.active_us[seen] = now_us[seen]

    def _idles(self, past: KedaPast, now_us: Integers) -> Flags:
        """Return pools that have been inactive for longer than the cooldown and may have none."""
        if self._config.least_nodes > 0 and self._config.idle_nodes is None:
            return np.zeros_like(past.active)
        cooled: Flags = ~past.active & (now_us - past.active_us > self._config.cooldown_us)
        return cooled
