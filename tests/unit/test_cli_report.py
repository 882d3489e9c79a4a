"""A run's tally and its report say what the topics say, and what the run was not."""

import json

import msgspec

from builders import FLEET, START_US
from gpuloop.ops.stack import report
from gpuloop.ops.stack.report import Audited
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.messages import Reward
from messages_shown import COMMAND, outcome


def test_tally_counts_applied_refused_and_money() -> None:
    tally = Tally()
    for message in (
        COMMAND,
        outcome("accepted", "ok"),
        outcome("applied", "ok"),
        outcome("rejected", "stale_epoch"),
        outcome("expired", "expired"),
        _reward(1_500_000, start=60),
        _reward(-500_000, start=0),
    ):
        tally.take(message, timestamp_ms=0)
    assert (tally.commands, tally.applied) == (1, 1)
    assert dict(tally.refused) == {"stale_epoch": 1, "expired": 1}
    assert tally.reward_total_usd_micros == 1_000_000
    assert (tally.rewarded_from_us, tally.rewarded_until_us) == (0, 120)
    assert len(tally.happened) == tally.happenings == 4


def _reward(micros: int, *, start: int) -> Reward:
    return Reward(
        fleet=FLEET,
        pool="a100",
        decision_id="d",
        start_us=start,
        end_us=start + 60,
        components={"revenue": micros},
        total_usd_micros=micros,
        overlap=0,
        censored=False,
        definition="x",
    )


def reported(tally: Tally, **changes: object) -> report.Report:
    built = report.build(
        tally,
        trace="philly",
        seed=3,
        events=10,
        audited=Audited(records=7, ok=True, problem=""),
        resident_bytes=5,
        restarts={},
        started_wall_us=0,
        ended_wall_us=60_000_000,
    )
    return msgspec.structs.replace(built, **changes)


def test_report_says_of_its_money_what_is_booked_and_what_is_simulated() -> None:
    tally = Tally()
    tally.take(_reward(1_500_000, start=START_US), timestamp_ms=0)
    simulated = report.Simulated(policy=2.0, rule=2.0, from_us=START_US, hours=0.5)
    shown = "\n".join(report.lines(report.with_simulation(reported(tally), simulated)))
    assert "reward, live         +1.50 USD" in shown
    assert "of fleet time, 2017-10-16 00:00 to" in shown
    assert "alpha 0: policy and rule are the same" in shown
    learned = report.with_simulation(reported(tally, alpha=0.5), simulated)
    assert "policy and rule are the same" not in "\n".join(report.lines(learned))


def test_report_says_that_the_loop_was_blind_or_a_process_failed() -> None:
    blind = reported(
        Tally(),
        seconds_without_fresh_state=40.0,
        decisions_held=12,
        troubles=("observe fails again and again: ended with status 75",),
        problem="nothing was decided",
    )
    shown = "\n".join(report.lines(blind))
    for words in ("NO FRESH STATE      for 40 s", "12 decisions wished", "observe fails again",
                  "PROBLEM             nothing was decided", "nothing was booked"):  # fmt: skip
        assert words in shown


def test_report_has_the_promised_keys_and_types() -> None:
    tally = Tally()
    tally.take(_reward(1_500_000, start=0), timestamp_ms=0)
    built = reported(tally, restarts={"twin": 1})
    plain = json.loads(msgspec.json.encode(built))
    promised = (
        "trace seed events decisions commands_applied commands_refused rewards reward_total "
        "reward_simulated_policy reward_simulated_rule alpha policy_versions causes audit_records "
        "audit_ok resident_bytes seconds_to_first_decision"
    )
    assert set(promised.split()) <= set(plain)
    assert plain["rewards"] == {"revenue": 1.5}
    assert plain["reward_total"] == 1.5
    assert plain["reward_simulated_rule"] is None
    assert plain["seconds_to_first_decision"] is None
    assert "verified" in "\n".join(report.lines(built))
