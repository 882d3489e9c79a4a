"""Promise 7: a kill takes effect within 5 s, and within 45 s where it cannot be heard.

A rogue decider sends a command that would be good at every tenth of a second to the twin's real
shell. A person kills: nothing may change from 5 s of wall time after that on, not even once the
kill is cleared, until a new epoch has claimed. The keeper falls silent, which is also what an
executor notices that cannot hear `controls` any more: nothing may change from 45 s on. A process
may sleep or die meanwhile. The decider stops commanding, too. Wall time is a clock that the test
moves.
"""

import numpy as np
import pytest

from builders import control, pool_state
from decider_loop import Loop, commands
from faults.guards import Guard, line, value, violations
from faults.storm import STEPS, Storm, storm
from gpuloop.actuators import executor
from gpuloop.loop.decide import governance
from gpuloop.loop.services import keeper
from gpuloop.schemas.messages.control import Claim, Kill
from gpuloop.schemas.units import SECOND_US

KILL_S = 5
SILENCE_S = 45
BEAT_S = 0.1


def command(world: Storm, epoch: int = 1) -> None:
    """Send a command that nothing but the kill switch speaks against."""
    pool = ("a", "b")[len(world.commands) % 2]
    nodes = int(world.rng.integers(1, 32))
    world.send(world.command(pool, world.generations()[pool], nodes=nodes, epoch=epoch))


def live(world: Storm, seconds: float, *, keeper_alive: bool, epoch: int = 1) -> None:
    """Let time pass under fire; the keeper renews as it does, every 15 s."""
    until_us = world.wall_us + round(seconds * SECOND_US)
    renew_us = world.wall_us
    while world.wall_us < until_us:
        if keeper_alive and world.wall_us >= renew_us:
            world.renew()
            renew_us += keeper.RENEW_EVERY_US
        command(world, epoch)
        world.step(BEAT_S)


def later(world: Storm, since_us: int, seconds: float) -> list[str]:
    """Return effects from so many seconds after a moment on."""
    after = [effect.wall_us - since_us for effect in world.effects]
    return [f"an effect {us / SECOND_US:.1f} s later" for us in after if us > seconds * SECOND_US]


def trouble(world: Storm) -> None:
    """Let the process die soon, or sleep, or neither."""
    match world.rng.choice(["die", "sleep", "none"]):
        case "die":
            world.doomed, world.luck = str(world.rng.choice(STEPS)), int(world.rng.integers(1, 9))
        case "sleep":
            world.wall_us += int(world.rng.integers(1, 100)) * SECOND_US


def check_kill(seed: int) -> list[str]:
    """Return effects of a kill's fleet from 5 s on, and of its epoch once it is cleared."""
    with storm(seed) as world:
        live(world, 2.0, keeper_alive=True)
        if not world.effects:
            return ["nothing happened before the kill"]
        killed_us = world.wall_us
        world.control(Kill(engaged=True))
        trouble(world)
        live(world, 2.0, keeper_alive=True)
        world.wall_us = max(world.wall_us, killed_us + KILL_S * SECOND_US)
        live(world, 2.0, keeper_alive=True)
        world.control(Kill(engaged=False))
        live(world, 2.0, keeper_alive=True)
        found = later(world, killed_us, KILL_S)
        world.control(Claim(owner="another", epoch=2))
        before = len(world.effects)
        live(world, 1.0, keeper_alive=True, epoch=2)
        if len(world.effects) == before:
            found.append("a new epoch could not go on")
        return found


def check_silence(seed: int) -> list[str]:
    """Return effects from 45 s after the keeper's last word on."""
    with storm(seed) as world:
        live(world, 2.0, keeper_alive=True)
        world.renew()
        silent_us = world.wall_us
        trouble(world)
        live(world, 1.0, keeper_alive=False)
        at_us = silent_us + SILENCE_S * SECOND_US
        if world.wall_us < at_us:
            world.wall_us = at_us - SECOND_US
        live(world, 3.0, keeper_alive=False)
        return later(world, silent_us, SILENCE_S)


def check_decider(seed: int) -> list[str]:
    """Return commands of a decider that has heard of a kill, or nothing of the keeper."""
    rng = np.random.Generator(np.random.Philox(seed))
    loop = Loop()
    if rng.random() < 0.5:
        loop.send(control(Kill(engaged=True)))
    else:
        loop.keeper_lives = False
        loop.state.governance.lease_expires_wall_us = loop.wall_us
    found = []
    for _ in range(5):
        found += commands(loop.minute(pool_state(queued=int(rng.integers(150, 400)))))
    return [f"sent {one.summary}" for one in found]


def test_nothing_starts_five_seconds_after_a_kill_nor_in_its_epoch_again() -> None:
    assert violations(check_kill, range(12)) == []


def test_nothing_starts_forty_five_seconds_after_the_keepers_last_word() -> None:
    assert violations(check_silence, range(20)) == []


def test_a_decider_commands_nothing_under_a_kill_or_without_a_lease() -> None:
    assert violations(check_decider, range(20)) == []


def test_a_kill_is_felt_within_one_step_of_the_world() -> None:
    """The 5 s are for Kafka and a slow machine; the shell itself takes one step."""
    with storm(1) as world:
        live(world, 1.0, keeper_alive=True)
        world.control(Kill(engaged=True))
        killed_us = world.wall_us
        live(world, 2.0, keeper_alive=True)
        assert later(world, killed_us, BEAT_S) == []


GUARDS = [
    Guard(
        "the executor heeds the kill switch",
        line(
            executor.handle,
            (
                "if state.killed or command.epoch <= state.barred_epoch:",
                "if command.epoch <= state.barred_epoch and not state.killed:",
            ),
        ),
        check_kill,
    ),
    Guard(
        "an epoch that was killed stays so",
        line(executor.handle, ("or command.epoch <= state.barred_epoch", "")),
        check_kill,
    ),
    Guard(
        "the executor heeds the lease",
        line(executor.handle, ("if wall_us >= state.lease_expires_wall_us:", "if False:")),
        check_silence,
    ),
    Guard(
        "a lease is 45 s long",
        value(keeper, "LEASE_US", 60 * SECOND_US),
        check_silence,
    ),
    Guard(
        "the decider heeds the kill switch",
        line(governance.obstacle, ("if state.killed:", "if False:")),
        check_decider,
    ),
    Guard(
        "the decider heeds the lease",
        line(governance.obstacle, ("if wall_us >= state.lease_expires_wall_us:", "if False:")),
        check_decider,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
