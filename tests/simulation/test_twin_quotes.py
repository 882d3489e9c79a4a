"""What tenants are told and answer: the same at both levels of the twin, patrons' discount too."""

from collections import Counter

import msgspec
from msgspec.structs import replace

from gpuloop.schemas.component import load, save
from gpuloop.schemas.messages import TenantEvent
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.demand import PATRON_JOBS, RECORD_US, accepted_jobs, told_quote
from gpuloop.twin.pool_level.arrays import ACCEPTED_SUM, ACCEPTS, REFUSALS, REFUSED_SUM
from gpuloop.twin.pool_level.build import KINDS, build_pool_worlds
from gpuloop.twin.state import WorldState
from gpuloop.twin.world import build_world

HOURS = 30
LOYALTY = 0.1
CALM = replace(TwinConfig(), gpu_sample_every_us=0, progress_every_us=0, fault_rate_factor=0.0)

Told = dict[tuple[str, str, str], tuple[int, int]]
"""Jobs, and the sum of their quotes, by pool, segment and answer."""


def loyal(ratio: float) -> TwinConfig:
    return replace(CALM, pools=tuple(replace(one, loyalty_ratio=ratio) for one in CALM.pools))


def at_node_level(loyalty: float) -> Told:
    world = build_world(loyal(loyalty), traces=None, workload="generator")
    jobs: Counter[tuple[str, str, str]] = Counter()
    sums: Counter[tuple[str, str, str]] = Counter()
    for hour in range(1, HOURS + 1):
        for output in world.advance(world.start_us + hour * HOUR_US):
            one = output.message
            if isinstance(one, TenantEvent) and one.kind != "cancelled":
                jobs[one.pool, one.segment, one.kind] += 1
                sums[one.pool, one.segment, one.kind] += one.quote_usd_micros_per_gpu_hour
    return {key: (jobs[key], sums[key]) for key in jobs}


def at_pool_level(loyalty: float) -> Told:
    worlds = build_pool_worlds([loyal(loyalty)], hours=HOURS, traces=None, workload="generator")
    worlds.advance(HOURS * HOUR_US)
    found: Told = {}
    columns = {"accepted": (ACCEPTS, ACCEPTED_SUM), "refused": (REFUSALS, REFUSED_SUM)}
    for row, pool in enumerate(CALM.pools):
        for kind, segment in enumerate(KINDS):
            for answer, (jobs, total) in columns.items():
                counts = worlds.state.answers[row, kind]
                if counts[jobs]:
                    found[pool.name, segment, answer] = (int(counts[jobs]), round(counts[total]))
    return found


def test_tenants_are_told_the_same_and_answer_alike_at_both_levels() -> None:
    node, pool = at_node_level(LOYALTY), at_pool_level(LOYALTY)
    assert sum(jobs for jobs, _ in node.values()) > 500
    assert node == pool


def test_a_discount_for_patrons_makes_more_of_them_accept_and_pay_less() -> None:
    plain, loyal = at_pool_level(0.0), at_pool_level(LOYALTY)
    key = ("l4", "batch", "accepted")
    assert loyal[key][0] > plain[key][0]
    assert loyal[key][1] / loyal[key][0] < plain[key][1] / plain[key][0]


def test_a_record_takes_some_quotes_and_lasts_for_a_week() -> None:
    assert told_quote(10.0, 0.1, PATRON_JOBS - 1, 0, 1) == 10.0
    assert told_quote(10.0, 0.1, PATRON_JOBS, 0, RECORD_US) == 9.0
    assert told_quote(10.0, 0.1, PATRON_JOBS, 0, RECORD_US + 1) == 10.0
    assert accepted_jobs(5, 0, RECORD_US) == 6
    assert accepted_jobs(5, 0, RECORD_US + 1) == 1


def test_a_world_saved_before_tenants_had_records_goes_on_and_takes_all_for_strangers() -> None:
    world = build_world(loyal(LOYALTY), traces=None, workload="generator")
    world.advance(world.start_us + 10 * HOUR_US)
    saved = msgspec.msgpack.decode(save(world.state))
    for pool in saved["pools"].values():
        del pool["records"]
    old = load(WorldState, msgspec.msgpack.encode(saved))
    again = build_world(loyal(LOYALTY), traces=None, workload="generator", state=old)
    asked = {name: pool.quote for name, pool in again.state.pools.items()}
    told = [
        one.message
        for one in again.advance(world.start_us + 11 * HOUR_US)
        if isinstance(one.message, TenantEvent) and one.message.kind != "cancelled"
    ]
    strangers = {one.tenant: one for one in reversed(told)}.values()
    assert strangers
    assert all(one.quote_usd_micros_per_gpu_hour == asked[one.pool] for one in strangers)
    assert any(pool.records for pool in again.state.pools.values())
