"""The least a row of the pool level can cost whoever controls it: a linear programme.

It knows all jobs, prices, shortages and losses of a row from its beginning over whole days, and
lets a share of the judged jobs violate. Nothing that a controller can do in the twin at that rate
of violations costs less, because every schedule and every order of nodes is a point of the
programme, at no more than its cost. What runs when the row begins stays where it runs, and keeps
its node rented, until it ends or what is drawn for that node strikes it. Relaxed, always in favour
of less cost:

- nodes are continuous, one average per bin, and come and go as wanted; a job is GPUs anywhere in
  the pool (no gangs that need whole nodes, no scattered free GPUs, no draining);
- jobs may start in part now and in part later; all starts are warm; of late starts only the hour is
  known, and late jobs of less than an hour may be torn apart within their patience;
- losses and reclaims take no work back and keep no new node away: what is away is not paid for, so
  they only let a pool be below its floor, as far as what was drawn for its nodes can take it;
- a pool with both billings may have `nodes_max` of each, since draining nodes come on top; its
  share of spot holds for the mean of a day, so that it may be passed while nodes come or drain.

What it takes for granted of a controller: it quotes the reference price, it orders through the
shared purchase mix (spot at most that share of a day's paid node-hours, half a node rounding per
bin, and a pool of both billings does not hold its floor in exchanges of orders that never arrive),
its service gets the GPUs it wants (the least of each bin), and it makes no use of interruptions: no
job is let go for good after too many, and none is taken up again only when that is cheaper. Energy
is a flow here; the books look at it once a minute, which evens out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from benchmarks.controlling.away import away
from benchmarks.controlling.programme import Compiled, Entry, Programme
from benchmarks.controlling.starts import Floats, Starts, Window, held_from_start, jobs_to_start
from numpy.typing import NDArray

from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.units import HOUR_US, MINUTE_US, USD_MICROS
from gpuloop.twin.pool_level.arrays import Rules
from gpuloop.twin.pool_level.worlds import PoolWorlds

BIN_US: Final = 10 * MINUTE_US
SPOT_SHARE: Final = RuleConfig().spot_share
DAY_HOURS: Final = 24
ON_DEMAND, SPOT = range(2)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least cost in US dollars at a rate of violations.

    `per_violation_usd` is what one violation more would change (never positive), `node_hours` what
    the optimum pays for, on demand and spot, and `by_day` how its cost is spread over the days, as
    that of its nodes is.
    """

    rate: float
    violations: float
    cost_usd: float
    per_violation_usd: float
    node_hours: tuple[float, float]
    by_day: tuple[float, ...]


class Clairvoyant:
    """One row over whole days, for any rate of violations. `judged`: jobs that can violate."""

    def __init__(
        self,
        worlds: PoolWorlds,
        row: int,
        *,
        days: int | Sequence[bool],
        on_demand: NDArray[Any],
        spot_share: float = SPOT_SHARE,
        bin_us: int = BIN_US,
    ) -> None:
        """Build the programme for so many days, or for those of them that count.

        The worlds have just begun: what runs then is bound to where it runs. Days that do not
        count are lived through, but neither paid for nor judged. `on_demand` is (hours,) US
        dollars' millionths per GPU-hour since the start, the price of work that is left undone, as
        in `service.Window`.

        Raises:
            ValueError: time has passed in the worlds, bins or the row's start do not fit hours, or
                prices do not reach over the days.

        """
        if worlds.elapsed_us:
            raise ValueError("the worlds have to stand at their beginning")
        rules = worlds.rules
        counted = [True] * days if isinstance(days, int) else [bool(day) for day in days]
        window = _window(rules, row, counted, on_demand, bin_us)
        programme = Programme()
        starts = Starts(programme, window)
        held = held_from_start(worlds, row, window)
        waiting = [*held.rest, *jobs_to_start(worlds, row, window, counted)]
        for job in waiting:
            starts.add(job)
        self.judged: Final = sum(job.judged for job in waiting)
        nodes = _Nodes(programme, rules, row, window, held.nodes, counted)
        served = nodes.served()
        nodes.carry(starts, held.gpus + served)
        nodes.mix(held.nodes, spot_share)
        served_usd = float(rules.service_watts[row]) * window.energy_usd_per_watt_hour
        self._fixed_usd: Final = held.usd + float(served @ nodes.counted_hours) * served_usd
        self._nodes: Final = nodes
        self._budget: Final = programme.at_most(0.0, starts.violations)
        self._programme: Final[Compiled] = programme.compile()

    def at(self, rate: float) -> Bound | None:
        """Return the bound where at most this share of the judged jobs violates.

        It is None where no controller can reach that.
        """
        allowed = rate * self.judged
        found = self._programme.solve({self._budget: allowed})
        if found is None:
            return None
        paid = [float(found.values[nodes] @ self._nodes.hours) for nodes in self._nodes.paid]
        return Bound(
            rate=rate,
            violations=allowed,
            cost_usd=found.cost + self._fixed_usd,
            per_violation_usd=float(min(found.marginals[self._budget], 0.0)),
            node_hours=(paid[ON_DEMAND], paid[SPOT]),
            by_day=tuple(self._nodes.shares(found.values).tolist()),
        )

    def frontier(self, rates: Sequence[float]) -> "Frontier":
        """Return the bounds at several rates as one."""
        found = [self.at(rate) for rate in rates]
        return Frontier(self.judged, tuple(bound for bound in found if bound is not None))


@dataclass(frozen=True)
class Frontier:
    """The bounds of a row at several rates, and between them.

    Least cost is convex in the violations allowed, so a tangent at one rate lies below it at all.
    """

    judged: int
    bounds: tuple[Bound, ...]

    def at(self, rate: float) -> float | None:
        """Return US dollars that no controller can undercut at a rate; None: nothing is known."""
        return pooled([self], rate)


def pooled(frontiers: Sequence[Frontier], rate: float) -> float | None:
    """Return what several rows cost at least together, at a rate of all their judged jobs.

    Which row violates how much is chosen so that it costs least. None: one of them has no bound.
    """
    if not all(frontier.bounds for frontier in frontiers):
        return None
    programme = Programme()
    violations = [programme.column(most=frontier.judged) for frontier in frontiers]
    for frontier, mine in zip(frontiers, violations, strict=True):
        cost = programme.column(cost=1.0)
        for bound in frontier.bounds:
            slope = bound.per_violation_usd
            programme.at_most(
                slope * bound.violations - bound.cost_usd, [(mine, slope), (cost, -1.0)]
            )
    allowed = rate * sum(frontier.judged for frontier in frontiers)
    programme.at_most(allowed, [(mine, 1.0) for mine in violations])
    found = programme.compile().solve({})
    return None if found is None else found.cost


def _window(
    rules: Rules, row: int, counted: Sequence[bool], on_demand: NDArray[Any], bin_us: int
) -> Window:
    hours = DAY_HOURS * len(counted)
    if HOUR_US % bin_us or rules.start_us[row] % HOUR_US:
        raise ValueError("bins and the row's start have to fit hours")
    if rules.price.shape[1] < hours:
        raise ValueError(f"prices reach over {rules.price.shape[1]} of {hours} hours")
    if len(on_demand) < hours:
        raise ValueError(f"on-demand prices reach over {len(on_demand)} of {hours} hours")
    by_hour = np.array(on_demand[:hours], dtype=np.float64)
    at_end = min(by_hour[-1], float(on_demand[min(hours, len(on_demand) - 1)]))
    charged = np.repeat(counted, DAY_HOURS) * by_hour / USD_MICROS
    lengths = np.where(counted, float(DAY_HOURS * HOUR_US), 0.0)
    return Window(
        bins=hours * HOUR_US // bin_us,
        bin_us=bin_us,
        counted=np.concatenate([[0.0], np.cumsum(lengths)]),
        undone_usd=np.append(charged, at_end / USD_MICROS if counted[-1] else 0.0),
        energy_usd_per_watt_hour=float(rules.energy_price[row]) / 1000.0 / USD_MICROS,
    )


class _Nodes:
    """The capacity of a row: nodes paid for by billing and bin, and what limits them."""

    def __init__(
        self, programme: Programme, rules: Rules, row: int, window: Window, held: Floats,
        days: Sequence[bool],
    ) -> None:  # fmt: skip
        self._programme, self._rules, self._row, self._window = programme, rules, row, window
        self._size = int(rules.gpus_per_node[row])
        self._per_hour = HOUR_US // window.bin_us
        self.hours = np.full(window.bins, 1.0 / self._per_hour)
        self.counted_hours = self.hours * np.repeat(days, DAY_HOURS * self._per_hour)
        idle = float(rules.node_watts[row] + self._size * rules.idle_watts[row])
        energy_usd = idle * window.energy_usd_per_watt_hour
        self.paid: list[list[int]] = [[], []]
        self._usd: list[Floats] = []
        for billing in (ON_DEMAND, SPOT):
            prices = np.repeat(rules.price[row, :, billing], self._per_hour)[: window.bins]
            usd = (prices * self._size / USD_MICROS + energy_usd) * self.counted_hours
            self._usd.append(usd)
            highest = self._highest(billing)
            self.paid[billing] = [
                programme.column(
                    cost=float(usd[place]),
                    least=float(held[billing, place]),
                    most=float(highest[place]),
                )
                for place in range(window.bins)
            ]

    def shares(self, values: Floats) -> Floats:
        """Return the share of the nodes' cost that falls on each day, (days,)."""
        usd = sum(usd * values[nodes] for usd, nodes in zip(self._usd, self.paid, strict=True))
        by_day = np.asarray(usd).reshape(-1, DAY_HOURS * self._per_hour).sum(axis=1)
        total = by_day.sum()
        return by_day / total if total > 0.0 else np.full(len(by_day), 1.0 / len(by_day))

    def served(self) -> Floats:
        """Return the GPUs that the row's service wants in every bin at least."""
        rules, row, bins = self._rules, self._row, self._window.bins
        if not rules.service[row]:
            return np.zeros(bins)
        each = self._window.bin_us // MINUTE_US
        rates = rules.service_rate[row, : bins * each]
        wanted = rates * rules.service_seconds[row] / rules.service_target[row]
        gpus = np.maximum(np.round(wanted + 0.5), 1.0)
        least: Floats = np.minimum.reduceat(gpus, np.arange(0, len(gpus), each))
        return np.pad(least, (0, bins - len(least)))

    def carry(self, starts: Starts, held: Floats) -> None:
        """Let the nodes carry GPUs held in any case and all that starts."""
        programme, rules, row = self._programme, self._rules, self._row
        late = [programme.column() for _ in range(self._window.bins)]
        for hour, entries in enumerate(starts.late_gpus()):
            mine = late[hour * self._per_hour : (hour + 1) * self._per_hour]
            means = [(column, -self._per_hour * factor) for column, factor in entries]
            programme.equal(0.0, [*((column, 1.0) for column in mine), *means])
        floor = min(int(rules.nodes_min[row]), int(rules.initial[row].sum()))
        gone = away(rules, row, bins=self._window.bins, bin_us=self._window.bin_us)
        for place in range(self._window.bins):
            nodes = [self.paid[ON_DEMAND][place], self.paid[SPOT][place]]
            provided = [(column, -float(self._size)) for column in nodes]
            used = [(starts.fine.gpus[place], 1.0), (late[place], 1.0)]
            programme.at_most(-float(held[place]), [*provided, *used])
            least = floor - float(gone.nodes[place])
            if least > 0.0:
                programme.at_most(-least, [(column, -1.0) for column in nodes])
        if rules.billings[row, SPOT]:
            self._no_growth_in_shortage(gone.healed_spot)

    def mix(self, held: Floats, spot_share: float) -> None:
        """Hold spot to its share of each day's mean, and half a node that rounding may add.

        Where more spot nodes are held from the beginning, these may stay.
        """
        if not self._rules.billings[self._row].all():
            return
        per_day = DAY_HOURS * self._per_hour
        for first in range(0, self._window.bins, per_day):
            day = slice(first, first + per_day)
            entries: list[Entry] = []
            for on_demand, spot in zip(
                self.paid[ON_DEMAND][day], self.paid[SPOT][day], strict=True
            ):
                entries += [(spot, 1.0 - spot_share), (on_demand, -spot_share)]
            beyond = (1.0 - spot_share) * held[SPOT, day] - spot_share * held[ON_DEMAND, day]
            self._programme.at_most(max(0.5 * per_day, float(beyond.sum())), entries)

    def _no_growth_in_shortage(self, healed: Floats) -> None:
        """Let no spot node come in an hour of shortage but what was ordered before or is repaired.

        The means of two bins next to each other can then differ by what was repaired in them.
        """
        rules, row, bin_us = self._rules, self._row, self._window.bin_us
        under_way_us = 0
        for place in range(self._window.bins - 1):
            hour = place // self._per_hour
            if (
                not rules.shortage[row, hour]
                or not rules.shortage[row, (place + 1) // self._per_hour]
            ):
                continue
            begins_us = place * bin_us
            if hour == 0 or not rules.shortage[row, hour - 1]:
                under_way_us = hour * HOUR_US + self._slowest_us(SPOT)
            if begins_us >= under_way_us:
                entries = [(self.paid[SPOT][place + 1], 1.0), (self.paid[SPOT][place], -1.0)]
                self._programme.at_most(float(healed[place : place + 2].sum()), entries)

    def _highest(self, billing: int) -> Floats:
        """Return the most nodes by bin: at first what a row begins with, until orders can come."""
        rules, row, window = self._rules, self._row, self._window
        if not rules.billings[row, billing]:
            return np.zeros(window.bins)
        initial = float(rules.initial[row, billing])
        most = max(float(rules.nodes_max[row]), initial)
        first_us = int(self._cold_starts(billing).min())
        before = np.clip(first_us / window.bin_us - np.arange(window.bins), 0.0, 1.0)
        highest: Floats = most - before * (most - initial)
        return highest

    def _slowest_us(self, billing: int) -> int:
        return int(self._cold_starts(billing).max())

    def _cold_starts(self, billing: int) -> NDArray[np.int64]:
        rules, row = self._rules, self._row
        first = billing * (rules.cold_start_us.shape[1] // 2)
        return rules.cold_start_us[row, first : first + int(rules.nodes_max[row])]
