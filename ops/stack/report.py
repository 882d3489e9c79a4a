"""What a run did, as a report: counted from the topics, with the audit verified anew.

Two figures are not observations: the simulated rewards re-run the twin on the same draws under the
executed policy and under the rule alone. They are labelled so, and null on any other fleet.
"""

import msgspec

from gpuloop.loop.evaluate.audit import AuditError, verify_topic
from gpuloop.loop.evaluate.keys import KeyFileError
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.ops.stack.rerun import Simulated
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.units import USD_MICROS


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, USD, bytes and seconds of one run; null where a figure does not exist."""

    trace: str
    seed: int
    events: int
    decisions: int
    commands_applied: int
    commands_refused: dict[str, int]
    proposals: int
    rewards: dict[str, float]
    reward_total: float
    reward_simulated_policy: float | None
    reward_simulated_rule: float | None
    simulated_hours: float | None
    alpha: float
    policy_versions: int
    causes: int
    audit_records: int
    audit_ok: bool
    audit_problem: str
    resident_bytes: int
    restarts: dict[str, int]
    seconds: float
    seconds_to_first_decision: float | None


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying the audit topic found."""

    records: int
    ok: bool
    problem: str


def verify_audit(settings: Settings) -> Audited:
    """Verify the whole chain; a chain that cannot be read is not verified."""
    try:
        found = verify_topic(settings)
    except (AuditError, BrokerError, KeyFileError) as error:
        return Audited(records=0, ok=False, problem=str(error))
    problem = "" if found.first_bad is None else str(found.first_bad)
    return Audited(records=found.records, ok=found.ok, problem=problem)


def usd(micros: int) -> float:
    """Return US dollars, to the cent's hundredth."""
    return round(micros / USD_MICROS, 4)


def build(
    tally: Tally,
    *,
    trace: str,
    seed: int,
    events: int,
    audited: Audited,
    resident_bytes: int,
    restarts: dict[str, int],
    started_wall_us: int,
    ended_wall_us: int,
) -> Report:
    """Return the report of a run from what was counted."""
    first = tally.first_decision_ms
    return Report(
        trace=trace,
        seed=seed,
        events=events,
        decisions=tally.decisions,
        commands_applied=tally.applied,
        commands_refused=dict(sorted(tally.refused.items())),
        proposals=tally.proposals,
        rewards={name: usd(micros) for name, micros in sorted(tally.rewards_usd_micros.items())},
        reward_total=usd(tally.reward_total_usd_micros),
        reward_simulated_policy=None,
        reward_simulated_rule=None,
        simulated_hours=None,
        alpha=max(tally.alpha.values(), default=0.0),
        policy_versions=len(tally.policies),
        causes=tally.causes,
        audit_records=audited.records,
        audit_ok=audited.ok,
        audit_problem=audited.problem,
        resident_bytes=resident_bytes,
        restarts=restarts,
        seconds=round((ended_wall_us - started_wall_us) / 1e6, 1),
        seconds_to_first_decision=(
            None if first is None else round(first / 1e3 - started_wall_us / 1e6, 1)
        ),
    )


def with_simulation(report: Report, simulated: Simulated) -> Report:
    """Return the report with the figures of the re-runs."""
    return msgspec.structs.replace(
        report,
        reward_simulated_policy=simulated.policy,
        reward_simulated_rule=simulated.rule,
        simulated_hours=simulated.hours,
    )


def lines(report: Report) -> list[str]:
    """Return the report for a person to read."""
    refused = ", ".join(f"{n} {reason}" for reason, n in report.commands_refused.items()) or "none"
    restarts = ", ".join(f"{name} {n}" for name, n in report.restarts.items()) or "none"
    first = report.seconds_to_first_decision
    text = [
        f"workload            {report.trace}, seed {report.seed}",
        f"run                 {report.seconds:.0f} s; first decision after "
        + ("never" if first is None else f"{first:.1f} s"),
        f"events              {report.events:,}",
        f"decisions           {report.decisions:,}",
        f"commands applied    {report.commands_applied:,}",
        f"commands refused    {refused}",
        f"proposals           {report.proposals:,}",
        f"reward              {report.reward_total:+,.2f} USD",
        *(f"  {name:<18} {amount:+,.2f} USD" for name, amount in report.rewards.items()),
        f"policy              alpha {report.alpha:.2f}, published {report.policy_versions}",
        f"causes named        {report.causes:,}",
        f"audit               {report.audit_records:,} records, "
        + ("verified" if report.audit_ok else f"NOT verified: {report.audit_problem}"),
        f"resident, peak      {report.resident_bytes / 2**30:.2f} GiB; restarts: {restarts}",
    ]
    if report.reward_simulated_policy is not None and report.reward_simulated_rule is not None:
        text.insert(
            -4,
            f"simulation          {report.simulated_hours} h of the same draws again: "
            f"{report.reward_simulated_policy:+,.2f} USD under the policy, "
            f"{report.reward_simulated_rule:+,.2f} USD under the rule",
        )
    return text
