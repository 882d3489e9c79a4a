"""Promise 4: an expired command never starts, however late it comes and whatever clocks do.

The storm holds commands back for longer than they live and sends old ones again. The executor
alone is also given a clock that jumps both ways, a crash at any moment, and commands that claim to
live for ever; a decider gets a person's yes after the time to answer. No effect may come at or
after a command's expiry, nor later than any command may live.
"""

import msgspec
import numpy as np
import pytest

from builders import pool_state, received
from decider_loop import Loop, commands, proposals
from faults.guards import Guard, line, violations
from faults.memory_fleet import MemoryFleet, scale_command
from faults.storm import rage, storm
from gpuloop.actuators import executor
from gpuloop.actuators.executor import LONGEST_LIFETIME_US, ExecutorState
from gpuloop.loop.decide import answers
from gpuloop.schemas.component import load, save
from gpuloop.schemas.messages import Approval
from gpuloop.schemas.units import HOUR_US, MINUTE_US


def check_storm(seed: int) -> list[str]:
    """Return effects that came after their command's expiry, by the topics alone."""
    with storm(seed) as world:
        rage(world, 40)
        expiry = {command.command_id: command.expires_at_us for command in world.commands}
        return [
            f"{name[:8]} was {outcome.status} after its expiry"
            for name, said in world.outcomes().items()
            for outcome in said.values()
            if outcome.status in ("accepted", "applied") and outcome.event_time_us >= expiry[name]
        ]


def check_clocks(seed: int) -> list[str]:
    """Return effects at a time that some earlier reading of the clock had already put behind."""
    rng = np.random.Generator(np.random.Philox(seed))
    now_us = latest_us = 10 * HOUR_US
    fleet, state = MemoryFleet(), ExecutorState(clock_us=now_us, lease_expires_wall_us=2**60)
    found = []
    for number in range(60):
        now_us = max(0, now_us + int(rng.integers(-20, 25)) * MINUTE_US)
        latest_us = max(latest_us, now_us)
        if rng.random() < 0.2:
            state = load(ExecutorState, save(state))
        issued_us = latest_us - int(rng.integers(0, 30)) * MINUTE_US
        one = scale_command(number, generation=fleet.generation, now_us=issued_us)
        if rng.random() < 0.3:
            one = msgspec.structs.replace(one, expires_at_us=one.expires_at_us + 9 * HOUR_US)
        for outcome in executor.handle(state, one, fleet, now_us, 0):
            if outcome.status != "applied":
                continue
            if latest_us >= one.expires_at_us:
                found.append(f"command {one.decision_id} started after its expiry")
            if one.expires_at_us > latest_us + LONGEST_LIFETIME_US:
                found.append(f"command {one.decision_id} would have lived for hours")
    return found


def check_approval(seed: int) -> list[str]:
    """Return commands that left because of a yes to a proposal whose time was up."""
    rng = np.random.Generator(np.random.Philox(seed))
    loop = Loop(mode="advise")
    outputs = loop.minute(pool_state(queued=int(rng.integers(150, 400))))
    (shown,) = proposals(outputs)
    loop.wall_us = shown.answer_by_wall_us + int(rng.integers(0, MINUTE_US))
    loop.renew()
    yes = Approval(
        fleet=shown.fleet,
        command_id=shown.command.command_id,
        digest=shown.command.digest,
        approve=True,
        by="ann",
    )
    left = commands(loop.send(received("approvals", yes)))
    return [f"released {one.summary}" for one in left]


def test_nothing_starts_after_its_expiry_in_a_storm() -> None:
    assert violations(check_storm, range(100, 130)) == []


def test_nothing_starts_after_its_expiry_when_clocks_jump() -> None:
    assert violations(check_clocks, range(300)) == []


def test_nothing_is_released_by_a_late_yes() -> None:
    assert violations(check_approval, range(20)) == []


GUARDS = [
    Guard(
        "the executor looks at the expiry",
        line(executor.handle, ("if state.clock_us >= command.expires_at_us:", "if False:")),
        check_storm,
    ),
    Guard(
        "the executor's clock never goes back",
        line(
            executor.handle,
            ("state.clock_us = max(state.clock_us, now_us)", "state.clock_us = now_us"),
        ),
        check_clocks,
    ),
    Guard(
        "no command may live for hours",
        line(
            executor._inconsistency,
            ("if command.expires_at_us > now_us + LONGEST_LIFETIME_US:", "if False:"),
        ),
        check_clocks,
    ),
    Guard(
        "the decider looks at the time to answer",
        line(answers.on_approval, ("if ctx.wall_us >= one.answer_by_wall_us:", "if False:")),
        check_approval,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
