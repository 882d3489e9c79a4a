"""What passed in worlds side by side between two looks, and what of it a policy could have spared.

The ledger's flow is mostly what work brings and costs whoever is in control: which jobs come, and
the GPUs they keep busy, are the trace's. What is lost leaves that out. It is what was paid for idle
GPUs, what the ledger takes for waiting, slow services and lost work, and a price on each job that
begins to be late, for an operator promises that few are and the ledger has no word for it. It is
told in node-hours of each pool, so that a pool of dear nodes does not drown the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuloop.schemas.policy import CONTROL_TICK_US, Floats
from gpuloop.schemas.units import HOUR_US, USD_MICROS
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.sight import Sight
from gpuloop.twin.pool_level.worlds import PoolWorlds

LATE_NODE_HOURS: Final = {"h100": 10.0, "a100": 12.0, "l4": 1.25}
"""What a late job costs in node-hours of its pool: chosen by hand on the training and the tuning
weeks, so that a policy costs little more than the rule and what it gains is service."""

PENALTIES: Final = [arrays.WAIT, arrays.SERVICE, arrays.DISRUPTION]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What passed between two looks at n rows, (n,) each, and the price of a node then."""

    earned_usd: Floats
    """What the ledgers took in."""
    idle_usd: Floats
    """What was paid for GPUs that did no work."""
    penalties_usd: Floats
    late_jobs: Floats
    """Jobs that began to be late: that waited for their first start too long."""
    node_usd: Floats
    """US dollars per hour of the cheapest node on offer."""

    def lost(self, late_node_hours: Floats) -> Floats:
        """Return the node-hours lost, (n,), where a late job costs so many of them, (n,)."""
        paid = (self.idle_usd + self.penalties_usd) / self.node_usd
        lost: Floats = paid + late_node_hours * self.late_jobs
        return lost


class Meter:
    """Reads what passed in worlds that have just been looked at."""

    def __init__(self, worlds: PoolWorlds, seen: Sight) -> None:
        """Begin at what is seen now."""
        self._worlds: Final = worlds
        self._seen = seen
        self._idle_usd = self._idle_rate(seen)
        self._penalties_usd = self._penalties()
        self._booked_usd = self._booked()

    def read(self, seen: Sight) -> Passed:
        """Return what passed since the last reading."""
        booked, penalties, idle = self._booked(), self._penalties(), self._idle_rate(seen)
        cost = np.where(self._worlds.rules.billings, seen.node_cost, np.inf).min(axis=1)
        passed = Passed(
            earned_usd=booked - self._booked_usd,
            idle_usd=(idle + self._idle_usd) / 2.0 * CONTROL_TICK_US / HOUR_US,
            penalties_usd=penalties - self._penalties_usd,
            late_jobs=seen.late_jobs - self._seen.late_jobs,
            node_usd=cost / USD_MICROS,
        )
        self._booked_usd, self._penalties_usd, self._idle_usd = booked, penalties, idle
        self._seen = seen
        return passed

    def _booked(self) -> Floats:
        total: Floats = np.sum(list(self._worlds.books().values()), axis=0) / USD_MICROS
        return total

    def _penalties(self) -> Floats:
        found: Floats = self._worlds.state.books[:, PENALTIES].sum(axis=1) / USD_MICROS
        return found

    def _idle_rate(self, seen: Sight) -> Floats:
        """Return US dollars per hour for GPUs that do no work, (n,)."""
        gpus = seen.ready.sum(axis=1) * self._worlds.rules.gpus_per_node
        share = np.clip(1.0 - seen.gpus_allocated / np.maximum(gpus, 1.0), 0.0, 1.0)
        rate: Floats = (seen.ready * seen.node_cost).sum(axis=1) / USD_MICROS * share
        return rate


def late_prices(prices: Mapping[str, float], pools: tuple[str, ...], worlds: int) -> Floats:
    """Return what a late job costs in each row, (worlds x pools,) node-hours.

    Raises:
        ValueError: a pool has no price.

    """
    missing = [name for name in pools if name not in prices]
    if missing:
        raise ValueError(f"no price of a late job in pool {', '.join(missing)}")
    return np.tile([prices[name] for name in pools], worlds)
