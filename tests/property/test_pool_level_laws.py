"""Whatever is ordered and whatever breaks: GPUs are conserved and flows are what runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuloop.schemas.units import MINUTE_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds, SlotsFull

HOURS = 6
ROUGH = replace(
    TwinConfig(gpu_sample_every_us=0, progress_every_us=0),
    fault_rate_factor=3_000.0,
    pools=tuple(replace(one, spot_reclaims_per_node_hour=0.3) for one in TwinConfig().pools),
)

orders = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 25)), min_size=1, max_size=12
)


def check(worlds: PoolWorlds) -> None:
    state, rules, specs = worlds.state, worlds.rules, worlds.specs
    working = (state.phase >= arrays.READY) & (state.phase <= arrays.LEAVING)
    for row in range(worlds.rows):
        used = np.zeros(state.phase.shape[1], np.int64)
        jobs = state.job[row]
        running = np.flatnonzero(jobs[:, arrays.STATE] == arrays.RUNNING)
        for slot in running:
            pairs = jobs[slot, arrays.FIELD :].reshape(-1, 2)[: jobs[slot, arrays.NODES]]
            assert pairs[:, 1].sum() == jobs[slot, arrays.GPUS]
            used[pairs[:, 0]] += pairs[:, 1]
        whole = np.where(working[row], rules.gpus_per_node[row], 0)
        assert (used + state.free[row] + state.serving[row]).tolist() == whole.tolist()
        assert state.held[row] == jobs[running, arrays.GPUS].sum()
        flow = (jobs[running, arrays.GPUS] * jobs[running, arrays.PRICE]).sum()
        assert state.rates[row, arrays.REVENUE] == pytest.approx(flow)
        waiting = np.flatnonzero(jobs[:, arrays.STATE] == arrays.QUEUED)
        queue = state.queue[row, : state.queued[row]]
        assert sorted(queue.tolist()) == waiting.tolist()
        submitted = specs.at_us[jobs[queue, arrays.SPEC]]
        assert (np.diff(submitted) >= 0).all()
        overdue = waiting[jobs[waiting, arrays.CHARGED] == 1]
        owed = (jobs[overdue, arrays.GPUS] * jobs[overdue, arrays.PRICE]).sum() / 2
        assert state.rates[row, arrays.WAIT] == pytest.approx(owed)
        assert state.watts[row] == pytest.approx(
            (jobs[running, arrays.GPUS] * specs.watts[jobs[running, arrays.SPEC]]).sum(), abs=1e-3
        )


@settings(max_examples=25)
@given(orders, st.integers(0, 1000))
def test_gpus_are_conserved_and_flows_are_what_runs(course, seed):
    config = replace(ROUGH, seed=seed)
    worlds, again = (
        build_pool_worlds([config], hours=HOURS, traces=None, workload="generator")
        for _ in range(2)
    )
    for on_demand, spot, minutes in course:
        wanted = np.array([[on_demand, spot]] * worlds.rows)
        wanted[~worlds.rules.billings] = 0
        for one in (worlds, again):
            answers = one.scale(wanted)
            one.advance(minutes * MINUTE_US)
        total = wanted.sum(axis=1)
        refused = (total < worlds.rules.nodes_min) | (total > worlds.rules.nodes_max)
        assert (answers[refused] != 0).all()
        check(worlds)
    for one, other in zip(worlds.state, again.state, strict=True):
        assert np.array_equal(one, other)


def test_a_row_goes_its_way_whoever_is_beside_it():
    configs = [replace(ROUGH, seed=seed) for seed in (4, 5)]
    alone = build_pool_worlds(configs[1:], hours=HOURS, traces=None, workload="generator")
    beside = build_pool_worlds(configs, hours=HOURS, traces=None, workload="generator")
    for worlds in (alone, beside):
        worlds.advance(200 * MINUTE_US)
    assert np.array_equal(alone.state.books, beside.state.books[len(ROUGH.pools) :])


def test_more_jobs_than_slots_are_an_error():
    with pytest.raises(SlotsFull, match="40 slots are too few"):
        build_pool_worlds([ROUGH], hours=HOURS, traces=None, workload="generator", slots=40)
