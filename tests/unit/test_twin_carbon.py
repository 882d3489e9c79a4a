"""Carbon by region and hour: how much, when, and that it costs only what is configured."""

from itertools import pairwise

import pytest

from asked_world import START, job, world_of
from gpuloop.loop.evaluate.ledger import Ledger
from gpuloop.schemas.component import Received
from gpuloop.schemas.messages import ResourceSample
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.carbon import GRIDS, milligrams_per_kwh
from gpuloop.twin.config import CarbonConfig
from gpuloop.twin.world import World

USUAL = CarbonConfig()


def day(config: CarbonConfig, region: str) -> list[int]:
    return [milligrams_per_kwh(config, region, START + hour * HOUR_US) for hour in range(24)]


@pytest.mark.parametrize("region", sorted(GRIDS))
def test_a_day_has_the_published_mean(region: str) -> None:
    assert sum(day(USUAL, region)) / 24 == pytest.approx(
        1000 * GRIDS[region].grams_per_kwh, rel=1e-3
    )


def test_evening_where_the_region_lies_is_the_dirtiest_hour() -> None:
    """Eight in the evening of Iowa's winter time is two in the morning of UTC."""
    hours = day(USUAL, "us-central1")
    assert hours.index(max(hours)) == 2
    assert max(hours) == pytest.approx(1.15 * 412_720, abs=1)
    assert day(USUAL, "europe-west2").index(max(day(USUAL, "europe-west2"))) == 20


def test_of_an_unknown_region_nothing_is_said() -> None:
    assert set(day(USUAL, "moon-1")) == {0}


def test_what_is_configured_replaces_the_published_mean() -> None:
    assert set(day(CarbonConfig(grams_per_kwh=100.0, swing=0.0), "us-central1")) == {100_000}


def lived(carbon: CarbonConfig) -> tuple[World, list[ResourceSample]]:
    world = world_of(job("a"), job("b", 500), carbon=carbon)
    said = world.advance(START + 3 * HOUR_US)
    return world, [o.message for o in said if isinstance(o.message, ResourceSample)]


def test_grams_are_the_integral_of_what_telemetry_tells() -> None:
    world, samples = lived(USUAL)
    milligrams = 0.0
    for one, two in pairwise(samples):
        hours = (two.event_time_us - one.event_time_us) / HOUR_US
        milligrams += one.power_watts / 1000 * one.carbon_milligrams_per_kwh * hours
    assert len({sample.carbon_milligrams_per_kwh for sample in samples}) >= 3, "it goes by the hour"
    assert world.carbon()["l4"] == pytest.approx(milligrams, abs=1)


def test_without_a_price_carbon_changes_no_money() -> None:
    clean, dirty = lived(CarbonConfig(grams_per_kwh=0.0)), lived(CarbonConfig(grams_per_kwh=900.0))
    assert clean[0].books() == dirty[0].books()
    assert clean[0].carbon() == {"l4": 0}
    assert dirty[0].carbon()["l4"] > 0


def test_a_price_of_carbon_is_part_of_that_of_energy() -> None:
    """500 g at 80 USD a tonne are four cents beside the eight that a kWh costs."""
    config = CarbonConfig(grams_per_kwh=500.0, swing=0.0)
    free, _ = lived(config)
    world, samples = lived(CarbonConfig(grams_per_kwh=500.0, swing=0.0, usd_per_tonne=80.0))
    assert {sample.energy_usd_micros_per_kwh for sample in samples} == {120_000}
    paid, before = world.books()["l4"]["energy_cost"], free.books()["l4"]["energy_cost"]
    assert paid == pytest.approx(1.5 * before, abs=2)


def sample(minute: int, seq: int, watts: float) -> Received:
    message = ResourceSample(
        fleet="local", resource="p", kind="capacity", pool="p", event_time_us=minute * MINUTE_US,
        boot=1, seq=seq, load=0.0, capacity=0.0, power_watts=watts, gpus_per_node=8,
        carbon_milligrams_per_kwh=500_000,
    )  # fmt: skip
    return Received(
        topic="telemetry.resources", partition=0, offset=0, key="", id=str(seq), message=message
    )


def test_ledger_counts_energy_and_carbon_of_a_window() -> None:
    ledger = Ledger()
    ledger.observe(sample(0, 1, 6_000.0))
    ledger.advance(10 * MINUTE_US)
    taken = ledger.settle("p").quantities
    assert taken == {"energy_milliwatt_hours": 1_000_000, "carbon_milligrams": 500_000}


def test_what_late_news_takes_back_is_owed_by_the_next_window() -> None:
    """Ten minutes were counted at 6 kW; in truth all but the first were at 0 W."""
    ledger, counted = Ledger(), []
    ledger.observe(sample(0, 1, 6_000.0))
    ledger.advance(10 * MINUTE_US)
    counted.append(ledger.settle("p").quantities["energy_milliwatt_hours"])
    ledger.observe(sample(1, 2, 0.0))
    ledger.advance(11 * MINUTE_US)
    counted.append(ledger.settle("p").quantities["energy_milliwatt_hours"])
    ledger.observe(sample(11, 3, 60_000.0))
    ledger.advance(21 * MINUTE_US)
    counted.append(ledger.settle("p").quantities["energy_milliwatt_hours"])
    assert counted == [1_000_000, 0, 10_000_000 - 900_000]


def test_ledger_refuses_an_impossible_amount_of_carbon() -> None:
    ledger = Ledger()
    ledger.observe(sample(0, 1, 9e11))
    assert ledger.counts.implausible == 1
