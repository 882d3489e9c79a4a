"""What prices came to: per assumption and seller, and the learned price beside every other.

Margin is the ledger's. Net of charges it is less a tenth of the first quote for every GPU-hour that
was refused, and as much again where the first quote would have been accepted. Differences are of
the same dates of the same worlds; their intervals come from a bootstrap over dates.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from benchmarks.priced.assumptions import elasticity_at
from benchmarks.priced.play import Days, Sold

from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.schemas.policy import Floats
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level.build import KINDS

DRAWS: Final = 2_000
CHARGES: Final = (0.0, 1.0, 3.0)
"""Factors on what refused and priced-out work is charged at."""
DAY_HOURS: Final = 24.0
NEW_DAYS: Final = 7
"""Days in which nothing is known of demand yet."""
LEARNED: Final = "learned"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The learned price less another, US dollars a day, with the 95 % interval."""

    against: str
    value: float
    low: float
    high: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A seller in a world: US dollars a day, and shares."""

    seller: str
    margin_usd: float
    net_usd: float
    occupancy: float
    """Of rented GPU-hours."""
    occupancy_of_ceiling: float
    refused: float
    """Of the work that was asked for, as are those priced out."""
    priced_out: float
    price: float
    """Over the first quote, the mean of pools."""
    pools_usd: tuple[float, ...]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A segment's elasticity at the last quote: what it is, and what was learned of it."""

    pool: str
    segment: str
    true: float
    middle: float
    low: float
    high: float
    trusted: bool
    gpus: float


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All sellers under one assumption; `by_charge` differs in what refusals cost."""

    assumption: str
    outcomes: tuple[Outcome, ...]
    differences: tuple[Difference, ...]
    by_charge: dict[str, tuple[Difference, ...]]
    estimates: tuple[Estimate, ...]
    before: tuple[Difference, ...] = ()
    """Differences on the dates before the scored ones, but for the first week, where it began."""


class Corner(msgspec.Struct, frozen=True, kw_only=True):
    """What one capacity at one price came to."""

    capacity: str
    price: str
    outcome: Outcome


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """Both capacities at every price under one assumption; differences are net of charges.

    `capacity` is the policy less the rule by price, `learned` the learned price less the rule's by
    capacity, `both` is both less neither, and `beyond` what that is beyond the sum of the gain of
    the one at the rule's price and of the other at the rule's capacity.
    """

    assumption: str
    corners: tuple[Corner, ...]
    capacity: tuple[Difference, ...]
    learned: tuple[Difference, ...]
    both: Difference
    beyond: Difference


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the page says. `terms` are the learned price less terms of its own.

    `together` is empty where capacity was the rule's throughout; `alphas` are what the policy in it
    earned by pool.
    """

    dates: tuple[str, ...]
    lead_days: int
    pools: tuple[str, ...]
    rivals: tuple[str, ...]
    worlds: tuple[World, ...]
    terms: tuple[Difference, ...]
    terms_outcomes: tuple[Outcome, ...]
    together: tuple[Together, ...] = ()
    alphas: dict[str, float] = {}


def world_of(
    assumption: str, config: TwinConfig, place: int, sold: Sold, lead: int, law: PricingConfig
) -> World:
    """Return what a world came to on the days after the first `lead`."""
    days = {name: scored(one, place, lead) for name, one in sold.days.items()}
    rivals = [name for name in days if name != LEARNED]

    early = {
        name: scored(one, place, NEW_DAYS, lead)
        for name, one in sold.days.items()
        if lead > NEW_DAYS
    }

    def against_all(days: Mapping[str, Days], factor: float = 1.0) -> tuple[Difference, ...]:
        return tuple(
            difference(name, net(days[LEARNED], law, factor) - net(days[name], law, factor))
            for name in rivals
            if name in days
        )

    return World(
        assumption=assumption,
        outcomes=tuple(outcome(name, one, sold.ceiling[place], law) for name, one in days.items()),
        differences=against_all(days),
        by_charge={f"{factor:g}": against_all(days, factor) for factor in CHARGES},
        before=against_all(early),
        estimates=_estimates(config, sold.curves[LEARNED][place], sold.quotes[LEARNED][place]),
    )


def terms_of(
    sold: Sold, lead: int, law: PricingConfig
) -> tuple[tuple[Difference, ...], tuple[Outcome, ...]]:
    """Return the learned price beside itself with a term more or less, in the first world."""
    days = {name: scored(one, 0, lead) for name, one in sold.days.items()}
    differences = tuple(
        difference(name, net(days[LEARNED], law, 1.0) - net(one, law, 1.0))
        for name, one in days.items()
        if name != LEARNED
    )
    found = (outcome(name, one, sold.ceiling[0], law) for name, one in days.items())
    return differences, tuple(found)


def net(days: Days, law: PricingConfig, factor: float) -> Floats:
    """Return what each date earned, charges included, (days,) US dollars."""
    charge = law.refused_charge * days.refused_usd + law.priced_out_charge * days.priced_out_usd
    found: Floats = (days.margin_usd - factor * charge).sum(axis=1)
    return found


def difference(against: str, by_date: Floats) -> Difference:
    """Return the mean of paired differences (days,) with its bootstrap interval."""
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = rng.integers(len(by_date), size=(DRAWS, len(by_date)))
    low, high = np.quantile(by_date[drawn].mean(axis=1), (0.025, 0.975))
    mean = float(by_date.mean())
    return Difference(
        against=against,
        value=round(mean, 1),
        low=round(float(low), 1),
        high=round(float(high), 1),
    )


def outcome(name: str, days: Days, ceiling: Floats, law: PricingConfig) -> Outcome:
    """Return a seller's means over dates; `ceiling` (pools,) GPUs could be rented."""
    count = len(days.margin_usd)
    could = float(ceiling.sum()) * DAY_HOURS * count
    return Outcome(
        seller=name,
        margin_usd=round(float(days.margin_usd.sum()) / count, 1),
        net_usd=round(float(net(days, law, 1.0).mean()), 1),
        occupancy=round(float(days.sold.sum() / days.rented.sum()), 4),
        occupancy_of_ceiling=round(float(days.sold.sum()) / could, 4),
        refused=round(float(days.refused.sum() / days.asked.sum()), 4),
        priced_out=round(float(days.priced_out.sum() / days.asked.sum()), 4),
        price=round(float(days.price_ratio.mean()), 4),
        pools_usd=tuple(np.round(days.margin_usd.mean(axis=0), 1).tolist()),
    )


def rivals_of(sellers: Sequence[str]) -> tuple[str, ...]:
    """Return everyone whom the learned price is compared with."""
    return tuple(name for name in sellers if name != LEARNED)


def as_json(results: Results) -> str:
    """Return the one line that ends a run."""
    told: Mapping[str, object] = {
        "benchmark": "pricing",
        "dates": len(results.dates),
        "learned_less": {
            world.assumption: {one.against: one for one in world.differences}
            for world in results.worlds
        },
        "together": {one.assumption: one for one in results.together},
        "terms": {one.against: one for one in results.terms},
        "worlds": results.worlds,
    }
    return msgspec.json.encode(told).decode()


def scored(days: Days, place: int, first: int, end: int | None = None) -> Days:
    """Return some days of one world, arrays (days, pools)."""
    fields = Days.__dataclass_fields__
    return Days(**{name: getattr(days, name)[first:end, place] for name in fields})


def _estimates(config: TwinConfig, curves: Floats, quotes: Floats) -> tuple[Estimate, ...]:
    log_quote = np.log(quotes)[:, None]
    middle, low, high = elasticity.elasticity(curves, log_quote)
    trusted = elasticity.trusted(curves)
    return tuple(
        Estimate(
            pool=pool.name,
            segment=segment,
            true=round(elasticity_at(config.segments[segment], float(log_quote[row, 0])), 2),
            middle=round(float(middle[row, column]), 2),
            low=round(float(low[row, column]), 2),
            high=round(float(high[row, column]), 2),
            trusted=bool(trusted[row, column]),
            gpus=round(float(curves[row, column, elasticity.LOAD]), 1),
        )
        for row, pool in enumerate(config.pools)
        for column, segment in enumerate(KINDS)
        if curves[row, column, elasticity.ANSWERED] >= 1.0
    )
