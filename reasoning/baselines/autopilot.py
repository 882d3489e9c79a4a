"""A recommender in the manner of Autopilot: a percentile of demand, from a histogram that fades.

Source: Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys 2020, moving window
recommenders; what it says of a task's limit is applied to the capacity of a pool. Bucket growth and
margin are those of the Vertical Pod Autoscaler, which was built after it. It looks back only, so
what has never been demanded is never held.
"""

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.controller import (
    Remembering,
    Rows,
    demand_known,
    present_nodes,
    whole_nodes,
)
from gpuloop.reasoning.baselines.windows import NEVER_US, Ring
from gpuloop.reasoning.rule import RuleConfig, demand_gpus
from gpuloop.schemas.policy import Flags, Floats, Integers, PoolBatch
from gpuloop.schemas.units import HOUR_US

GROWTH: Final = 1.05
EDGES_GPUS: Final = (GROWTH ** np.arange(200) - 1.0) / (GROWTH - 1.0)
"""Upper edges of the buckets: 0, 1, 2.05, ... up to 329,000 GPUs; the last one takes the rest."""


class AutopilotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How demand is remembered; the percentile is the service knob."""

    percentile: float = 0.95
    """Share of the remembered load that the capacity would have carried, above 0, at most 1."""
    half_life_us: int = 12 * HOUR_US
    margin: float = 0.15
    """Capacity over that percentile, as a share of it."""
    load_weighted: bool = True
    """Whether a moment counts by its demand, so that a busy one counts for more than an idle."""
    down_after_us: int = HOUR_US
    """Less is wanted only after less has been recommended for so long."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (0.0 < self.percentile <= 1.0 and self.half_life_us > 0 and self.down_after_us >= 0):
            raise ValueError("a recommender needs a percentile within (0, 1] and a half-life")


@dataclass(slots=True)
class AutopilotPast(Rows):
    """What the recommender remembers of n pools."""

    weights: Floats
    """(n, buckets)"""
    seen_us: Integers
    recommended: Ring

    @classmethod
    def empty(cls, pools: int, down_after_us: int) -> "AutopilotPast":
        """Return no past."""
        return cls(
            np.zeros((pools, len(EDGES_GPUS))),
            np.full(pools, NEVER_US, np.int64),
            Ring.of_ticks(pools, down_after_us),
        )


class Autopilot(Remembering[AutopilotPast]):
    """Up with the recommendation, down when it has been lower for a while."""

    def __init__(self, config: AutopilotConfig, mix: RuleConfig) -> None:
        """Start without pools."""
        super().__init__(mix, lambda pools: AutopilotPast.empty(pools, config.down_after_us))
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes; the present one where demand is not known."""
        config, past, known = self._config, self.past_of(batch), demand_known(batch)
        demand = np.nan_to_num(demand_gpus(batch), posinf=0.0, neginf=0.0)
        remember(past, demand, batch.tick_us, known, config)
        gpus = percentile_of(past.weights, config.percentile) * (1.0 + config.margin)
        now = whole_nodes(gpus, batch)
        wanted = past.recommended.largest(batch.tick_us, config.down_after_us, now)
        past.recommended.push(batch.tick_us, now, known)
        return np.where(known, wanted, present_nodes(batch))


def remember(
    past: AutopilotPast, demand: Floats, now_us: Integers, known: Flags, config: AutopilotConfig
) -> None:
    """Let all that is remembered fade by the time since, and add what is demanded now."""
    age = np.maximum(now_us - past.seen_us, 0) / config.half_life_us
    faded = past.weights * np.exp2(-np.minimum(age, 1e3))[:, None]
    rows = np.arange(len(demand))
    bucket = np.minimum(np.searchsorted(EDGES_GPUS, demand), len(EDGES_GPUS) - 1)
    faded[rows, bucket] += demand if config.load_weighted else 1.0
    past.weights[known] = faded[known]
    past.seen_us[known] = now_us[known]


def percentile_of(weights: Floats, percentile: float) -> Floats:
    """Return the upper edge of the bucket (n,) in which that share of the weight is reached."""
    reached = np.cumsum(weights, axis=1)
    bucket = np.argmax(reached >= percentile * reached[:, -1:] * (1.0 - 1e-12), axis=1)
    edge: Floats = np.where(reached[:, -1] > 0.0, EDGES_GPUS[bucket], 0.0)
    return edge
