"""What a run did, as a report: counted from the topics, with the audit verified anew.

Two figures are not observations: the simulated rewards re-run the twin on the same draws under the
executed policy and under the rule alone. They are labelled so, and null on any other fleet.
"""

from pathlib import Path

import msgspec

from gpuloop.loop.evaluate.audit import AuditError, verify_topic
from gpuloop.loop.evaluate.keys import KeyFileError
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.ops.stack.rerun import Simulated
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.units import HOUR_US, USD_MICROS, calendar_time


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
    energy_kwh: float
    carbon_kg: float
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
    seconds_to_ready: float | None = None
    seconds_without_fresh_state: float = 0.0
    decisions_held: int = 0
    """Wishes that were held because what they rested on was not fresh."""
    simulated_from_us: int | None = None
    rewarded_from_us: int | None = None
    rewarded_until_us: int | None = None
    """Fleet time that the ledger has booked and credited."""
    troubles: tuple[str, ...] = ()
    """Processes that were given up or failed again and again."""
    problem: str = ""
    """Why the run did not do what it is for; empty if it did."""


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
    seconds_to_ready: float | None = None,
    seconds_without_fresh_state: float = 0.0,
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
        energy_kwh=round(tally.energy_milliwatt_hours / 1e6, 3),
        carbon_kg=round(tally.carbon_milligrams / 1e6, 3),
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
        seconds_to_ready=seconds_to_ready,
        seconds_without_fresh_state=seconds_without_fresh_state,
        decisions_held=tally.held_not_fresh,
        rewarded_from_us=tally.rewarded_from_us,
        rewarded_until_us=None if tally.rewarded_from_us is None else tally.rewarded_until_us,
    )


def with_simulation(report: Report, simulated: Simulated) -> Report:
    """Return the report with the figures of the re-runs."""
    return msgspec.structs.replace(
        report,
        reward_simulated_policy=simulated.policy,
        reward_simulated_rule=simulated.rule,
        simulated_hours=simulated.hours,
        simulated_from_us=simulated.from_us,
    )


def write_report(path: Path, built: Report) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(built), indent=2) + b"\n")


def lines(report: Report) -> list[str]:
    """Return the report for a person to read."""
    refused = ", ".join(f"{n} {reason}" for reason, n in report.commands_refused.items()) or "none"
    restarts = ", ".join(f"{name} {n}" for name, n in report.restarts.items()) or "none"
    return [
        f"workload            {report.trace or 'unknown'}, seed {report.seed}",
        f"run                 {_run(report)}",
        f"events              {report.events:,}",
        f"decisions           {report.decisions:,}",
        *_freshness(report),
        f"commands applied    {report.commands_applied:,}",
        f"commands refused    {refused}",
        f"proposals           {report.proposals:,}",
        *_money(report),
        f"policy              alpha {report.alpha:.2f}, {report.policy_versions} published",
        f"causes named        {report.causes:,}",
        f"audit               {report.audit_records:,} records, "
        + ("verified" if report.audit_ok else f"NOT verified: {report.audit_problem}"),
        f"resident, peak      {report.resident_bytes / 2**30:.2f} GiB; restarts: {restarts}",
        *(f"TROUBLE             {trouble}" for trouble in report.troubles),
        *([f"PROBLEM             {report.problem}"] if report.problem else []),
    ]


def _run(report: Report) -> str:
    ready, first = report.seconds_to_ready, report.seconds_to_first_decision
    return (
        f"{report.seconds:.0f} s; ready after "
        + ("never" if ready is None else f"{ready:.1f} s")
        + ", first decision after "
        + ("never" if first is None else f"{first:.1f} s")
    )


def _freshness(report: Report) -> list[str]:
    blind = report.seconds_without_fresh_state
    said = []
    if blind > 0:
        said.append(f"NO FRESH STATE      for {blind:.0f} s of the run")
    if report.decisions_held:
        held = f"{report.decisions_held:,} decisions wished for a change and held"
        said.append(f"held, not fresh     {held}")
    return said


def _money(report: Report) -> list[str]:
    """Return what the ledger booked live and what the re-runs earned, each with its span."""
    span = "nothing was booked"
    if report.rewarded_from_us is not None and report.rewarded_until_us is not None:
        hours = (report.rewarded_until_us - report.rewarded_from_us) / HOUR_US
        began, ended = (_minute(at) for at in (report.rewarded_from_us, report.rewarded_until_us))
        span = f"{hours:.2f} h of fleet time, {began} to {ended}"
    said = [
        f"reward, live         {report.reward_total:+,.2f} USD, all pools, as the ledger booked it",
        f"                     {span}",
        *(f"  {name:<18} {amount:+,.2f} USD" for name, amount in report.rewards.items()),
        f"energy, carbon      {report.energy_kwh:,.1f} kWh, {report.carbon_kg:,.1f} kg of CO2",
    ]
    policy, rule = report.reward_simulated_policy, report.reward_simulated_rule
    if policy is None or rule is None:
        return said
    said += [
        f"reward, simulated    {policy:+,.2f} USD under the policy",
        f"                     {rule:+,.2f} USD under the rule alone",
        f"                     the twin again on the same draws, {report.simulated_hours} h of it,",
        "                     all in auto, nobody intervening, every state as fresh as in training",
    ]
    if report.simulated_from_us != report.rewarded_from_us:
        said.append("                     of its beginning: this run is too far into the world")
    if report.alpha == 0.0 and policy == rule:
        said.append("                     alpha 0: policy and rule are the same, it was run once")
    return said


def _minute(time_us: int) -> str:
    time = calendar_time(time_us)
    return f"{time_us} us" if time is None else f"{time:%Y-%m-%d %H:%M}"
