"""Quotas, budgets and priorities of tenants: who is held back, why, and until when."""

import pytest
from msgspec.structs import replace

from asked_world import START, job, world_of
from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.messages import JobEvent, TenantEvent
from gpuloop.schemas.messages.actions import MigrateTo
from gpuloop.schemas.units import HOUR_US, MINUTE_US, USD_MICROS
from gpuloop.streams.tenants import TenantShard, absorb_tenant, tenant_partials
from gpuloop.twin.config import TenantConfig, TwinConfig
from gpuloop.twin.state import RENTED
from gpuloop.twin.world import World, build_world

ANN = TenantConfig(name="ann", gpus={"l4": 2})
DAY_US = 24 * HOUR_US


def told(world: World, minutes: float, kind: type) -> list:  # type: ignore[type-arg]
    said = world.advance(START + round(minutes * MINUTE_US))
    return [output.message for output in said if isinstance(output.message, kind)]


def running(world: World) -> set[str]:
    return {name for name, one in world.state.jobs.items() if one.running}


def test_a_job_beyond_the_quota_waits_unseen_until_one_of_its_tenant_ends() -> None:
    jobs = [job(name, seconds=600 if name == "a" else 6_000) for name in "abc"]
    world = world_of(*jobs, job("z", tenant="bob"), tenants=(ANN,))
    early = told(world, 5, TenantEvent)
    reasons = {event.job: event.reason for event in early}
    assert reasons == {"a": "", "b": "", "c": "quota: 2 of 2 GPUs in l4 are taken", "z": ""}
    assert running(world) == {"a", "b", "z"}
    assert world.state.pools["l4"].queue == []
    assert world.books()["l4"]["waiting_penalty"] == 0
    later = told(world, 30, JobEvent)
    assert running(world) == {"b", "c", "z"}
    (submitted,) = [event for event in later if event.kind == "submitted"]
    assert submitted.job == "c"
    assert submitted.reason.startswith("held back by quota or budget for 6")
    assert submitted.submitted_us == submitted.event_time_us


def test_a_job_beyond_the_whole_quota_is_refused_and_says_so() -> None:
    world = world_of(job("a", gpus=4), tenants=(ANN,))
    (event,) = told(world, 1, TenantEvent)
    assert (event.kind, event.reason) == ("refused", "asks for 4 GPUs, the quota in l4 is 2")
    assert not world.state.jobs
    assert world.state.counters.denied == 1


def test_parts_of_gpus_count_as_such() -> None:
    world = world_of(*(job(name, 700) for name in "abc"), tenants=(ANN,))
    told(world, 5, JobEvent)
    assert running(world) == {"a", "b"}
    assert world.state.tenants["ann"].milli == {"l4": 1400}


def test_jobs_of_a_tenant_do_not_overtake_each_other() -> None:
    """One GPU is left, the next of its jobs needs two: the one after that does not slip by."""
    world = world_of(
        job("a"), job("b", gpus=2, after_s=1), job("c", after_s=2), tenants=(ANN,),
    )  # fmt: skip
    told(world, 5, JobEvent)
    assert running(world) == {"a"}


def test_a_job_that_is_held_back_too_long_is_cancelled() -> None:
    segments = {kind: replace(one, patience_us=10 * MINUTE_US)
                for kind, one in world_of().config.segments.items()}  # fmt: skip
    world = world_of(*(job(n, seconds=20_000) for n in "abc"), tenants=(ANN,), segments=segments)
    said = told(world, 200, TenantEvent)
    assert [(e.job, e.reason) for e in said if e.kind == "cancelled"] == [("c", "waited too long")]
    assert not world.state.pools["l4"].held_back


def test_a_budget_holds_back_until_the_day_ends() -> None:
    """Each costs its price for 24 hours at most: the budget is enough for two from the start."""
    price = world_of().state.pools["l4"].quote / USD_MICROS
    tenant = TenantConfig(name="ann", usd_per_day=2.5 * 24 * price)
    jobs = [job(name, seconds=30 * 3_600) for name in "abc"]
    world = world_of(*jobs, tenants=(tenant,))
    (reason,) = [event.reason for event in told(world, 1, TenantEvent) if event.reason]
    assert reason.startswith("budget: 0.00 of ")
    assert running(world) == {"a", "b"}
    world.advance(START + 13 * HOUR_US)
    assert running(world) == {"a", "b", "c"}, "half a day of a third is what is left"


def test_a_new_day_begins_with_nothing_spent() -> None:
    """One GPU spends all of it; eight fit into what is left of the next day from nine o'clock."""
    price = world_of().state.pools["l4"].quote / USD_MICROS
    tenant = TenantConfig(name="ann", usd_per_day=24.0 * price)
    late = job("b", seconds=3_600, gpus=8, after_s=20 * 3_600)
    world = world_of(job("a", seconds=86_040), late, tenants=(tenant,))
    world.advance(START + 44 * HOUR_US)
    assert world.state.pools["l4"].held_back == ["b"]
    world.advance(START + 45 * HOUR_US)
    assert running(world) == {"b"}


def test_jobs_of_a_preferred_tenant_start_first() -> None:
    boss = TenantConfig(name="boss", priority=1)
    full = [job(f"w{i:03d}", seconds=600 + i, tenant="x") for i in range(128)]
    late = [job("a", tenant="ann", after_s=10), job("b", tenant="boss", after_s=20)]
    world = world_of(*full, *late, tenants=(boss,))
    world.advance(START + MINUTE_US)
    assert world.state.pools["l4"].queue == ["b", "a"]


def test_migration_into_a_pool_beyond_its_quota_is_refused() -> None:
    pools = (*world_of().config.pools, replace(TwinConfig().pools[1], weights={}))
    tenant = TenantConfig(name="ann", gpus={"a100": 0})
    world = world_of(job("a"), tenants=(tenant,), pools=pools)
    world.advance(START + MINUTE_US)
    with pytest.raises(Refused, match="quota: 0 of 0 GPUs in a100"):
        world.apply("migration", "a", MigrateTo(pool="a100"), world.now_us)
    assert world.state.jobs["a"].pool == "l4"


@pytest.mark.parametrize(
    "tenants", [(TenantConfig(name="ann", gpus={"v100": 1}),), (ANN, ANN)], ids=["pool", "twice"]
)
def test_tenants_that_make_no_sense_are_refused(tenants: tuple[TenantConfig, ...]) -> None:
    with pytest.raises(ValueError, match="tenant ann has"):
        world_of(tenants=tenants)


def test_what_a_quota_refuses_is_no_answer_to_the_quote() -> None:
    world = world_of(job("a", gpus=4), tenants=(ANN,))
    (event,) = told(world, 1, TenantEvent)
    shard = TenantShard()
    assert absorb_tenant(shard, event) is None
    (partial,) = tenant_partials(shard, "local", "tenants/0", START)
    assert partial.refused_jobs == 1
    assert partial.quotes == ()


def test_laws_of_quotas_and_budgets_hold_for_days_of_a_breaking_fleet() -> None:
    """Philly's tenants: one with a quota, one with a budget, one with both."""
    limits = (
        TenantConfig(name="6214e9", gpus={"h100": 24, "a100": 16, "l4": 12}),
        TenantConfig(name="11cb48", usd_per_day=900.0, priority=2),
        TenantConfig(name="6c71a0", gpus={"a100": 8}, usd_per_day=400.0),
    )
    config = TwinConfig(
        seed=3, gpu_sample_every_us=0, fault_rate_factor=300.0, arrival_share=1.0, tenants=limits
    )
    world = build_world(config, None, "generator:bursty")
    spent = dict.fromkeys((one.name for one in limits), 0.0)
    carried = dict.fromkeys(spent, 0.0)
    held_back = 0
    for minute in range(3 * 24 * 60):
        now = world.start_us + minute * MINUTE_US
        world.advance(now)
        jobs = world.state.jobs.values()
        held_back += sum(len(pool.held_back) for pool in world.state.pools.values())
        for tenant in limits:
            mine = [one for one in jobs if one.tenant == tenant.name]
            for pool, quota in tenant.gpus.items():
                used = sum(one.gpus for one in mine if one.pool == pool and one.running)
                assert used <= quota
            if now % DAY_US == 0:
                spent[tenant.name] = 0.0
                hourly = sum(one.gpus * one.price for one in mine if one.attempt)
                carried[tenant.name] = hourly * 24 / USD_MICROS
            rate = sum(one.gpus * one.price for one in mine if one.running)
            spent[tenant.name] += rate / 60 / USD_MICROS
            if tenant.usd_per_day is not None:
                limit = max(tenant.usd_per_day, carried[tenant.name])
                assert spent[tenant.name] <= limit * 1.001
            account = world.state.tenants.get(tenant.name)
            if account is not None:
                assert account.rate == rate
    assert held_back > 0
    assert any(node.phase in RENTED for node in world.state.nodes.values())
