"""Laws of the envelope that hold for any wish, pool and past.

Each has been seen to fail with its guard taken out of `actuators/envelope.py`.
"""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import START_US, batch, envelope_state
from gpuloop.actuators.envelope import (
    ASKED,
    LONG_AGO_US,
    NODES,
    REHEARSED,
    SENT,
    EnvelopeConfig,
    EnvelopeState,
    apply_envelope,
    migration_budget,
    stop_budget,
)
from gpuloop.schemas.policy import MIGRATION, PRICE, PoolBatch
from gpuloop.schemas.units import MINUTE_US

CONFIG = EnvelopeConfig()
NODE_COUNTS = st.one_of(st.integers(0, 60), st.integers(0, 14)).map(float)
USD = st.integers(1, 200_000).map(lambda grid: grid / 10_000)
AGES = st.one_of(st.integers(0, 90).map(lambda age: START_US - age * MINUTE_US),
                 st.just(LONG_AGO_US))  # fmt: skip
FLAGS = st.booleans()
OFTEN = st.sampled_from([True, True, True, True, False])
RARELY = OFTEN.map(lambda flag: not flag)


@st.composite
def pools(draw: st.DrawFn, rows: int) -> PoolBatch:
    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=rows, max_size=rows))

    present = [
        [*pair, 0.0, usd]
        for pair, usd in zip(column(st.tuples(NODE_COUNTS, NODE_COUNTS)), column(USD), strict=True)
    ]
    nodes_min = column(st.integers(0, 10).map(float))
    nodes_max = [low + extra for low, extra in
                 zip(nodes_min, column(st.integers(0, 50).map(float)), strict=True)]  # fmt: skip
    return batch(
        rows,
        present=present,
        low=[[low, 0.0, 0.0, 0.01] for low in nodes_min],
        high=[[high, high, 1.0, 20.0] for high in nodes_max],
        rule=[[*pair, share, usd] for pair, share, usd in
              zip(column(st.tuples(NODE_COUNTS, NODE_COUNTS)), column(st.floats(0, 1)),
                  column(USD), strict=True)],
        nodes_min=nodes_min,
        nodes_max=nodes_max,
        gpus_allocated=column(st.one_of(st.just(0), st.integers(0, 600)).map(float)),
        running_jobs=column(st.integers(0, 100).map(float)),
        node_cost=[list(pair) for pair in
                   column(st.tuples(st.sampled_from([29.0, np.inf]),
                                    st.sampled_from([0.0, 12.0, np.inf])))],
        budget=column(st.sampled_from([0.0, 500.0, 2_000.0, np.inf])),
        fleet=column(st.integers(0, 1)),
        fleet_budget=[draw(st.sampled_from([0.0, 1_500.0, np.inf]))] * rows,
        capacity_fresh=column(OFTEN),
        demand_fresh=column(OFTEN),
        telemetry_fresh=column(OFTEN),
        market_fresh=column(OFTEN),
        price_epoch=column(FLAGS),
    )  # fmt: skip


@st.composite
def pasts(draw: st.DrawFn, rows: int) -> EnvelopeState:
    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=rows, max_size=rows))

    return envelope_state(
        rows,
        last_growth_us=column(AGES),
        last_shrink_us=column(AGES),
        last_price_us=column(AGES),
        started=column(st.integers(0, 80).map(float)),
        stopped=column(st.integers(0, 30).map(float)),
        migrated=column(st.integers(0, 12).map(float)),
        breaker_open=column(RARELY),
        frozen=column(RARELY),
        scaling_in_flight=column(RARELY),
        pricing_in_flight=column(RARELY),
        tier=column(st.sampled_from([SENT, SENT, ASKED, REHEARSED])),
    )


VALUES = st.one_of(
    st.floats(-20, 70), st.integers(0, 20).map(float), st.sampled_from([np.nan, np.inf, -np.inf])
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, PoolBatch, EnvelopeState, np.ndarray]:
    rows = draw(st.integers(1, 4))
    wish = draw(st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=rows, max_size=rows))
    strange = draw(st.lists(RARELY, min_size=rows, max_size=rows))
    return np.array(wish), draw(pools(rows)), draw(pasts(rows)), np.array(strange)


Case = tuple[np.ndarray, PoolBatch, EnvelopeState, np.ndarray]


def act(case: Case) -> np.ndarray:
    wish, pool, past, strange = case
    return apply_envelope(wish, pool, past, CONFIG, strange).action


@settings(max_examples=100)
@given(cases())
def test_each_value_lies_between_the_present_and_the_wish_or_the_rule(case: Case):
    wish, pool, _, _ = case
    action = act(case)
    assert np.isfinite(action).all()
    ends = [pool.present, np.where(np.isfinite(wish), wish, pool.present), pool.rule]
    assert (action >= np.minimum.reduce(ends) - 1e-6).all()
    assert (action <= np.maximum.reduce(ends) + 1e-6).all()


@settings(max_examples=100)
@given(cases())
def test_what_may_be_done_may_be_done_when_it_is_wished_for(case: Case):
    _, pool, past, strange = case
    once = act(case)
    again = act((once, pool, past, np.zeros_like(strange)))
    np.testing.assert_allclose(again, once, atol=1e-9)


@settings(max_examples=100)
@given(cases(), st.sampled_from(["capacity_fresh", "telemetry_fresh", "demand_fresh"]))
def test_a_staler_input_never_takes_a_node_that_a_fresher_one_would_leave(case: Case, name: str):
    wish, pool, past, strange = case
    fresh = dataclasses.replace(pool, **{name: np.ones_like(pool.capacity_fresh)})
    stale = dataclasses.replace(pool, **{name: np.zeros_like(pool.capacity_fresh)})
    before = act((wish, fresh, past, strange))[:, NODES]
    after = act((wish, stale, past, strange))[:, NODES]
    assert (after >= np.minimum(before, pool.present[:, NODES])).all()
    assert (after >= pool.present[:, NODES]).all()


@settings(max_examples=100)
@given(cases())
def test_stale_capacity_yields_no_smaller_fleet_than_fresh_where_money_is_no_limit(case: Case):
    wish, pool, past, strange = case
    endless = np.full_like(pool.budget, np.inf)
    free = dataclasses.replace(pool, budget=endless, fleet_budget=endless)
    fresh = dataclasses.replace(free, capacity_fresh=np.ones_like(pool.capacity_fresh))
    stale = dataclasses.replace(free, capacity_fresh=np.zeros_like(pool.capacity_fresh))
    before = act((wish, fresh, past, strange))[:, NODES].sum(axis=1)
    after = act((wish, stale, past, strange))[:, NODES].sum(axis=1)
    assert (after >= before).all()


@settings(max_examples=100)
@given(cases())
def test_no_pool_is_emptied_or_taken_below_its_least(case: Case):
    _, pool, _, _ = case
    action, total = act(case)[:, NODES], pool.present[:, NODES].sum(axis=1)
    assert (action.sum(axis=1)[total > 0] > 0).all()
    least = np.minimum(pool.low, pool.present)[:, NODES]
    assert (action >= least).all()


def unhindered(case: Case) -> Case:
    """Return the case with everything fresh, idle and rested, so that few guards are in the way."""
    wish, pool, _, strange = case
    yes = np.ones_like(pool.demand_fresh)
    free = dataclasses.replace(
        pool,
        capacity_fresh=yes,
        demand_fresh=yes,
        telemetry_fresh=yes,
        gpus_allocated=np.zeros_like(pool.gpus_allocated),
    )
    return wish, free, envelope_state(len(pool.pools)), strange


@settings(max_examples=100)
@given(cases().map(unhindered))
def test_nothing_leaves_its_bounds(case: Case):
    _, pool, _, _ = case
    action = act(case)
    assert (action >= np.minimum(pool.low, pool.present) - 1e-6).all()
    assert (action <= np.maximum(pool.high, pool.present) + 1e-6).all()


@settings(max_examples=200)
@given(st.one_of(cases(), cases().map(unhindered)))
def test_growth_never_breaks_a_ceiling_or_a_budget(case: Case):
    _, pool, _, _ = case
    nodes, present = act(case)[:, NODES], pool.present[:, NODES]
    cost = np.where(np.isfinite(pool.node_cost), pool.node_cost, 0.0)
    spend, spent = (nodes * cost).sum(axis=1), (present * cost).sum(axis=1)
    grew = nodes.sum(axis=1) > present.sum(axis=1)
    assert (nodes.sum(axis=1)[grew] <= pool.nodes_max[grew]).all()
    dearer = spend > spent + 1e-9
    assert (spend[dearer] <= pool.budget[dearer] + 1e-6).all()
    for fleet in np.unique(pool.fleet):
        rows = pool.fleet == fleet
        if spend[rows].sum() > spent[rows].sum() + 1e-9:
            assert spend[rows].sum() <= pool.fleet_budget[rows][0] + 1e-6


@settings(max_examples=100)
@given(cases())
def test_budgets_of_the_window_are_kept(case: Case):
    _, pool, past, _ = case
    action, present = act(case), pool.present[:, NODES]
    stops = np.maximum(present - action[:, NODES], 0.0).sum(axis=1)
    starts = np.maximum(action[:, NODES] - present, 0.0).sum(axis=1)
    total = present.sum(axis=1)
    assert (stops <= np.maximum(0.0, stop_budget(total, CONFIG) - past.stopped)).all()
    assert (starts <= np.maximum(0.0, np.maximum(1.0, pool.nodes_max) - past.started)).all()
    moved_out = past.migrated >= migration_budget(pool.running_jobs, CONFIG)
    assert (action[moved_out, MIGRATION] == 0.0).all()


@settings(max_examples=100)
@given(cases())
def test_steps_keep_to_the_delta_limits(case: Case):
    _, pool, _, _ = case
    assert (np.abs(act(case) - pool.present) <= pool.delta + 1e-6).all()


@settings(max_examples=100)
@given(cases())
def test_a_row_does_not_depend_on_rows_of_other_fleets(case: Case):
    wish, pool, past, strange = case
    alone = dataclasses.replace(pool, fleet=np.arange(len(pool.pools)))
    together = act((wish, alone, past, strange))
    for row in range(len(pool.pools)):
        one = {
            field.name: getattr(alone, field.name)[row : row + 1]
            for field in dataclasses.fields(alone)
        }
        one["fleet"] = np.zeros(1, np.int64)
        own_past = EnvelopeState(
            **{f.name: getattr(past, f.name)[row : row + 1] for f in dataclasses.fields(past)}
        )
        single = act((wish[row : row + 1], PoolBatch(**one), own_past, strange[row : row + 1]))
        np.testing.assert_array_equal(single[0], together[row])


@settings(max_examples=100)
@given(cases())
def test_every_changed_value_has_a_reason(case: Case):
    wish, pool, past, strange = case
    executed = apply_envelope(wish, pool, past, CONFIG, strange)
    for row, notes in enumerate(executed.adjustments):
        for column in range(4):
            same = abs(executed.action[row, column] - wish[row, column]) <= 1e-4
            named = any(one.dimension == ("on_demand_nodes", "spot_nodes", "migration", "price")
                        [column] for one in notes)  # fmt: skip
            assert same or named
        assert all(np.isfinite([one.before, one.after]).all() for one in notes)
    assert PRICE == 3
