"""What the decider's process says of what it passes over."""

from typing import Any

import pytest

from builders import START_US, at
from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.governance import follow
from gpuloop.loop.decide.state import DeciderState, drop
from gpuloop.loop.services import metrics
from gpuloop.loop.services.decider import DeciderWatcher, build
from gpuloop.loop.services.health import Health
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.fold import Executed
from gpuloop.loop.shells.journal import Saved
from gpuloop.schemas.messages.control import Claim, PolicyStage
from gpuloop.schemas.units import MINUTE_US

PAST = "pools from the past"


class Told:
    """A watcher, and the state that it is shown."""

    def __init__(self) -> None:
        self.health = Health("decider")
        self.watcher = DeciderWatcher("decider", self.health)
        self.state: DeciderState = Decider("local").initial()
        self.state.governance.owns = True

    def saved(self) -> Saved[Any]:
        return Saved(state=self.state, number=1, now_us=0, wall_us=0, positions={},
                     journal_offset=0)  # fmt: skip

    def cut(self) -> None:
        done = Executed(state=self.state, outputs=(), refused=())
        self.watcher.cut([], done, self.saved(), skipped=0, took_us=1)

    def counted(self, reason: str) -> float:
        labels = {"component": "decider", "reason": reason}
        return metrics.REGISTRY.get_sample_value("gpuloop_dropped_total", labels) or 0.0


def test_a_decider_that_hears_of_the_past_only_is_not_ready_and_says_why() -> None:
    told = Told()
    told.state.behind_us = 600 * MINUTE_US
    told.cut()
    assert not told.health.report().ready
    assert "600 minutes" in told.health.report().detail
    told.watcher.idle(0)
    assert not told.health.report().ready
    told.state.behind_us = 0
    told.cut()
    told.watcher.idle(0)
    assert told.health.report().ready


def test_a_decider_that_was_deposed_is_not_ready_and_says_why() -> None:
    told = Told()
    told.cut()
    assert told.health.report().ready
    assert metrics.REGISTRY.get_sample_value("gpuloop_owns_fleet") == 1.0
    follow_a_rival(told.state)
    told.cut()
    told.watcher.idle(0)
    assert not told.health.report().ready
    assert "another decider has claimed the fleet under epoch 7" in told.health.report().detail
    assert metrics.REGISTRY.get_sample_value("gpuloop_owns_fleet") == 0.0


def follow_a_rival(state: DeciderState) -> None:
    state.governance.epoch = state.governance.highest_epoch = 6
    follow(state.governance, "decider", Claim(owner="another", epoch=7), at(START_US))


def test_a_decider_whose_claim_is_not_read_back_yet_is_not_ready() -> None:
    told = Told()
    told.state.governance.owns = False
    told.cut()
    assert not told.health.report().ready
    assert "not read back" in told.health.report().detail


def test_no_decision_so_far_is_a_count_of_none_and_not_an_unknown_one() -> None:
    name = "decider-that-has-just-begun"
    DeciderWatcher(name, Health(name))
    labels = {"component": name, "topic": "decisions"}
    assert metrics.REGISTRY.get_sample_value("gpuloop_outputs_total", labels) == 0.0


def test_what_is_passed_over_is_counted_once_and_logged_when_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    drop(told.state, PAST)
    told.watcher.resumed(told.saved(), followed=0, disagreed=0, expired=0)
    before = told.counted(PAST)
    for _ in range(3):
        drop(told.state, PAST)
        drop(told.state, PAST)
        told.cut()
    assert told.counted(PAST) - before == 6
    lines = [one for one in caplog.records if one.getMessage() == "passed over"]
    assert [(one.reason, one.count) for one in lines] == [(PAST, 2)]  # type: ignore[attr-defined]


def test_a_lease_that_was_cut_short_is_said(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    told.state.governance.leases_cut = 1
    told.cut()
    assert [one.reason for one in caplog.records] == ["leases cut short"]  # type: ignore[attr-defined]


def test_a_policy_that_should_act_and_is_not_there_is_named_and_counted() -> None:
    told = Told()
    stage = PolicyStage(pool="*", policy_id="sac-1", stage="champion", alpha=0.5)
    follow(told.state.governance, "decider", stage, at(START_US))
    told.state.library.refused["unavailable"] = 2
    before = told.counted("policies unavailable")
    told.cut()
    assert told.health.report().ready
    assert told.health.report().detail == "the rule stands in for sac-1, which is not here"
    assert told.counted("policies unavailable") - before == 2


def test_prices_are_learned_only_where_the_settings_say_so() -> None:
    assert build(Settings()).mind.pricing is None
    learned = build(Settings(pricing="learned", seed=7)).mind.pricing
    assert learned is not None
    assert learned.seed == 7
