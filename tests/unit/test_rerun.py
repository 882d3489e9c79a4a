"""The report's re-runs stand for what ran: the same hours where they can be, who acted when."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from builders import START_US, batch
from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.loop.services.twin import twin_config
from gpuloop.loop.settings import Settings
from gpuloop.ops.stack import rerun
from gpuloop.ops.stack.rerun import Policy, Rerun, offsets_as_acted, window
from gpuloop.ops.stack.tally import Acted, Tally
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from learning_builders import decision
from policy_builders import version, weights

D, K = len(FEATURE_NAMES), len(DIMENSIONS)


def asked(from_us: int, until_us: int, **changes) -> Rerun:
    environment = Settings(workload="generator").environment()
    plain = Rerun(
        environment=environment, from_us=from_us, until_us=until_us, acted={}, policies={}
    )
    return msgspec.structs.replace(plain, **changes)


def pushing(name: str, towards: float) -> Policy:
    """Return a policy that wishes for the same of every pool, whatever it sees."""
    data = weights(bias=towards)
    return Policy(version=version(data, policy_id=name), weights=data)


def test_rerun_in_parts_with_its_progress_told_earns_what_it_earns_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, until = START_US + 10 * MINUTE_US, START_US + 50 * MINUTE_US
    shares: list[float] = [0.0]
    monkeypatch.setattr(rerun, "_shares", [shares])
    settings = Settings(workload="generator")
    fleet = FleetSimulation(twin_config(settings), traces=None, workload="generator")
    at_once = -fleet.run(begin).usd + fleet.run(until).usd
    earned = rerun._earn(asked(begin, until), 0)
    assert earned.usd == pytest.approx(at_once, abs=1e-9)
    assert (earned.from_us, earned.until_us) == (begin, until)
    assert 0.5 < shares[0] < 1.0


@pytest.mark.parametrize("began_us", [START_US - 960 * HOUR_US, START_US + 3 * HOUR_US])
def test_hours_that_cannot_be_reached_again_stand_at_the_worlds_beginning(began_us: int) -> None:
    lived = asked(START_US, START_US + HOUR_US)
    assert window(lived, began_us) == (began_us, began_us + HOUR_US)


def test_hours_of_the_worlds_first_day_are_compared_as_they_were() -> None:
    lived = asked(START_US, START_US + HOUR_US)
    assert window(lived, START_US - 20 * HOUR_US) == (START_US, START_US + HOUR_US)


def test_each_pool_is_moved_by_who_acted_on_it_at_that_tick() -> None:
    def acted(at: int, who: str, alpha: float) -> Acted:
        return Acted(from_us=at, policy_id=who, alpha=alpha)

    offsets = offsets_as_acted(
        asked(
            0,
            1,
            acted={
                "pool0": [acted(0, "up", 0.5), acted(2 * MINUTE_US, "rule", 0.0)],
                "pool1": [acted(0, "rule", 0.0), acted(2 * MINUTE_US, "down", 0.25)],
            },
            policies={"up": pushing("up", 10.0), "down": pushing("down", -10.0)},
        )
    )
    seen = batch(3)
    moved = []
    for minute in (1, 2):
        at = np.full(3, minute * MINUTE_US)
        moved.append(
            offsets(replace(seen, tick_us=at, observation=np.zeros((3, D))))[:, 0].tolist()
        )
    assert moved == [[0.5, 0.0, 0.0], [0.0, -0.25, 0.0]]


def test_what_a_fault_called_for_does_not_pass_for_the_pools_policy() -> None:
    tally = Tally()
    champion = msgspec.structs.replace(decision(5, pool="h100"), alpha=0.5, policy_id="sac-1")
    tally.take(champion, 0)
    reflex = msgspec.structs.replace(decision(6, pool="h100", level="node"), alpha=0.0)
    tally.take(reflex, 0)
    assert tally.decisions == 2
    assert tally.alpha == {"h100": 0.5}
    assert [(one.policy_id, one.alpha) for one in tally.acted["h100"]] == [("sac-1", 0.5)]


def test_nobody_moves_a_pool_that_is_out_of_the_policys_range() -> None:
    acted = [Acted(from_us=0, policy_id="up", alpha=0.5)]
    offsets = offsets_as_acted(
        asked(0, 1, acted={"pool0": acted, "pool1": acted}, policies={"up": pushing("up", 10.0)})
    )
    seen = batch(2)
    observation = np.zeros((2, D))
    observation[1, 3] = 1e3
    assert offsets(replace(seen, observation=observation)).any(axis=1).tolist() == [True, False]
