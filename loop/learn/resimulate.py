"""A run of the twin, run again on the same draws: under the policy it had, and under the rule.

These are simulations and reported as such. They start where the world started and leave out what
only happens live: delays between processes, restarts, and what people did meanwhile.
"""

from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.learn.registry import load_weights, published
from gpuloop.loop.learn.simulate import FleetSimulation, offsets_of, rule_alone
from gpuloop.loop.shells.broker import Broker
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig

LONGEST_US: Final = 48 * HOUR_US
"""A world older than this is re-run for its first two days only."""


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars of the re-runs over the same span."""

    policy: float
    rule: float


def rerun(
    broker: Broker,
    config: TwinConfig,
    *,
    traces: Path | None,
    workload: str,
    until_us: int,
    policy_id: str,
    alpha: float,
) -> Rerun:
    """Run the world of `config` again until fleet time `until_us`, with and without the policy.

    A policy whose weights are not on the topics any more counts as the rule.
    """

    def earned(actor: Actor | None) -> float:
        fleet = FleetSimulation(
            config,
            traces=traces,
            workload=workload,
            offsets=rule_alone if actor is None else offsets_of(actor, alpha),
        )
        return fleet.run(min(until_us, fleet.start_us + LONGEST_US)).usd

    actor = _actor(broker, policy_id) if alpha > 0 else None
    rule = earned(None)
    return Rerun(policy=rule if actor is None else earned(actor), rule=rule)


def _actor(broker: Broker, policy_id: str) -> Actor | None:
    for version in published(broker):
        if version.policy_id == policy_id and version.actor and version.normaliser:
            weights = load_weights(broker, version.weights_digest)
            if weights is not None:
                return Actor.from_safetensors(weights, version.actor, version.normaliser)
    return None
