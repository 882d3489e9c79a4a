"""Promise 6: changes per window stay within budget whatever a policy says.

The whole loop runs under a policy that wishes for all or nothing, anything in between or absurd
numbers, with faults that call for moves and a decider that restarts. What left on `actions.*` is
judged by limits worked out here, from the commands and `state.pools` alone. The envelope's laws for
any single wish: `tests/property/test_envelope_laws.py`.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from math import ceil

import numpy as np
import pytest

from faults.guards import Guard, line, violations
from faults.loops import Loop, adversary, build
from gpuloop.actuators import envelope
from gpuloop.loop.decide import release
from gpuloop.schemas.messages import Command, PoolState
from gpuloop.schemas.messages.actions import PriceTo, ScaleTo
from gpuloop.schemas.messages.control import Objectives
from gpuloop.schemas.units import HOUR_US, MINUTE_US, USD_MICROS

MINUTES = 120
BUDGET_USD = 280.0
"""What the pool `a100` may cost per hour: a little more than it does at its beginning."""
CEILING_USD = 4.9
"""What a GPU-hour of it may cost; it begins at 4.78."""


def run(seed: int) -> Loop:
    """Return a loop that has lived for two hours under an adversary."""
    objectives = Objectives(
        pool="a100",
        usd_micros_per_hour_max=round(BUDGET_USD * USD_MICROS),
        price_ceiling_usd_micros=round(CEILING_USD * USD_MICROS),
    )
    loop = build(
        seed, adversary(seed), objectives=[objectives], fault_rate_factor=3000.0, arrival_share=0.4
    )
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(8):
        loop.run(MINUTES // 8)
        if rng.random() < 0.5:
            loop.restart_decider()
    return loop


@cache
def guarded(seed: int) -> Loop:
    """Return the loop of a seed with all guards in place: more than one test looks at it."""
    return run(seed)


def check(seed: int) -> list[str]:
    """Return what exceeded a limit, command by command."""
    return judged(run(seed))


def judged(loop: Loop) -> list[str]:
    """Return what a loop's commands exceeded."""
    refused = {name for name, one in loop.outcomes().items() if one.status != "applied"}
    found = []
    for pool in sorted({command.pool for command in loop.commands()}):
        of_pool = [one for one in loop.commands() if one.pool == pool]
        found += [f"{pool} at minute {_minute(loop, one)}: {problem}"
                  for one in of_pool
                  for problem in _judge(loop, one, _before(of_pool, one, refused))]  # fmt: skip
    return found


def _minute(loop: Loop, command: Command) -> int:
    return (command.issued_at_us - loop.start_us) // MINUTE_US


def _before(commands: list[Command], one: Command, refused: set[str]) -> list[Command]:
    """Return the commands of the hour before one, but those that came to nothing."""
    return [
        other
        for other in commands[: commands.index(one)]
        if other.issued_at_us > one.issued_at_us - HOUR_US and other.command_id not in refused
    ]


def _judge(loop: Loop, command: Command, hour: list[Command]) -> Iterator[str]:
    seen = _seen(loop, command)
    same = [one for one in hour if one.actuator == command.actuator]
    if isinstance(command.to, ScaleTo):
        yield from _judge_scale(seen, command, same)
    elif isinstance(command.to, PriceTo):
        assert isinstance(command.before, PriceTo)
        old, new = command.before.usd_micros_per_gpu_hour, command.to.usd_micros_per_gpu_hour
        if command.pool == "a100" and new > max(old, CEILING_USD * USD_MICROS):
            yield f"a price of {new}"
        if abs(new - old) > 0.05 * old + 1:
            yield f"a price step from {old} to {new}"
        if any(command.issued_at_us - one.issued_at_us < 15 * MINUTE_US for one in same):
            yield "two prices within a quarter of an hour"
    elif len(same) + 1 > max(1, ceil(0.1 * seen.running_jobs)):
        yield f"{len(same) + 1} moves in an hour with {seen.running_jobs} jobs"


def _judge_scale(seen: PoolState, command: Command, same: list[Command]) -> Iterator[str]:
    present, after = _nodes(command.before), _nodes(command.to)
    if max(abs(a - b) for a, b in zip(after, present, strict=True)) > ceil(0.1 * seen.nodes_max):
        yield f"a step from {present} to {after}"
    if not seen.nodes_min <= sum(after) <= seen.nodes_max:
        yield f"{after} outside {seen.nodes_min} to {seen.nodes_max}"
    if _stops(command):
        stopped = sum(map(_stops, same)) + _stops(command)
        if stopped > max(1, ceil(0.25 * sum(present))):
            yield f"{stopped} nodes stopped in an hour of {sum(present)}"
        for one in same:
            ago_us = command.issued_at_us - one.issued_at_us
            if ago_us < 5 * MINUTE_US or (_starts(one) and ago_us < 15 * MINUTE_US):
                yield f"shrinks {ago_us // MINUTE_US} minutes after the last change"
                break
    costs = {one.billing: one.usd_micros_per_node_hour for one in seen.tranches}
    usd = sum(
        nodes * costs.get(billing, 0) / USD_MICROS
        for nodes, billing in zip(after, ("on_demand", "spot"), strict=True)
    )
    if seen.pool == "a100" and _starts(command) and usd > BUDGET_USD + 1e-6:
        yield f"{usd:.2f} USD an hour"


def _seen(loop: Loop, command: Command) -> PoolState:
    """Return the pool as it was last seen when the command was issued."""
    states = [one.message for one in loop.seen["state.pools"]]
    return next(
        one
        for one in reversed(states)
        if isinstance(one, PoolState)
        and one.pool == command.pool
        and one.tick_us <= command.issued_at_us
    )


def _nodes(state: object) -> tuple[int, int]:
    assert isinstance(state, ScaleTo)
    return state.on_demand_nodes, state.spot_nodes


def _stops(command: Command) -> int:
    steps = zip(_nodes(command.to), _nodes(command.before), strict=True)
    return sum(max(0, before - after) for after, before in steps)


def _starts(command: Command) -> int:
    steps = zip(_nodes(command.to), _nodes(command.before), strict=True)
    return sum(max(0, after - before) for after, before in steps)


def test_no_policy_exceeds_a_budget() -> None:
    assert violations(lambda seed: judged(guarded(seed)), range(6)) == []


def test_an_adversary_gets_something_done() -> None:
    """A loop in which nothing changes would promise nothing."""
    done: Counter[str] = Counter()
    for seed in range(3):
        for command in guarded(seed).commands():
            done[command.actuator] += 1
            done["stops"] += isinstance(command.to, ScaleTo) and _stops(command)
            done["starts"] += isinstance(command.to, ScaleTo) and _starts(command)
    assert all(done[name] >= 5 for name in ("scaling", "pricing", "migration", "stops", "starts"))


GUARDS = [
    Guard(
        "a window's stops are rationed",
        line(envelope._disruption, ("np.minimum(stops, idle)", "idle")),
        check,
    ),
    Guard(
        "a window's moves are rationed",
        line(envelope.migration_budget, ("config.migrate_share * running_jobs", "running_jobs")),
        check,
    ),
    Guard(
        "steps are limited",
        line(
            envelope._delta,
            ("np.clip(wish - batch.present, -batch.delta, batch.delta)", "wish - batch.present"),
        ),
        check,
    ),
    Guard(
        "a pool rests before it shrinks",
        line(envelope._hysteresis, ("np.where(rested[:, None],", "np.where(True,")),
        check,
    ),
    Guard(
        "a pool has its bounds",
        line(
            envelope._bounds,
            ("np.clip(wish, low, high)", "wish"),
        ),
        check,
    ),
    Guard(
        "growth is cut to what may be spent",
        line(
            envelope._projection,
            ("np.maximum(0.0, batch.budget - moved)", "np.full_like(moved, 1e9)"),
        ),
        check,
    ),
    Guard(
        "what leaves is booked",
        line(release.send, ("memory.changes.append", "str")),
        check,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
