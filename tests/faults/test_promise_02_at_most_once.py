"""Promise 2: a command takes effect at most once, whatever is sent again and whatever dies.

A rogue decider's commands come once, again and late to the twin's real shell and SQLite file while
the process dies at every step, inside the transaction too. Whatever happened, the topics must tell
of each command at most one end, and of every effect exactly one. On Kafka, with SIGKILL:
`tests/integration/test_twin_service.py`; the executor alone, with commands of many deciders:
`tests/property/test_executor_machine.py`.
"""

from collections import Counter

import pytest

from faults.guards import Guard, line, violations
from faults.storm import rage, storm
from gpuloop.actuators import executor
from gpuloop.loop.shells.store import Store
from gpuloop.loop.shells.transactional import TransactionalShell
from gpuloop.schemas.messages import Outcome

ENDS = {"applied", "failed", "expired", "rejected"}


def ends(said: dict[str, Outcome]) -> set[tuple[str, str]]:
    """Return how a command ended, leaving out answers to its being sent again.

    Those are `duplicate`, and `expired` once the executor has forgotten it.
    """
    found = {(o.status, o.reason) for o in said.values() if o.status in ENDS}
    return found - {("rejected", "duplicate"), ("expired", "expired")}


def check(seed: int) -> list[str]:
    """Return commands with two ends, effects that nobody was told of and those that came twice."""
    with storm(seed) as world:
        rage(world, 40)
        told: Counter[str] = Counter()
        found = []
        for command in world.commands:
            said = world.outcomes().get(command.command_id, {})
            if len(ends(said)) > 1:
                found.append(f"{command.command_id[:8]} ended as {sorted(ends(said))}")
            for outcome in said.values():
                if outcome.status != "applied":
                    continue
                told[command.pool] += 1
                if outcome.generation != command.generation + 1:
                    found.append(f"{command.command_id[:8]} took effect on another generation")
        found += [
            f"{pool} was scaled {times} times, {told[pool]} were told of"
            for pool, times in world.generations().items()
            if times != told[pool]
        ]
        return found


def test_a_command_has_one_end_and_an_effect_one_outcome() -> None:
    assert violations(check, range(40)) == []


def test_storms_do_what_they_are_for() -> None:
    """A storm without deaths, effects or commands sent again would promise nothing."""
    seen: Counter[str] = Counter()
    for seed in range(8):
        with storm(seed) as world:
            rage(world, 40)
            seen["deaths"] += world.deaths
            seen["effects"] += len(world.effects)
            for said in world.outcomes().values():
                seen.update(f"{outcome.status} {outcome.reason}" for outcome in said.values())
    wanted = ("deaths", "effects", "rejected duplicate", "rejected killed", "expired expired")
    assert all(seen[name] >= 3 for name in wanted), seen


GUARDS = [
    Guard(
        "the executor knows the commands it has answered",
        line(executor.handle, ("if command.command_id in state.forget_at_us:", "if False:")),
        check,
    ),
    Guard(
        "a command acts on the generation it was made for",
        line(executor.handle, ("if target.generation != command.generation:", "if False:")),
        check,
    ),
    Guard(
        "state and outbox change in one transaction",
        line(
            Store._commit,
            ('execute("begin immediate")', "pass"),
            ('execute("rollback")', "pass"),
            ('execute("commit")', "pass"),
        ),
        check,
    ),
    Guard(
        "outcomes leave only after the transaction",
        line(
            TransactionalShell.advance,
            (
                "appended = self._commit(outputs)",
                "self._broker.produce(outputs); self._failpoint('committed');"
                " appended = self._commit([])",
            ),
        ),
        check,
    ),
    Guard(
        "what was not sent before a death is sent after it",
        line(TransactionalShell.open, ("self._send(unsent)", "pass")),
        check,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
