"""Nothing that controls a pool of the twin costs less than the clairvoyant bound says it must."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from benchmarks.controlling.away import away
from benchmarks.controlling.clairvoyant import SPOT_SHARE, Clairvoyant, Frontier
from benchmarks.controlling.service import Window, on_demand_prices, score, work_done_us
from msgspec.structs import replace
from numpy.typing import NDArray

from gpuloop.schemas.units import HOUR_US, MINUTE_US, USD_MICROS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds
from gpuloop.twin.workload import DAY_US

DAYS = 1
HOURS = DAYS * 24
EVERY_US = 5 * MINUTE_US
RATES = (0.0, 0.02, 0.4)

USUAL = TwinConfig()
ROUGH = replace(
    USUAL,
    seed=4,
    fault_rate_factor=300.0,
    pools=tuple(
        replace(pool, spot_reclaims_per_node_hour=0.05, spot_availability=0.8)
        for pool in USUAL.pools
    ),
)
CONFIGS = (replace(USUAL, seed=1), ROUGH)

Counts = NDArray[np.int64]
Wish = Callable[[PoolWorlds, Counts], Counts]
"""Total nodes by row, of the worlds and the GPUs that are busy or waited for."""


def follow(spare: int) -> Wish:
    return lambda worlds, gpus: -(-gpus // worlds.rules.gpus_per_node) + spare


def day_and_night(worlds: PoolWorlds, gpus: Counts) -> Counts:
    """Let everything wait by day for the night's many nodes."""
    by_day = worlds.elapsed_us < 12 * HOUR_US
    return worlds.rules.nodes_min if by_day else worlds.rules.nodes_max


def fixed(share: float) -> Wish:
    return lambda worlds, gpus: np.rint(worlds.rules.nodes_max * share).astype(np.int64)


CONTROLLERS: dict[str, Wish] = {
    "follow": follow(0),
    "follow with two spare": follow(2),
    "day and night": day_and_night,
    "the floor": fixed(0.0),
    "a third": fixed(0.33),
    "half": fixed(0.5),
    "everything": fixed(1.0),
}


def built() -> PoolWorlds:
    return build_pool_worlds(CONFIGS, hours=HOURS, traces=None, workload="generator")


@cache
def on_demand() -> NDArray[np.int64]:
    """Return what a GPU-hour costs on demand, (rows, hours)."""
    return np.concatenate(
        [
            on_demand_prices(
                config, traces=None, start_us=config.start_us, first_us=config.start_us, hours=HOURS
            )
            for config in CONFIGS
        ]
    )


@cache
def frontiers() -> list[Frontier]:
    worlds = built()
    return [
        Clairvoyant(worlds, row, days=DAYS, on_demand=on_demand()[row]).frontier(RATES)
        for row in range(worlds.rows)
    ]


def split(worlds: PoolWorlds, total: Counts) -> Counts:
    """Return (rows, 2) nodes: spot up to its share, moving the mix no more than it must."""
    rules = worlds.rules
    total = np.clip(total, rules.nodes_min, rules.nodes_max)
    on_demand, spot = worlds.state.desired.T
    change = total - on_demand - spot
    hour = worlds.elapsed_us // HOUR_US
    grown = np.where(rules.shortage[:, hour], 0, np.maximum(change, 0))
    wanted = np.clip(
        np.rint(SPOT_SHARE * total), spot + np.minimum(change, 0), spot + grown
    ).astype(np.int64)
    wanted = np.where(rules.billings[:, 1], wanted, 0)
    wanted = np.where(rules.billings[:, 0], wanted, total)
    return np.stack([total - wanted, wanted], axis=1)


@cache
def scores(name: str) -> list[tuple[float, float]]:
    """Return the rate of violations and the cost of each row."""
    worlds = built()
    books, counts = [worlds.state.books.copy()], [worlds.state.counts.copy()]
    while worlds.elapsed_us < HOURS * HOUR_US:
        worlds.advance(0)
        gpus = worlds.state.held + worlds.state.service_gpus + worlds.queued_gpus()
        worlds.scale(split(worlds, CONTROLLERS[name](worlds, gpus)))
        worlds.advance(EVERY_US)
        if worlds.elapsed_us % DAY_US == 0:
            books.append(worlds.state.books.copy())
            counts.append(worlds.state.counts.copy())
    window = Window(
        first_us=worlds.rules.start_us,
        books=np.array(books),
        counts=np.array(counts),
        work_done_us=work_done_us(worlds.state, worlds.specs),
        on_demand=on_demand(),
    )
    found = score(worlds.rules, worlds.specs, window)
    rates = found.violated.sum(axis=1) / found.judged.sum(axis=1)
    return list(zip(rates.tolist(), found.cost_usd.sum(axis=1).tolist(), strict=True))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_controller_costs_less_than_the_bound_at_its_violations(name: str) -> None:
    for row, ((rate, cost_usd), frontier) in enumerate(zip(scores(name), frontiers(), strict=True)):
        least = frontier.at(rate)
        assert least is not None
        assert least <= cost_usd, (row, rate)


def test_the_bound_is_near_what_the_best_of_these_controllers_costs() -> None:
    """Were it far below, it would hold for a reason that says nothing."""
    for row, frontier in enumerate(frontiers()[:3]):
        ratios = []
        for name in CONTROLLERS:
            rate, cost_usd = scores(name)[row]
            ratios.append((frontier.at(rate) or 0.0) / cost_usd)
        assert max(ratios) > 0.8, (row, ratios)


def test_no_more_nodes_are_away_than_the_draws_say() -> None:
    """Pools that want the same nodes all the time pay for all that are not away: a dollar each."""
    usual = build_pool_worlds([ROUGH], hours=HOURS, traces=None, workload="generator:steady")
    size = usual.rules.gpus_per_node[:, None, None]
    rules = usual.rules._replace(price=np.full_like(usual.rules.price, USD_MICROS) // size)
    worlds, bins = PoolWorlds(rules, usual.specs), HOURS * 6
    missing = np.zeros((worlds.rows, bins))
    for place in range(bins):
        before = worlds.state.books[:, arrays.CAPACITY].copy()
        worlds.advance(10 * MINUTE_US)
        paid = (worlds.state.books[:, arrays.CAPACITY] - before) / USD_MICROS * 6
        missing[:, place] = rules.initial.sum(axis=1) - paid
    assert missing.max() > 0.9
    for row in range(worlds.rows):
        limits = away(rules, row, bins=bins, bin_us=10 * MINUTE_US).nodes
        assert (missing[row] <= limits + 1e-6).all(), row
