"""Exchanging nodes of one billing for the other: both halves happen, or neither."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import batch, envelope_state
from gpuloop.actuators.envelope import NODES, EnvelopeConfig, apply_envelope

CONFIG = EnvelopeConfig()
UNKNOWN = float("inf")


def nodes(wish: list[float], **columns) -> list[float]:
    pool = batch(**columns)
    executed = apply_envelope(np.array([[*wish, 0.0, 4.0]]), pool, envelope_state(), CONFIG)
    return executed.action[0, NODES].tolist()


def test_an_exchange_that_every_guard_lets_pass_is_done():
    assert nodes([13.0, 11.0]) == [13.0, 11.0]


@pytest.mark.parametrize(
    "columns",
    [
        {"node_cost": [[29.0, UNKNOWN]]},
        {"budget": [400.0]},
        {"fleet_budget": [400.0]},
        {"high": [[48.0, 8.0, 1.0, 20.0]]},
    ],
)
def test_an_exchange_whose_growth_is_cut_gives_nothing_up(columns: dict):
    assert nodes([13.0, 11.0], **columns) == [16.0, 8.0]


def test_what_the_wish_as_a_whole_gives_up_still_goes():
    assert nodes([12.0, 10.0], node_cost=[[29.0, UNKNOWN]]) == [14.0, 8.0]


@pytest.mark.parametrize("wish", [[0.0, 1.0], [0.0, 0.9]])
def test_half_an_exchange_never_empties_a_pool(wish: list[float]):
    bare = {"present": [[1.0, 0.0, 0.0, 4.0]], "low": [[0.0, 0.0, 0.0, 2.0]], "nodes_min": [0.0]}
    assert nodes(wish, gpus_allocated=[0.0], node_cost=[[29.0, UNKNOWN]], **bare) == [1.0, 0.0]


def test_the_saving_of_an_exchange_that_is_called_off_is_not_spent_by_another_pool():
    spent = 2 * (16 * 29.0 + 8 * 12.0)
    wish = np.array([[13.0, 11.0, 0.0, 4.0], [16.0, 12.0, 0.0, 4.0]])
    for cut in (
        {"budget": [spent / 2 - 80.0, np.inf]},
        {"high": [[48.0, 8.0, 1.0, 8.0], [48.0, 48.0, 1.0, 8.0]]},
    ):
        two = batch(2, fleet_budget=[spent + 13.0] * 2, **cut)
        action = apply_envelope(wish, two, envelope_state(2), CONFIG).action[:, NODES]
        assert action.tolist() == [[16.0, 8.0], [16.0, 9.0]]


@settings(max_examples=150)
@given(
    st.tuples(st.floats(0, 40), st.floats(0, 40)),
    st.tuples(st.integers(0, 24), st.integers(0, 24)),
    st.sampled_from([12.0, UNKNOWN]),
    st.sampled_from([0.0, 300.0, np.inf]),
)
@example((0.0, 1.0), (1, 0), UNKNOWN, np.inf)
def test_no_pool_ends_with_fewer_nodes_than_it_had_and_than_were_asked_for(
    wish: tuple[float, float], present: tuple[int, int], spot_cost: float, budget: float
):
    pool = dataclasses.replace(
        batch(present=[[*map(float, present), 0.0, 4.0]], low=[[0.0, 0.0, 0.0, 2.0]]),
        nodes_min=np.zeros(1),
        gpus_allocated=np.zeros(1),
        node_cost=np.array([[29.0, spot_cost]]),
        budget=np.array([budget]),
    )
    executed = apply_envelope(np.array([[*wish, 0.0, 4.0]]), pool, envelope_state(), CONFIG)
    asked = min(sum(wish), sum(present))
    assert executed.action[0, NODES].sum() > asked - 1.0
