"""What a row must cost at least: cases whose least cost can be told with a pencil."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from benchmarks.controlling.clairvoyant import Bound, Clairvoyant, pooled
from msgspec.structs import replace

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import HOUR_US, SECOND_US, USD_MICROS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds

GPUS = 8
HOURS = 48
WARM_HOURS, COLD_HOURS = 5 / 3_600, 45 / 3_600
DEAR, CHEAP = 10.0, 1.0
NOTHING_UNDONE = np.full(HOURS + 1, 1e12)
"""So dear that everything is done."""


class Work(NamedTuple):
    """A job: when it comes, its size, and how long its tenant waits, in hours."""

    at: float
    gpus: int
    hours: float
    patience: float = 24.0
    accepts: bool = True


def specs_of(running: Sequence[Work], arriving: Sequence[Work], start_us: int) -> arrays.Specs:
    jobs = [*running, *arriving]
    nothing = np.zeros(len(jobs), np.int64)
    return arrays.Specs(
        at_us=np.array([start_us + round(job.at * HOUR_US) for job in jobs], np.int64),
        gpus=np.array([job.gpus for job in jobs], np.int64),
        work_us=np.array([round(job.hours * HOUR_US) for job in jobs], np.int64),
        kind=nothing,
        tenant=nothing,
        reservation=np.array([np.inf if job.accepts else 0.0 for job in jobs]),
        patience_us=np.array([round(job.patience * HOUR_US) for job in jobs], np.int64),
        start_normal=np.zeros(len(jobs)),
        fails=np.zeros(len(jobs), np.bool_),
        watts=np.zeros(len(jobs)),
        started_us=nothing - 1,
        ended_us=nothing - 1,
        fate=nothing.copy(),
    )


def a_row(
    *arriving: Work,
    running: Sequence[Work] = (),
    initial: tuple[int, int] = (1, 0),
    bounds: tuple[int, int] = (0, 40),
    prices: Sequence[tuple[float, float]] = ((CHEAP, CHEAP),) * (HOURS + 1),
    shortage: Sequence[int] = (),
    losses: float = 0.0,
) -> PoolWorlds:
    """Return a pool that just begins; prices are US dollars by hour, on demand and spot."""
    billings: tuple[Billing, ...] = ("on_demand", "spot") if initial[1] else ("on_demand",)
    usual = TwinConfig().pools[0]
    pool = replace(
        usual, billings=billings, on_demand_nodes=initial[0], spot_nodes=initial[1],
        nodes_min=bounds[0], nodes_max=bounds[1],
    )  # fmt: skip
    config = TwinConfig(pools=(pool,), services=(), energy_usd_micros_per_kwh=0)
    rules = build_pool_worlds([config], hours=0, traces=None, workload="generator:steady").rules
    hours = np.zeros((1, HOURS + 25), np.bool_)
    hours[0, list(shortage)] = True
    rules = rules._replace(
        first=np.zeros(1, np.int64),
        arrivals=np.array([len(running)]),
        last=np.array([len(running) + len(arriving)]),
        price=np.array([[[round(usd * USD_MICROS) for usd in hour] for hour in prices]]),
        shortage=hours,
        lost=np.array([losses]),
        ecc=np.zeros(1),
        reclaims=np.zeros(1),
    )
    specs = specs_of(running, sorted(arriving), int(rules.start_us[0]))
    return PoolWorlds(rules, specs, slots=64)


def bound(worlds: PoolWorlds, rate: float = 0.0, days: int = 1) -> Bound | None:
    return Clairvoyant(worlds, 0, days=days, on_demand=NOTHING_UNDONE).at(rate)


def cost(worlds: PoolWorlds, rate: float = 0.0, days: int = 1) -> float:
    found = bound(worlds, rate, days)
    assert found is not None
    return found.cost_usd


def at_first(usd: float) -> list[tuple[float, float]]:
    """Return prices that are dear in the first hour."""
    return [(usd, usd)] + [(CHEAP, CHEAP)] * HOURS


def test_constant_demand_costs_its_nodes() -> None:
    worlds = a_row(running=[Work(0, 16, 23.0)], initial=(2, 0))
    assert cost(worlds) == pytest.approx(16 * (23.0 + COLD_HOURS))


def test_one_job_costs_its_gpus_while_it_runs() -> None:
    assert cost(a_row(Work(1.3, 4, 3.21))) == pytest.approx(4 * (3.21 + WARM_HOURS), rel=1e-6)


def test_a_job_that_may_wait_for_a_cheaper_hour_runs_there() -> None:
    """A tenth of ten hours may pass before it starts."""
    worlds = a_row(Work(0.0, 8, 10.0), prices=at_first(DEAR))
    assert cost(worlds) == pytest.approx(8 * (10.0 + WARM_HOURS) * CHEAP, rel=1e-6)


def test_a_job_that_must_start_now_pays_what_now_costs() -> None:
    """It may wait for five minutes, so 25 of its 30 minutes lie in the dear hour, from half on."""
    found = cost(a_row(Work(0.5, 8, 0.5), prices=at_first(DEAR)))
    hours = 25 / 60 * DEAR + (5 / 60 + WARM_HOURS) * CHEAP
    assert found == pytest.approx(8 * hours, rel=1e-6)


def test_a_job_may_end_as_a_dear_hour_begins_though_it_begins_between_bins() -> None:
    prices = [(10.0, 10.0), (1.0, 1.0), (90.0, 90.0)] + [(90.0, 90.0)] * HOURS
    found = cost(a_row(Work(0.42, 8, 1.45), prices=prices))
    assert found == pytest.approx(8 * ((0.45 + WARM_HOURS) * 10.0 + 1.0), rel=1e-6)


def test_violations_buy_cost_down_by_parts() -> None:
    worlds = a_row(Work(0.0, 8, 0.5), prices=at_first(DEAR))
    dear, cheap = cost(worlds, 0.0), cost(worlds, 1.0)
    assert cheap == pytest.approx(8 * (0.5 + WARM_HOURS) * CHEAP, rel=1e-6)
    assert cost(worlds, 0.5) == pytest.approx((dear + cheap) / 2)


@pytest.mark.parametrize("hours", [0.5, 1.5])
def test_no_late_job_starts_after_its_tenant_gave_up(hours: float) -> None:
    """It would have to wait for ten hours, and gives up after two."""
    prices = [(DEAR, DEAR)] * 10 + [(CHEAP, CHEAP)] * (HOURS - 9)
    worlds = a_row(Work(0.0, 8, hours, patience=2.0), prices=prices)
    assert cost(worlds, 1.0) == pytest.approx(8 * (hours + WARM_HOURS) * DEAR, rel=1e-6)


def test_a_job_does_not_start_in_time_after_its_tenant_gave_up() -> None:
    """It might wait for an hour, but its tenant does not."""
    found = cost(a_row(Work(0.25, 8, 10.0, patience=0.0), prices=at_first(DEAR)))
    assert found == pytest.approx(8 * (0.75 * DEAR + (9.25 + WARM_HOURS) * CHEAP), rel=1e-6)


def test_a_job_that_refuses_the_quote_costs_nothing() -> None:
    worlds = a_row(Work(1.0, 8, 3.0, accepts=False), Work(2.0, 8, 3.0))
    assert cost(worlds) == pytest.approx(8 * (3.0 + WARM_HOURS), rel=1e-6)


def long_work(usd: float) -> tuple[Bound, Bound]:
    """Return the bounds in and out of time of a job of which 20 of 30 hours lie in the window.

    A node's GPU-hour costs `usd`, one left undone three dollars.
    """
    worlds = a_row(Work(4.0, 8, 30.0), prices=[(usd, usd)] * (HOURS + 1))
    prices = np.full(HOURS + 1, 3.0 * USD_MICROS)
    row = Clairvoyant(worlds, 0, days=1, on_demand=prices)
    in_time, late = row.at(0.0), row.at(1.0)
    assert in_time is not None
    assert late is not None
    return in_time, late


def test_work_left_at_the_end_is_charged_but_for_what_nobody_could_have_done() -> None:
    in_time, _ = long_work(CHEAP)
    assert in_time.cost_usd == pytest.approx(8 * (20.0 * CHEAP + WARM_HOURS * 3.0), rel=1e-6)


def test_work_that_is_dearer_than_its_charge_is_left_where_violations_are_allowed() -> None:
    in_time, late = long_work(DEAR)
    assert in_time.cost_usd > 8 * 16.9 * DEAR
    assert late.cost_usd == pytest.approx(8 * 20.0 * 3.0)


@pytest.mark.parametrize("losses", [0.0, 0.9])
def test_a_job_from_the_beginning_is_charged_for_its_start_alone(losses: float) -> None:
    """What is left of its 100 hours nobody could have done, but for the seconds of its start."""
    worlds = a_row(running=[Work(0, 8, 100.0)], losses=losses)
    prices = np.full(HOURS + 1, 3.0 * USD_MICROS)
    found = Clairvoyant(worlds, 0, days=1, on_demand=prices).at(0.0)
    assert found is not None
    assert found.cost_usd == pytest.approx(8 * (24.0 * CHEAP + COLD_HOURS * 3.0), rel=1e-4)


def test_a_job_that_gives_up_is_charged_at_the_price_of_then() -> None:
    """To do it costs ten dollars a GPU-hour; to let it go costs two, and is a violation."""
    prices = [(DEAR, DEAR)] * (HOURS + 1)
    worlds = a_row(Work(0.0, 8, 5.0, patience=3.0), prices=prices)
    undone = np.where(np.arange(HOURS + 1) == 3, 2.0 * USD_MICROS, 1e12)
    row = Clairvoyant(worlds, 0, days=1, on_demand=undone)
    done, left = row.at(0.0), row.at(1.0)
    assert done is not None
    assert left is not None
    assert done.cost_usd == pytest.approx(8 * (5.0 + WARM_HOURS) * DEAR, rel=1e-6)
    assert left.cost_usd == pytest.approx(8 * 5.0 * 2.0)


def test_an_empty_pool_costs_its_floor() -> None:
    assert cost(a_row(bounds=(3, 40), initial=(5, 0))) == pytest.approx(3 * GPUS * 24.0)


def test_nodes_that_are_struck_need_not_be_paid_for_below_the_floor() -> None:
    calm, struck = (cost(a_row(bounds=(3, 4), initial=(3, 0), losses=p)) for p in (0.0, 0.05))
    assert 0.5 * calm < struck < calm


def test_a_node_is_paid_for_until_the_job_it_began_with_ends() -> None:
    worlds = a_row(running=[Work(0, 1, 10.0)])
    assert cost(worlds) == pytest.approx(GPUS * (10.0 + COLD_HOURS))


def test_a_node_that_is_struck_need_not_be_kept_for_its_job() -> None:
    worlds = a_row(running=[Work(0, 1, 10.0)], losses=0.9)
    assert cost(worlds) < GPUS * 5.0


def test_what_is_left_of_a_job_whose_node_was_struck_is_still_to_be_done() -> None:
    worlds = a_row(running=[Work(0, 8, 10.0)], losses=0.9)
    assert cost(worlds) == pytest.approx(8 * (10.0 + COLD_HOURS), rel=1e-3)


def test_what_runs_from_the_beginning_leaves_less_under_the_ceiling() -> None:
    assert bound(a_row(Work(1.0, 8, 2.0), running=[Work(0, 8, 10.0)], bounds=(0, 1))) is None


def test_more_work_than_the_ceiling_carries_cannot_start_in_time() -> None:
    worlds = a_row(*[Work(1.0, 8, 2.0)] * 3, bounds=(0, 2))
    assert bound(worlds, 0.0) is None
    assert cost(worlds, 1 / 3) == pytest.approx(3 * 8 * (2.0 + WARM_HOURS), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_jobs_that_follow_each_other_on_one_node_fit_it_whatever_the_grid(seed: int) -> None:
    """Each comes when the one before it ends, and would wait for no longer."""
    rng, jobs, at = np.random.default_rng(seed), [], 0.0
    while at < 20.0:
        jobs.append(Work(at, 8, float(rng.choice([0.02, 0.3, 2.0]) * rng.uniform(0.5, 2)), 0.0))
        at += jobs[-1].hours + WARM_HOURS + 1e-9
    assert cost(a_row(*jobs, bounds=(0, 1))) == pytest.approx(8 * at, rel=1e-6)


def test_more_spot_than_its_share_may_stay_while_jobs_it_began_with_run() -> None:
    prices = [(DEAR, CHEAP)] * (HOURS + 1)
    running = [Work(0, 8, 20.0)] * 6
    worlds = a_row(running=running, initial=(1, 5), prices=prices)
    hours = 20.0 + COLD_HOURS
    assert cost(worlds) == pytest.approx(GPUS * hours * (5 * CHEAP + DEAR))


def test_nothing_is_ready_before_the_first_cold_start() -> None:
    soon = a_row(*[Work(0.0, 8, 0.8)] * 2, bounds=(0, 2))
    slow = soon.rules._replace(cold_start_us=np.full_like(soon.rules.cold_start_us, HOUR_US))
    assert bound(soon) is not None
    assert bound(PoolWorlds(slow, soon.specs, slots=64)) is None


def test_spot_is_at_most_its_share_of_a_day_but_for_half_a_node() -> None:
    prices = [(DEAR, CHEAP)] * (HOURS + 1)
    worlds = a_row(Work(0.0, 80, 24.0), initial=(5, 5), prices=prices)
    found = bound(worlds)
    assert found is not None
    on_demand, spot = found.node_hours
    assert on_demand + spot == pytest.approx(10 * 24.0, rel=1e-3)
    assert spot == pytest.approx((7 + 0.5) * 24.0, rel=1e-3)


def test_spot_does_not_grow_in_a_shortage() -> None:
    """It is hours old when the work comes, and to hold spot nodes until then does not pay."""
    prices = [(10.0, 9.0)] * (HOURS + 1)
    work = Work(6.0, 80, 4.0)
    free, short = (
        cost(a_row(work, initial=(1, 1), prices=prices, shortage=hours))
        for hours in ((), range(3, 24))
    )
    assert free == pytest.approx(80 * 4.0 * 9.0, rel=2e-3)
    assert short == pytest.approx(80 * 4.0 * 10.0, rel=2e-3)


def many(seed: int, count: int = 60) -> list[Work]:
    rng = np.random.default_rng(seed)
    return [
        Work(
            at=float(rng.uniform(0.0, 44.0)),
            gpus=int(rng.choice([1, 2, 8, 16])),
            hours=float(rng.lognormal(0.0, 1.5)),
            patience=float(rng.lognormal(1.0, 0.8)),
        )
        for _ in range(count)
    ]


WAVES = [(CHEAP + hour % 12, CHEAP + hour % 12) for hour in range(HOURS + 1)]
RATES = (0.0, 0.02, 0.1, 0.3, 1.0)


def test_cost_falls_ever_more_slowly_with_violations() -> None:
    costs = [cost(a_row(*many(7), prices=WAVES), rate, days=2) for rate in RATES]
    slopes = np.diff(costs) / np.diff(RATES)
    assert (slopes < 0).all()
    assert (np.diff(slopes) > -1e-6).all()


def test_a_bound_is_the_same_whatever_was_bound_before_it() -> None:
    row = Clairvoyant(a_row(*many(7), prices=WAVES), 0, days=2, on_demand=NOTHING_UNDONE)
    for rate in (0.3, 0.0, 1.0, 0.02):
        found = row.at(rate)
        assert found is not None
        expected = cost(a_row(*many(7), prices=WAVES), rate, days=2)
        assert found.cost_usd == pytest.approx(expected, rel=1e-9)


def test_a_rate_that_cannot_be_reached_leaves_the_others_as_they_are() -> None:
    worlds = a_row(*[Work(1.0, 8, 2.0)] * 3, bounds=(0, 2))
    row = Clairvoyant(worlds, 0, days=1, on_demand=NOTHING_UNDONE)
    assert row.at(0.0) is None
    for _ in range(2):
        found = row.at(1 / 3)
        assert found is not None
        assert found.cost_usd == pytest.approx(3 * 8 * (2.0 + WARM_HOURS), rel=1e-6)
        assert row.at(0.0) is None


def test_a_frontier_lies_below_the_bounds_between_its_rates_and_on_them_at_its_rates() -> None:
    row = Clairvoyant(a_row(*many(7), prices=WAVES), 0, days=2, on_demand=NOTHING_UNDONE)
    frontier = row.frontier(RATES)
    for rate in (0.01, 0.05, 0.2, 0.6):
        exact, found = row.at(rate), frontier.at(rate)
        assert exact is not None
        assert found is not None
        assert 0.8 * exact.cost_usd < found <= exact.cost_usd * (1 + 1e-9)
    for known in frontier.bounds:
        assert frontier.at(known.rate) == pytest.approx(known.cost_usd)


def test_rows_together_spend_violations_where_they_save_most() -> None:
    dear = a_row(Work(0.0, 16, 0.5), prices=at_first(DEAR))
    cheap = a_row(Work(0.0, 1, 0.5), prices=at_first(DEAR))
    frontiers = [
        Clairvoyant(worlds, 0, days=1, on_demand=NOTHING_UNDONE).frontier((0.0, 0.5, 1.0))
        for worlds in (dear, cheap)
    ]
    expected = cost(dear, 1.0) + cost(cheap, 0.0)
    assert pooled(frontiers, 0.5) == pytest.approx(expected)


def test_days_that_do_not_count_are_free_with_their_energy() -> None:
    worlds = a_row(Work(3.0, 8, 6.0))
    worlds.specs.watts[:] = 500.0
    worlds.rules.energy_price[:] = 100 * USD_MICROS  # A hundred dollars per kWh.
    both, first, second = (
        Clairvoyant(worlds, 0, days=days, on_demand=NOTHING_UNDONE).at(0.0)
        for days in ([True, True], [True, False], [False, True])
    )
    assert both is not None
    assert first is not None
    assert second is not None
    assert both.cost_usd > 8 * 6.0 * (CHEAP + 0.5 * 100 * 0.99)
    assert first.cost_usd == pytest.approx(both.cost_usd)
    assert second.cost_usd == pytest.approx(0.0)


def test_prices_have_to_reach_over_all_days() -> None:
    worlds = a_row(Work(1.0, 8, 3.0))
    with pytest.raises(ValueError, match="24 of 48 hours"):
        Clairvoyant(worlds, 0, days=2, on_demand=NOTHING_UNDONE[:24])


def test_worlds_that_have_gone_on_are_refused() -> None:
    worlds = a_row(Work(1.0, 8, 3.0))
    worlds.advance(SECOND_US)
    with pytest.raises(ValueError, match="beginning"):
        bound(worlds)
