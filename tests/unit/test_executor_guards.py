"""The executor's guards, one by one."""

from typing import Any

import msgspec
import pytest

from builders import job_state
from gpuloop.actuators import executor
from gpuloop.actuators.commands import Origin, Tariff, migrate, price, release, scale
from gpuloop.actuators.executor import ExecutorState
from gpuloop.schemas.fleet import Refused, Target
from gpuloop.schemas.messages import Command, Control
from gpuloop.schemas.messages.actions import Actuator, DesiredState, PriceTo, ScaleTo
from gpuloop.schemas.messages.control import LONGEST_LEASE_US, Claim, Kill, KillLease
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US, SECOND_US

NOW_US = 10 * HOUR_US
WALL_US = 1_000


class OnePool:
    """A fleet of one pool that remembers what was done to it."""

    name = "test"

    def __init__(self, refusal: Refused | None = None) -> None:
        self.target = Target("p", ScaleTo(on_demand_nodes=10, spot_nodes=0), 3)
        self.refusal = refusal

    def read(self, actuator: Actuator, target: str) -> Target | None:
        return self.target if target == "p" else None

    def apply(self, actuator: Actuator, target: str, to: DesiredState, now_us: int) -> Target:
        if self.refusal is not None:
            raise self.refusal
        self.target = Target("p", to, self.target.generation + 1)
        return self.target


def command(nodes: int = 12, generation: int = 3, epoch: int = 1, pool: str = "p") -> Command:
    origin = Origin(
        fleet="test", decision_id=f"d{nodes}/{epoch}", pool=pool, epoch=epoch, now_us=NOW_US
    )
    return scale(
        origin,
        before=ScaleTo(on_demand_nodes=10, spot_nodes=0),
        to=ScaleTo(on_demand_nodes=nodes, spot_nodes=0),
        generation=generation,
        tariff=Tariff(gpus_per_node=8, on_demand_usd_per_hour=30.0, spot_usd_per_hour=10.0),
        mode="auto",
        reason="queue",
    )


def live(**changes: Any) -> ExecutorState:
    return ExecutorState(epoch=1, lease_expires_wall_us=2 * WALL_US, **changes)


def run(one: Command, state: ExecutorState | None = None, fleet: OnePool | None = None,
        now_us: int = NOW_US, wall_us: int = WALL_US) -> list[tuple[str, str]]:  # fmt: skip
    state = live() if state is None else state
    outcomes = executor.handle(state, one, fleet or OnePool(), now_us, wall_us)
    return [(outcome.status, outcome.reason) for outcome in outcomes]


def test_a_good_command_is_accepted_then_applied():
    fleet = OnePool()
    assert run(command(), fleet=fleet) == [("accepted", "ok"), ("applied", "ok")]
    assert fleet.target == Target("p", ScaleTo(on_demand_nodes=12, spot_nodes=0), 4)


def test_a_second_delivery_is_named_and_changes_nothing():
    state, fleet = live(), OnePool()
    run(command(), state, fleet)
    assert run(command(), state, fleet) == [("rejected", "duplicate")]
    assert fleet.target.generation == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fleet": "other"}, "wrong_fleet"),
        ({"mode": "shadow"}, "unsupported"),
        ({"mode": "advise"}, "unsupported"),
        ({"target": "q"}, "inconsistent"),
        ({"to": ScaleTo(on_demand_nodes=99, spot_nodes=0)}, "inconsistent"),
        ({"to": PriceTo(usd_micros_per_gpu_hour=1)}, "inconsistent"),
        ({"generation": 4}, "inconsistent"),
        ({"pool": "q"}, "inconsistent"),
        ({"expires_at_us": NOW_US + 3 * HOUR_US}, "inconsistent"),
    ],
)
def test_a_command_that_is_not_what_it_was_made_as_is_refused(change: dict, reason: str):
    fleet = OnePool()
    assert run(msgspec.structs.replace(command(), **change), fleet=fleet) == [("rejected", reason)]
    assert fleet.target.generation == 3


def test_an_empty_plan_is_refused():
    assert run(command(nodes=0)) == [("rejected", "out_of_bounds")]


def test_an_old_view_of_the_target_is_refused():
    assert run(command(generation=2)) == [("rejected", "stale_generation")]


def test_an_old_decider_is_refused_once_another_has_claimed():
    state = live()
    executor.control(state, Control(fleet="test", by="b", body=Claim(owner="b", epoch=2)), WALL_US)
    assert run(command(epoch=1), state) == [("rejected", "stale_epoch")]
    assert run(command(epoch=2), state)[-1] == ("applied", "ok")


def test_an_expired_command_never_starts_even_if_the_clock_goes_back():
    state, late = live(), NOW_US + 10 * MINUTE_US
    assert run(command(11), state, now_us=late) == [("expired", "expired")]
    assert run(command(12), state, now_us=NOW_US) == [("expired", "expired")]


def test_a_kill_stops_everything_until_it_is_cleared_and_claimed_anew():
    state = live()
    executor.control(state, Control(fleet="test", by="me", body=Kill(engaged=True)), WALL_US)
    assert run(command(11), state) == [("rejected", "killed")]
    executor.control(state, Control(fleet="test", by="me", body=Kill(engaged=False)), WALL_US)
    assert run(command(12), state) == [("rejected", "killed")]
    assert run(command(13, epoch=2), state)[-1] == ("applied", "ok")


def test_nothing_starts_without_a_living_lease():
    assert run(command(), ExecutorState(epoch=1)) == [("rejected", "killed")]
    assert run(command(), live(), wall_us=2 * WALL_US) == [("rejected", "killed")]
    state = live()
    renew(state, 5 * WALL_US, wall_us=WALL_US)
    assert run(command(), state, wall_us=3 * WALL_US)[-1] == ("applied", "ok")


def renew(state: ExecutorState, until_us: int, *, wall_us: int) -> None:
    renewal = KillLease(expires_wall_us=until_us)
    executor.control(state, Control(fleet="test", by="keeper", body=renewal), wall_us)


def test_no_lease_however_long_keeps_the_switch_from_falling():
    state = ExecutorState(epoch=1)
    renew(state, INT64_MAX, wall_us=WALL_US)
    last_us = WALL_US + LONGEST_LEASE_US
    assert run(command(11), state, wall_us=last_us - 1)[-1] == ("applied", "ok")
    assert run(command(12), state, wall_us=last_us) == [("rejected", "killed")]


def test_a_lease_from_before_leases_were_bounded_ends_with_the_next_renewal():
    state = ExecutorState(epoch=1, lease_expires_wall_us=INT64_MAX)
    renew(state, WALL_US + SECOND_US, wall_us=WALL_US)
    late_us = WALL_US + LONGEST_LEASE_US
    assert run(command(), state, wall_us=late_us) == [("rejected", "killed")]


def test_what_the_fleet_refuses_is_reported_as_failed():
    fleet = OnePool(Refused("no_capacity", "none left"))
    assert run(command(), fleet=fleet) == [("accepted", "ok"), ("failed", "no_capacity")]


def test_an_unknown_target_is_refused():
    assert run(command(pool="q")) == [("rejected", "unknown_target")]


def test_ids_are_forgotten_an_hour_after_they_could_start():
    state = live()
    run(command(11), state)
    run(command(12, generation=4), state, now_us=NOW_US + 69 * MINUTE_US)
    assert command(11).command_id in state.forget_at_us
    run(command(12, generation=4), state, now_us=NOW_US + 70 * MINUTE_US)
    assert not state.forget_at_us


def test_a_full_memory_refuses_rather_than_forgets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor, "MAX_REMEMBERED", 1)
    state, fleet = live(), OnePool()
    run(command(11), state, fleet)
    assert run(command(12, generation=4), state, fleet) == [("rejected", "error")]
    assert state.refused == {"error": 1}


def test_commands_say_what_they_do_in_one_line():
    made = command(12)
    assert made.summary == "p: 10 -> 12 on-demand nodes (+16 GPUs, +60.00 USD/h): queue"
    assert (made.gpus, made.usd_micros_per_hour) == (16, 60_000_000)
    assert made.inverse == made.before == ScaleTo(on_demand_nodes=10, spot_nodes=0)


def test_prices_and_moves_say_what_they_do_in_one_line():
    origin = Origin(fleet="test", decision_id="d", pool="a100", epoch=1, now_us=0)
    quote = price(
        origin,
        before=PriceTo(usd_micros_per_gpu_hour=4_000_000),
        to=PriceTo(usd_micros_per_gpu_hour=4_200_000),
        generation=0,
        mode="auto",
        reason="scarce",
    )
    move = migrate(origin, job=job_state(), avoid=("a100-d001",), mode="auto", reason="XID 79")
    assert quote.summary == "a100: 4.0000 -> 4.2000 USD per GPU-hour (+5.0%): scarce"
    assert move.summary == "a100: move j1 (8 GPUs) off a100-d001: XID 79"
    assert move.inverse is None


def test_an_approved_command_lives_from_its_release_and_keeps_what_was_approved():
    shown = msgspec.structs.replace(command(), mode="advise")
    sent = release(shown, now_us=NOW_US + HOUR_US, by="ann")
    assert (sent.mode, sent.issued_at_us) == ("auto", NOW_US + HOUR_US)
    assert sent.expires_at_us == NOW_US + HOUR_US + 10 * MINUTE_US
    assert (sent.command_id, sent.digest) == (shown.command_id, shown.digest)
    assert "approved by ann" in sent.reason
    assert run(sent, now_us=NOW_US + HOUR_US)[-1] == ("applied", "ok")
