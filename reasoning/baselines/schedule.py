"""Capacity by the clock: what each hour of the week used to demand, and nothing else.

Fitted on training weeks and blind to what happens now; what an operator does with scheduled
actions or KEDA's cron trigger. The week begins on Monday, 00:00 UTC of fleet time.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.controller import CapacityController, present_nodes, whole_nodes
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats, Integers, PoolBatch
from gpuloop.schemas.units import HOUR_US, MINUTE_US

HOURS: Final = 168
THURSDAY_HOURS: Final = 72
"""The epoch, 1 January 1970, was a Thursday."""


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was demanded in each hour of training weeks; the quantile is the service knob."""

    demand_by_hour: dict[str, tuple[tuple[float, ...], ...]] = {}
    """GPUs demanded, by pool and hour of the week; a pool without them keeps what it has."""
    quantile: float = 0.9
    lead_us: int = 5 * MINUTE_US
    """How long before an hour its capacity is ordered, as nodes take time to start."""

    def __post_init__(self) -> None:
        """Refuse a table that is no week."""
        if not 0.0 <= self.quantile <= 1.0 or not 0 <= self.lead_us <= HOUR_US:
            raise ValueError("a quantile lies within 0 and 1, a lead within an hour")
        if any(len(hours) != HOURS for hours in self.demand_by_hour.values()):
            raise ValueError(f"a week has {HOURS} hours")


class Schedule(CapacityController):
    """Follow the table; orders for the coming hour go out a little before it."""

    def __init__(self, config: ScheduleConfig, mix: RuleConfig) -> None:
        """Fit the table of each pool."""
        super().__init__(mix)
        self._config = config
        self._table = {
            pool: fit(hours, config.quantile) for pool, hours in config.demand_by_hour.items()
        }

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes for this hour or, where it is higher, the one that nears."""
        unknown = np.full(HOURS, np.nan)
        table = np.array([self._table.get(pool, unknown) for pool in batch.pools])
        rows = np.arange(len(batch.pools))
        now = table.reshape(-1, HOURS)[rows, hour_of_week(batch.tick_us)]
        soon = table.reshape(-1, HOURS)[rows, hour_of_week(batch.tick_us + self._config.lead_us)]
        nodes = whole_nodes(np.maximum(now, soon), batch)
        return np.where(np.isfinite(nodes), nodes, present_nodes(batch))


def hour_of_week(time_us: Integers) -> Integers:
    """Return hours since Monday, 00:00 UTC, 0 to 167."""
    hours: Integers = (time_us // HOUR_US + THURSDAY_HOURS) % HOURS
    return hours


def by_hour(tick_us: Integers, demand_gpus: Floats) -> tuple[tuple[float, ...], ...]:
    """Return the demand of a series (t,) by hour of the week, as the configuration takes it."""
    hours = hour_of_week(tick_us)
    return tuple(tuple(float(one) for one in demand_gpus[hours == hour]) for hour in range(HOURS))


def fit(demand_by_hour: Sequence[Sequence[float]], quantile: float) -> Floats:
    """Return GPUs to be held in each hour of the week, (168,).

    An hour that the training weeks lack takes the quantile of all of them; without any it is NaN.
    """
    everything = [one for hour in demand_by_hour for one in hour]
    usual = float(np.quantile(everything, quantile)) if everything else np.nan
    return np.array(
        [float(np.quantile(hour, quantile)) if len(hour) else usual for hour in demand_by_hour]
    )
