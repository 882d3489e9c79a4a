"""Whatever the decider writes, its readers can read: numbers that are some, and lists that fit."""

import dataclasses
from typing import cast

import numpy as np

from builders import FLEET, at, control, pool_state, received
from decider_loop import Loop, commands, decisions
from gpuloop.loop.decide.deliberate import decide, look
from gpuloop.loop.decide.policies import as_action
from gpuloop.schemas.codec import Record, decode, encode
from gpuloop.schemas.messages import Decision, Fault
from gpuloop.schemas.messages.control import Kill
from gpuloop.schemas.policy import FEATURE_NAMES

CALM = pool_state(allocated=190)


def reread(decision: Decision) -> Decision:
    """Return a decision as those read it who find it on the topic."""
    one = encode("decisions", decision.pool, decision, event_id="x", source="s")
    record = Record(topic=one.topic, partition=0, offset=0, timestamp_ms=0, key=one.key,
                    headers=one.headers, value=one.value)  # fmt: skip
    return cast("Decision", decode(record))


def test_a_pool_whose_market_price_is_not_known_gets_a_decision_that_can_be_read():
    loop = Loop()
    loop.state.offers = {
        key: one for key, one in loop.state.offers.items() if one.billing == "spot"
    }
    loop.minute(CALM)
    (decision,) = decisions(loop.minute(CALM))
    ratio = FEATURE_NAMES.index("market_ratio")
    assert reread(decision) == decision
    assert (decision.observation[ratio], decision.feature_quality[ratio]) == (1.0, 0.0)


def test_a_feature_that_is_no_number_is_seen_as_not_known():
    loop = Loop()
    loop.minute(CALM)
    loop.state.pools["a100"].last_steps = (np.nan, 0.0, 0.0, 0.0)
    (decision,) = decisions(loop.minute(CALM))
    step = FEATURE_NAMES.index("last_on_demand_step")
    assert (decision.observation[step], decision.feature_quality[step]) == (0.0, 0.0)
    assert reread(decision) == decision


def test_no_number_of_a_batch_makes_a_decision_unreadable():
    loop = Loop()
    loop.minute(CALM)
    view = look(loop.decider.mind, loop.state, loop.now_us, at(loop.now_us, loop.wall_us))
    unsure = dataclasses.replace(view.batch, quality=np.full_like(view.batch.quality, np.nan))
    made = decide(loop.decider.mind, loop.state, dataclasses.replace(view, batch=unsure))
    (decision,) = decisions(made)
    assert reread(decision) == decision


def test_a_wish_that_is_no_number_is_written_as_none():
    assert as_action(np.array([np.nan, -0.25, 0.5])) == (0.0, -0.25, 0.5)


def test_more_moves_than_a_decision_can_name_are_left_to_the_next_ones():
    loop = Loop()
    big = pool_state(running_jobs=4000, on_demand=400, spot=100, nodes_max=600, allocated=3900)
    loop.minute(big)
    loop.send(control(Kill(engaged=True)))
    for node in range(38):
        loop.running(*(f"j{node}-{index}" for index in range(8)), node=f"n{node}")
        fault = Fault(fleet=FLEET, node=f"n{node}", pool="a100", kind="lost",
                      event_time_us=loop.now_us, boot=1, seq=node)  # fmt: skip
        loop.send(received("telemetry.faults", fault))
    loop.send(control(Kill(engaged=False)))
    moved: list[str] = []
    for _ in range(3):
        outputs = loop.minute(big)
        (decision,) = decisions(outputs)
        assert reread(decision).command_ids == tuple(one.command_id for one in commands(outputs))
        moved += [one.target for one in commands(outputs)]
    assert len(moved) == len(set(moved)) == 38 * 8
