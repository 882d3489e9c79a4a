"""The decider: when it decides, what it sends, and what it only shows."""

from builders import FLEET, START_US, at, control, offer, pool_state, received
from decider_loop import Loop, commands, decisions, proposals, replace
from gpuloop.loop.decide.release import SHOWN_AGAIN_US
from gpuloop.schemas.component import Tick
from gpuloop.schemas.messages import Approval
from gpuloop.schemas.messages.actions import PriceTo, ScaleTo
from gpuloop.schemas.messages.control import (
    BreakerReset,
    Claim,
    Freeze,
    Kill,
    KillLease,
    Objectives,
    SetMode,
)
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES
from gpuloop.schemas.units import INT64_MAX, MINUTE_US

CALM = pool_state(allocated=190)
HUNGRY = pool_state(allocated=192, queued=16)


def ready(mode: str = "auto", **settings) -> Loop:
    """Return a loop whose first decision, on a calm pool, lies behind it."""
    loop = Loop(mode=mode, **settings)
    loop.minute(CALM)
    loop.minute(CALM)
    assert decisions(loop.outputs)
    return loop


def test_it_decides_only_once_its_claim_has_been_read_back():
    loop = Loop(own=False)
    assert loop.minute(HUNGRY) != []
    assert decisions(loop.outputs) == []
    loop.minute(HUNGRY)
    loop.minute(HUNGRY)
    assert {one.epoch for one in decisions(loop.outputs)} == {1}


def test_a_burst_leads_to_a_recorded_decision_and_then_a_command():
    loop = ready()
    outputs = loop.minute(HUNGRY)
    assert [one.topic for one in outputs] == ["decisions", "actions.scaling"]
    (decision,), (command,) = decisions(outputs), commands(outputs)
    assert command.to == ScaleTo(on_demand_nodes=16, spot_nodes=10)
    assert command.decision_id == decision.decision_id
    assert decision.command_ids == (command.command_id,)
    assert decision.executed_action[:2] == (16.0, 10.0)
    assert decision.summary.startswith("a100: 8 -> 10 spot nodes (+16 GPUs, +24.00 USD/h)")
    assert "queue 16 GPUs" in decision.summary
    assert command.expires_at_us - command.issued_at_us == 10 * MINUTE_US


def test_a_decision_holds_everything_needed_to_judge_it():
    loop = ready()
    (decision,) = decisions(loop.minute(HUNGRY))
    assert decision.dimensions == DIMENSIONS
    vectors = (decision.observation, decision.feature_ages_us, decision.feature_quality)
    assert {len(one) for one in vectors} == {len(FEATURE_NAMES)}
    for row in range(4):
        wish = decision.rule_action[row] + decision.joint_action[row] * decision.delta_limit[row]
        assert wish == decision.rule_action[row]
    assert decision.policy_id == decision.arm == "rule"
    assert decision.log_probability == 0.0
    assert decision.influences[0].feature == "allocated_ratio"
    assert decision.why_not != ""


def test_a_pool_that_needs_nothing_gets_a_decision_and_no_command():
    outputs = ready().minute(CALM)
    assert [one.topic for one in outputs] == ["decisions"]
    assert decisions(outputs)[0].summary == "a100: no change"


def test_all_pools_are_decided_together_once_the_last_has_reported():
    loop = Loop()
    other = replace(CALM, pool="h100")
    loop.minute(CALM, other)
    loop.minute(CALM, other)
    loop.now_us += MINUTE_US
    first = loop.send(received("state.pools", replace(CALM, tick_us=loop.now_us)))
    both = loop.send(received("state.pools", replace(other, tick_us=loop.now_us)))
    assert first == []
    assert [one.pool for one in decisions(both)] == ["a100", "h100"]


def test_a_missing_pool_is_decided_for_a_tick_later_and_held():
    loop = Loop()
    other = replace(CALM, pool="h100")
    loop.minute(CALM, other)
    loop.minute(CALM, other)
    idle = replace(CALM, gpus_allocated=20, running_jobs=2)
    late = [decisions(loop.minute(idle)) for _ in range(9)]
    assert late[0] == []
    assert all([one.pool for one in made] == ["a100", "h100"] for made in late[1:])
    held = late[-1][1]
    assert held.executed_action[:2] == (16.0, 8.0)
    assert "allocated_ratio" in held.stale_inputs


def test_shadow_shows_what_it_would_do_once_and_does_nothing():
    loop = ready("shadow")
    outputs = loop.minute(HUNGRY)
    assert [one.state for one in proposals(outputs)] == ["shadow"]
    assert decisions(outputs)[0].executed_action[:2] == (16.0, 8.0)
    assert {one.stage for one in decisions(outputs)[0].adjustments} == {"mode"}
    for _ in range(5):
        assert proposals(loop.minute(HUNGRY)) == []
    assert commands(loop.outputs) == []
    assert SHOWN_AGAIN_US > 5 * MINUTE_US


def test_shadow_starts_no_real_cooldown_and_off_shows_nothing():
    loop = ready("shadow")
    loop.minute(HUNGRY)
    memory = loop.state.pools["a100"]
    assert len(memory.virtual) == 1
    assert memory.changes == []
    off = ready("off")
    assert proposals(off.minute(HUNGRY)) == []


def awaiting(loop: Loop):
    (proposal,) = proposals(loop.minute(HUNGRY))
    assert proposal.state == "awaiting"
    return proposal


def approve(loop: Loop, proposal, **changes):
    approval = Approval(
        fleet=FLEET,
        command_id=proposal.command.command_id,
        digest=proposal.command.digest,
        approve=True,
        by="ann",
    )
    return loop.send(received("approvals", replace(approval, **changes)))


def test_an_advised_command_waits_is_approved_and_is_released():
    loop = ready("advise")
    proposal = awaiting(loop)
    assert proposals(loop.minute(HUNGRY)) == []
    loop.now_us += 30 * MINUTE_US
    loop.send(received("state.pools", replace(HUNGRY, tick_us=loop.now_us)))
    outputs = approve(loop, proposal)
    assert [one.topic for one in outputs] == ["proposals", "actions.scaling"]
    (command,) = commands(outputs)
    assert command.mode == "auto"
    assert command.digest == proposal.command.digest
    assert command.issued_at_us == loop.now_us
    assert approve(loop, proposal) == []


def test_an_approval_of_something_else_releases_nothing():
    loop = ready("advise")
    proposal = awaiting(loop)
    assert approve(loop, proposal, digest="0" * 64) == []
    assert approve(loop, proposal, command_id="0" * 64) == []


def test_a_veto_ends_a_proposal():
    loop = ready("advise")
    proposal = awaiting(loop)
    assert [one.state for one in proposals(approve(loop, proposal, approve=False))] == ["vetoed"]
    assert approve(loop, proposal) == []


def test_an_approval_that_comes_too_late_by_the_wall_clock_releases_nothing():
    loop = ready("advise")
    proposal = awaiting(loop)
    loop.wall_us += 10 * MINUTE_US
    outputs = approve(loop, proposal)
    assert [one.state for one in proposals(outputs)] == ["lapsed"]
    assert commands(outputs) == []


def test_an_approval_of_an_old_view_releases_nothing():
    loop = ready("advise")
    proposal = awaiting(loop)
    moved = replace(HUNGRY, generations={"scaling": 1})
    outputs = loop.minute(moved)
    assert [one.state for one in proposals(outputs)] == ["stale", "awaiting"]
    assert approve(loop, proposal) == []


def test_an_approval_during_a_kill_releases_nothing():
    loop = ready("advise")
    proposal = awaiting(loop)
    loop.send(control(Kill(engaged=True)))
    outputs = approve(loop, proposal)
    assert [one.state for one in proposals(outputs)] == ["stale"]
    assert commands(outputs) == []


def test_nothing_is_sent_while_a_command_is_under_way_or_its_effect_is_not_seen():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    assert commands(loop.minute(replace(HUNGRY, gpus_allocated=300))) == []
    loop.answer(command, "applied")
    assert commands(loop.minute(replace(HUNGRY, gpus_allocated=300))) == []
    seen = replace(HUNGRY, gpus_allocated=300, generations={"scaling": 1})
    (following,) = commands(loop.minute(seen))
    assert following.before == command.to
    assert following.generation == 1


def test_a_refused_command_gives_its_budget_back_and_may_be_tried_again():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "rejected", "stale_generation")
    assert loop.state.pools["a100"].changes == []
    assert len(commands(loop.minute(HUNGRY))) == 1


def test_a_duplicate_report_settles_nothing():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "rejected", "duplicate")
    assert commands(loop.minute(HUNGRY)) == []


def test_a_billing_without_capacity_is_left_alone_for_a_while():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "failed", "no_capacity")
    (other,) = commands(loop.minute(HUNGRY))
    assert other.to == ScaleTo(on_demand_nodes=18, spot_nodes=8)


def test_repeated_failures_open_a_breaker_that_a_person_closes():
    loop = ready()
    for _ in range(5):
        (command,) = commands(loop.minute(HUNGRY))
        loop.answer(command, "failed", "error")
    outputs = loop.minute(HUNGRY)
    assert commands(outputs) == []
    assert "breaker" in {one.stage for one in decisions(outputs)[0].adjustments}
    loop.send(control(BreakerReset(pool="a100")))
    assert len(commands(loop.minute(HUNGRY))) == 1


def test_a_kill_stops_commands_but_not_decisions_and_a_clearing_takes_a_new_epoch():
    loop = ready()
    loop.send(control(Kill(engaged=True)))
    outputs = loop.minute(HUNGRY)
    assert commands(outputs) == []
    assert decisions(outputs)[0].executed_action[:2] == (16.0, 8.0)
    assert "kill" in decisions(outputs)[0].adjustments[-1].reason
    loop.send(control(Kill(engaged=False)))
    (command,) = commands(loop.minute(HUNGRY))
    assert command.epoch == 2


def test_nothing_is_sent_when_the_lease_has_lapsed():
    loop = ready()
    loop.state.governance.lease_expires_wall_us = 0
    loop.send(control(KillLease(expires_wall_us=loop.wall_us)))
    loop.keeper_lives = False
    assert commands(loop.minute(HUNGRY)) == []


def test_a_lease_without_end_holds_for_a_minute_and_is_counted():
    loop = ready()
    loop.send(control(KillLease(expires_wall_us=INT64_MAX)))
    loop.keeper_lives = False
    loop.wall_us += MINUTE_US - 2_000_000
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "rejected", "stale_generation")
    assert commands(loop.minute(HUNGRY)) == []
    assert loop.state.governance.leases_cut == 1


def test_a_higher_claim_ends_this_decider_for_good():
    loop = ready()
    loop.send(control(Claim(owner="another", epoch=2)))
    assert loop.minute(HUNGRY) == []
    loop.send(control(Kill(engaged=True)))
    loop.send(control(Kill(engaged=False)))
    assert loop.minute(HUNGRY) == []


def test_a_claim_above_those_that_were_there_before():
    loop = Loop(own=False)
    state, (first,) = loop.decider.step(loop.state, Tick(tick_us=START_US), _now(loop))
    assert first.message.body == Claim(owner="decider", epoch=1)
    loop.state = state
    (second,) = loop.send(control(Claim(owner="decider", epoch=7)))
    assert second.message.body.epoch == 8
    assert loop.state.governance.owns
    assert not loop.send(control(Claim(owner="decider", epoch=7)))
    assert loop.state.governance.owns


def test_of_two_equal_claims_the_one_earlier_in_the_log_holds():
    loop = Loop(own=False)
    loop.state, _ = loop.decider.step(loop.state, Tick(tick_us=START_US), _now(loop))
    state, outputs = loop.decider.step(
        loop.state, control(Claim(owner="another", epoch=1)), _now(loop)
    )
    assert outputs[0].message.body.epoch == 2
    state, _ = loop.decider.step(state, control(Claim(owner="decider", epoch=1)), _now(loop))
    assert not state.governance.owns


def _now(loop: Loop):
    return at(loop.now_us, loop.wall_us)


def test_a_freeze_holds_a_pool_and_ends_by_itself():
    loop = ready()
    loop.send(control(Freeze(target="a100", until_us=loop.now_us + 3 * MINUTE_US)))
    assert commands(loop.minute(HUNGRY)) == []
    loop.minute(HUNGRY)
    assert len(commands(loop.minute(HUNGRY))) == 1


def test_objectives_bound_what_may_be_rented():
    loop = ready()
    loop.send(control(Objectives(pool="*", nodes_max=25)))
    (command,) = commands(loop.minute(HUNGRY))
    assert command.to == ScaleTo(on_demand_nodes=16, spot_nodes=9)


def test_a_budget_for_every_pool_is_the_budget_of_the_fleet():
    loop = ready()
    spent = 16 * 29_000_000 + 8 * 12_000_000
    loop.send(control(Objectives(pool="*", usd_micros_per_hour_max=spent + 12_000_000)))
    (command,) = commands(loop.minute(HUNGRY))
    assert command.to == ScaleTo(on_demand_nodes=16, spot_nodes=9)


def test_prices_follow_a_market_move_in_steps_at_epochs_only():
    loop = ready()
    loop.send(received("market.offers", offer("on_demand", 6.0, at_us=loop.now_us)))
    made = [command for _ in range(40) for command in commands(loop.minute(CALM))]
    quotes = [one for one in made if one.actuator == "pricing"]
    assert [one.issued_at_us // MINUTE_US % 15 for one in quotes] == [0] * len(quotes)
    assert quotes[0].to == PriceTo(usd_micros_per_gpu_hour=5_040_000)


def test_pricing_is_off_and_the_rest_in_shadow_until_a_person_grants_more():
    loop = Loop(own=False)
    loop.state.governance.modes.clear()
    loop.tick()
    loop.minute(CALM)
    loop.minute(CALM)
    assert decisions(loop.outputs)[-1].modes == {
        "scaling": "shadow", "pricing": "off", "migration": "shadow",
    }  # fmt: skip
    loop.send(control(SetMode(pool="a100", actuator="scaling", mode="auto")))
    loop.send(control(SetMode(pool="*", actuator="scaling", mode="off")))
    assert len(commands(loop.minute(HUNGRY))) == 1


def test_a_restart_from_a_snapshot_decides_what_would_have_been_decided():
    def run(restart: bool) -> list:
        loop = ready()
        for index in range(30):
            loop.minute(replace(HUNGRY, gpus_allocated=150 + 3 * index, arrived_gpus=index))
            if restart and index % 4 == 0:
                loop.restart()
        return loop.outputs

    assert run(restart=True) == run(restart=False)


def test_missing_telemetry_never_shrinks_a_pool():
    idle = replace(CALM, gpus_allocated=20, running_jobs=2)
    for change in ({"nodes_heard": 3}, {"shards_reported": 3}, {"capacity_age_us": 360_000_000}):
        loop = ready()
        made = [one for _ in range(30) for one in commands(loop.minute(replace(idle, **change)))]
        assert not [one for one in made if one.actuator == "scaling"]
    loop = ready()
    made = [one for _ in range(30) for one in commands(loop.minute(idle))]
    assert [one for one in made if one.actuator == "scaling"]
