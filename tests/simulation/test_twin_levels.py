"""The twin's two levels tell the same story: what a fleet costs, who waits, which controller wins.

Both meet the same luck; what differs is that the upper level knows no heat, links or slow memory.
"""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.messages import JobEvent
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds
from gpuloop.twin.services import erlang_c
from gpuloop.twin.world import World, build_world

HOURS = 12
WINDOWS = 20
EVERY_US = 10 * MINUTE_US
QUIET = TwinConfig(gpu_sample_every_us=0, progress_every_us=0, shape="bursty")
CALM = replace(
    QUIET,
    fault_rate_factor=0.0,
    pools=tuple(replace(pool, spot_reclaims_per_node_hour=0.0) for pool in QUIET.pools),
)

Wanted = Callable[[int, int, int], int]
"""Nodes for a pool of that many GPUs per node, by GPUs at work and GPUs waited for."""

CONTROLLERS: dict[str, Wanted | None] = {
    "stand still": None,
    "follow demand": lambda size, busy, queued: -(-(busy + queued) // size),
    "keep four spare": lambda size, busy, queued: -(-(busy + queued) // size) + 4,
}


def bounded(config: TwinConfig, place: int, total: int) -> tuple[int, int]:
    """Return nodes on demand and spot that a pool may have, spot kept where there is both."""
    pool = config.pools[place]
    total = min(max(total, pool.nodes_min), pool.nodes_max)
    if "on_demand" not in pool.billings:
        return 0, total
    spot = min(pool.spot_nodes, total)
    return total - spot, spot


def node_level(config: TwinConfig, wanted: Wanted | None) -> tuple[float, NDArray[np.int64]]:
    world = build_world(config, None, "generator")
    waits: dict[str, int] = {}

    def hear(until_us: int) -> None:
        for output in world.advance(until_us):
            event = output.message
            if isinstance(event, JobEvent) and event.submitted_us >= world.start_us:
                if event.kind == "submitted":
                    waits[event.job] = -event.submitted_us
                elif event.kind == "started" and event.attempt == 1:
                    waits[event.job] = event.event_time_us - event.submitted_us

    for at_us in range(world.start_us, world.start_us + HOURS * HOUR_US, EVERY_US):
        hear(at_us)
        for place, pool in enumerate(config.pools if wanted else ()):
            act(world, config, place, pool.name, wanted)
        hear(at_us + EVERY_US)
    books = world.books()
    cost = -sum(amount for book in books.values() for amount in book.values() if amount < 0)
    return cost, closed(np.array([*waits.values()]), world.start_us + HOURS * HOUR_US)


def act(world: World, config: TwinConfig, place: int, name: str, wanted: Wanted | None) -> None:
    assert wanted is not None
    nodes = [node for node in world.state.nodes.values() if node.pool == name]
    jobs = world.state.jobs
    queued = sum(jobs[job].gpus for job in world.state.pools[name].queue)
    busy = sum(
        slot != "" for node in nodes for slot in node.slots if node.phase in ("ready", "draining")
    )
    size = config.pools[place].gpus_per_node
    on_demand, spot = bounded(config, place, wanted(size, busy, queued))
    to, now = ScaleTo(on_demand_nodes=on_demand, spot_nodes=spot), world.read("scaling", name)
    if now is not None and now.state != to:
        with suppress(Refused):  # As at the other level: an order for scarce spot nodes.
            world.apply("scaling", name, to, world.now_us)


def pool_level(
    configs: list[TwinConfig], wanted: Wanted | None
) -> list[tuple[float, NDArray[np.int64]]]:
    worlds = build_pool_worlds(configs, hours=HOURS, traces=None, workload="generator", paired=True)
    state, size = worlds.state, worlds.rules.gpus_per_node
    pools = len(QUIET.pools)
    while worlds.elapsed_us < HOURS * HOUR_US:
        worlds.advance(0)
        if wanted is not None:
            busy = state.held + state.service_gpus
            counts = zip(size.tolist(), busy.tolist(), worlds.queued_gpus().tolist(), strict=True)
            worlds.scale(
                np.array(
                    [
                        bounded(configs[row // pools], row % pools, wanted(*one))
                        for row, one in enumerate(counts)
                    ]
                )
            )
        worlds.advance(EVERY_US)
    costs = sum(-np.minimum(amounts, 0.0) for amounts in worlds.books().values())
    found = []
    for world in range(len(configs)):
        first, last = world * pools, (world + 1) * pools
        waits = [waits_of(worlds.specs, worlds.rules, row) for row in range(first, last)]
        ends_us = int(worlds.rules.start_us[first]) + HOURS * HOUR_US
        found.append((float(costs[first:last].sum()), closed(np.concatenate(waits), ends_us)))
    return found


def waits_of(specs: arrays.Specs, rules: arrays.Rules, row: int) -> NDArray[np.int64]:
    """Return waits of accepted jobs, and the negative submission of those that wait still."""
    mine = slice(int(rules.arrivals[row]), int(rules.last[row]))
    at, started, fate = specs.at_us[mine], specs.started_us[mine], specs.fate[mine]
    came = (at < rules.start_us[row] + HOURS * HOUR_US) & (fate != arrays.REFUSED)
    return np.where(started >= 0, started - at, -at)[came]


def closed(waits: NDArray[np.int64], ends_us: int) -> NDArray[np.int64]:
    """Let jobs that never started have waited until the end."""
    return np.where(waits < 0, ends_us + waits, waits)


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    rng = np.random.default_rng(5)
    means = rng.choice(differences, (2_000, len(differences))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def test_a_fleet_that_stands_still_in_a_calm_world_has_the_same_books_at_both_levels() -> None:
    world = build_world(replace(CALM, seed=3), None, "generator")
    world.advance(world.start_us + 24 * HOUR_US)
    worlds = build_pool_worlds([replace(CALM, seed=3)], hours=25, traces=None, workload="generator")
    worlds.advance(24 * HOUR_US)
    told, found = world.books(), worlds.books()
    for row, pool in enumerate(CALM.pools):
        revenue = told[pool.name]["revenue"]
        for component, amount in told[pool.name].items():
            assert found[component][row] == pytest.approx(amount, abs=revenue * 1e-3), component
    counters, counts = world.state.counters, worlds.state.counts.sum(axis=0)
    assert counts[arrays.ARRIVED] == counters.arrived
    assert counts[arrays.TURNED_AWAY] == counters.refused


@pytest.mark.timeout(300)
def test_paired_windows_agree_within_five_per_cent_and_rank_controllers_alike() -> None:
    configs = [replace(QUIET, seed=seed) for seed in range(WINDOWS)]
    mean_costs: dict[str, tuple[float, float]] = {}
    for name, wanted in CONTROLLERS.items():
        above = pool_level(configs, wanted)
        below = [node_level(config, wanted) for config in configs]
        costs = np.array([[one[0] for one in above], [one[0] for one in below]])
        waits = np.array([[np.quantile(w, 0.95) for _, w in both] for both in (above, below)])
        low, high = interval((costs[0] - costs[1]) / costs[1].mean())
        assert -0.05 <= low <= high <= 0.05, (name, low, high)
        low, high = interval((waits[0] - waits[1]) / max(waits[1].mean(), 60 * SECOND_US))
        assert -0.05 <= low <= high <= 0.05, (name, low, high)
        mean_costs[name] = (float(costs[0].mean()), float(costs[1].mean()))
    ranks = [sorted(mean_costs, key=lambda name: mean_costs[name][level]) for level in (0, 1)]
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_jobs_of_one_gpu_wait_as_erlangs_formula_says(load: float) -> None:
    """M/M/k: Poisson arrivals and exponential work on 16 GPUs; a start takes 5 of 36,000 s."""
    servers, jobs, mean_us = 16, 400_000, 10 * HOUR_US
    rng = np.random.default_rng(11)
    gaps = rng.exponential(mean_us / servers / load, jobs)
    config = replace(
        CALM,
        pools=(replace(CALM.pools[0], on_demand_nodes=2, nodes_min=2, nodes_max=2),),
        services=(),
    )
    empty = build_pool_worlds([config], hours=0, traces=None, workload="generator:steady")
    rules, start_us = empty.rules, int(empty.rules.start_us[0])
    nothing = np.zeros(jobs, np.int64)
    specs = arrays.Specs(
        at_us=start_us + np.cumsum(gaps).astype(np.int64),
        gpus=nothing + 1,
        work_us=rng.exponential(mean_us, jobs).astype(np.int64),
        kind=nothing,
        tenant=nothing,
        reservation=np.full(jobs, np.inf),
        patience_us=nothing + arrays.NEVER // 2,
        start_normal=np.zeros(jobs),
        fails=np.zeros(jobs, np.bool_),
        watts=np.zeros(jobs),
        started_us=nothing - 1,
        ended_us=nothing - 1,
        fate=nothing.copy(),
    )
    none = np.zeros(1, np.int64)
    worlds = PoolWorlds(rules._replace(first=none, arrivals=none, last=none + jobs), specs)
    worlds.advance(int(specs.at_us[-1]) - start_us)
    settled = slice(jobs // 10, jobs - 1_000)
    waited = (specs.started_us - specs.at_us)[settled]
    expected = erlang_c(servers, servers * load)
    assert (waited > 0).mean() == pytest.approx(expected, rel=0.02)
    mean_wait_us = expected * mean_us / (servers * (1 - load))
    assert waited.mean() == pytest.approx(mean_wait_us, rel=0.05 if load > 0.8 else 0.02)
