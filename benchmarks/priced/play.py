"""Prices side by side on copies of the same worlds, and what each day of each came to.

Capacity is the tuned rule's for everyone who does not bring another, jobs, reservation prices and
luck are the same, and the envelope stands between each seller and its world. A day's books are the
ledger's; who was refused is read off the jobs: refused work whose tenant would have taken the first
quote was priced out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.controlling.play import rows_of
from numpy.typing import NDArray

from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.loop.learn.pool_pricing import PoolPricer
from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig, price_step
from gpuloop.schemas.policy import CONTROL_TICK_US, EPOCH_US, PRICE, Floats, PoolBatch
from gpuloop.schemas.units import HOUR_US, USD_MICROS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import DAY_US, Workload

SLOTS: Final = 4096
DAY_TICKS: Final = DAY_US // CONTROL_TICK_US
TICK_HOURS: Final = CONTROL_TICK_US / HOUR_US
EPOCH_TICKS: Final = EPOCH_US // CONTROL_TICK_US

Pricing = Callable[[PoolBatch, Floats], Floats]
"""From a batch and first quotes (n,) to the price wished for, (n,) US dollars per GPU-hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """One way to set prices: a function, or learned as a configuration says.

    `capacity` says how many nodes there are, in place of the tuned rule; its price does not count.
    """

    name: str
    price: Pricing | None = None
    learned: PricingConfig | None = None
    loyalty: float = 0.0
    capacity: Controller | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """What days of pools came to: arrays (days, worlds, pools). GPU-hours unless in US dollars."""

    margin_usd: Floats
    refused: Floats
    priced_out: Floats
    refused_usd: Floats
    """Refused work at the first quote."""
    priced_out_usd: Floats
    asked: Floats
    """All work that arrived."""
    sold: Floats
    rented: Floats
    price_ratio: Floats
    """Mean quote over the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """What sellers came to by name, and the curves (worlds, pools, segments, columns) at the end.

    `ceiling` (worlds, pools) are the GPUs that could be rented, `quotes` by seller the last ones
    over the first.
    """

    days: Mapping[str, Days]
    curves: Mapping[str, Floats]
    quotes: Mapping[str, Floats]
    ceiling: Floats

    def of(self, sellers: Collection[str]) -> "Sold":
        """Return what these alone came to."""
        kept = {name: one for name, one in self.days.items() if name in sellers}
        return replace(self, days=kept)


def play(
    configs: Sequence[TwinConfig],
    workload: Workload,
    sellers: Sequence[Seller],
    *,
    rule: RuleConfig,
    traces: Path | None,
    days: int,
    tell: Callable[[int], None] = lambda _: None,
) -> Sold:
    """Let sellers live through the same days of some worlds; `tell` is told each day that passed.

    Raises:
        SlotsFull: a pool had more jobs at once than this harness keeps.

    """
    worlds = build_pool_worlds(
        list(configs),
        hours=days * 24 + 1,
        traces=traces,
        workload=[workload] * len(configs),
        slots=SLOTS,
        copies=len(sellers),
    )
    n = worlds.rows // len(sellers)
    shares = [slice(place * n, (place + 1) * n) for place in range(len(sellers))]
    loyalty = np.repeat([one.loyalty for one in sellers], n)
    worlds.price(worlds.state.quote, loyalty)
    names = [pool.name for config in configs for pool in config.pools] * len(sellers)
    course = PoolCourse(worlds, seed=0, names=names, rule=rule, priced=True)
    first = worlds.state.quote / USD_MICROS
    pricers = [
        PoolPricer(course, share, one.learned) if one.learned else None
        for one, share in zip(sellers, shares, strict=True)
    ]
    for one in sellers:
        if one.capacity is not None:
            one.capacity.reset(np.ones(n, dtype=np.bool_))
    books = [worlds.state.books.copy()]
    used: list[NDArray[np.float64]] = []
    for day in range(days):
        told = np.zeros((3, worlds.rows))
        for tick in range(DAY_TICKS):
            batch = course.look()
            wish = _capacity(batch, sellers, shares)
            wish[:, PRICE] = batch.present[:, PRICE]
            if tick % EPOCH_TICKS == 0:
                for seller, pricer, share in zip(sellers, pricers, shares, strict=True):
                    mine = rows_of(batch, share)
                    if pricer is not None:
                        wish[share, PRICE] = pricer(mine).price
                    elif seller.price is not None:
                        wish[share, PRICE] = seller.price(mine, first[share])
            course.act(wish)
            told[0] += worlds.state.held + worlds.state.service_gpus
            told[1] += course.seen.ready.sum(axis=1) * worlds.rules.gpus_per_node
            told[2] += worlds.state.quote / worlds.rules.reference
        books.append(worlds.state.books.copy())
        used.append(told * [[TICK_HOURS], [TICK_HOURS], [1.0 / DAY_TICKS]])
        tell(day + 1)
    signs = np.where(np.arange(books[0].shape[1]) == arrays.REVENUE, 1.0, -1.0)
    margin = (np.diff(np.array(books), axis=0) * signs).sum(axis=2) / USD_MICROS
    shape = (days, len(configs), -1)
    tables = _turned_away(worlds.rules, worlds.specs, days) | {
        "margin_usd": margin,
        "sold": np.array(used)[:, 0],
        "rented": np.array(used)[:, 1],
        "price_ratio": np.array(used)[:, 2],
    }
    of_world = (len(configs), -1)
    capacity = (worlds.rules.nodes_max * worlds.rules.gpus_per_node)[:n].astype(float)
    return Sold(
        days={
            one.name: Days(**{k: v[:, share].reshape(shape) for k, v in tables.items()})
            for one, share in zip(sellers, shares, strict=True)
        },
        curves={
            one.name: pricer.curves.reshape(*of_world, *pricer.curves.shape[1:])
            for one, pricer in zip(sellers, pricers, strict=True)
            if pricer is not None
        },
        quotes={
            one.name: (worlds.state.quote / worlds.rules.reference)[share].reshape(of_world)
            for one, share in zip(sellers, shares, strict=True)
        },
        ceiling=capacity.reshape(of_world),
    )


def _capacity(batch: PoolBatch, sellers: Sequence[Seller], shares: Sequence[slice]) -> Floats:
    """Return the wish (n, 4) of each seller's capacity, whatever its price."""
    wish = batch.rule.copy()
    for seller, share in zip(sellers, shares, strict=True):
        if seller.capacity is not None:
            wish[share] = seller.capacity(rows_of(batch, share))
    return wish


def _turned_away(rules: arrays.Rules, specs: arrays.Specs, days: int) -> dict[str, Floats]:
    """Return GPU-hours, and dollars at the first quote, that were asked for and refused by day."""
    rows = len(rules.last)
    row = np.searchsorted(rules.last, np.arange(len(specs.at_us)), side="right")
    since_us = specs.at_us - rules.start_us[row]
    day = since_us // DAY_US
    came = (since_us >= 0) & (day < days) & (np.arange(len(row)) >= rules.arrivals[row])
    came &= (specs.fate != arrays.WAITING) | (specs.at_us < rules.start_us[row] + days * DAY_US)
    hours = specs.gpus * (specs.work_us / HOUR_US)
    refused = came & (specs.fate == arrays.REFUSED)
    priced_out = refused & (specs.reservation >= rules.reference[row])

    def by_day(chosen: NDArray[np.bool_], amount: Floats) -> Floats:
        cells = day[chosen] * rows + row[chosen]
        found: Floats = np.bincount(cells, amount[chosen], days * rows).reshape(days, rows)
        return found

    usd = hours * rules.reference[row] / USD_MICROS
    return {
        "asked": by_day(came, hours),
        "refused": by_day(refused, hours),
        "priced_out": by_day(priced_out, hours),
        "refused_usd": by_day(refused, usd),
        "priced_out_usd": by_day(priced_out, usd),
    }


def fixed(batch: PoolBatch, first: Floats) -> Floats:
    """Return the first quote, whatever happens."""
    return first


def followed(ratio: float, config: PricingConfig) -> Pricing:
    """Return the market's price at a ratio of its first markup, in the steps of everyone."""

    def price(batch: PoolBatch, first: Floats) -> Floats:
        target = ratio * batch.reference_price
        step, tolerance = config.price_step, config.price_tolerance
        return price_step(batch, target, step=step, tolerance=tolerance)

    return price


def ruled(batch: PoolBatch, first: Floats) -> Floats:
    """Return the rule's price: the market's, moved by scarcity."""
    found: Floats = batch.rule[:, PRICE]
    return found
