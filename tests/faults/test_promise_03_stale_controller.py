"""Promise 3: a stale controller cannot act, however many think that the fleet is theirs.

Up to four deciders come, are cut off from `controls` for a while, go on from a snapshot, and read
the one log of claims each at its own pace; so does the executor. No effect may carry an epoch below
one that acted, or was read, before it; no two deciders may command in one epoch; who has read of a
higher claim is silent; and once all have read everything one owns the fleet at most. Two processes
of one decider share their epoch: there the journal ends the older one, see the contract suite
(`tests/contract/test_restart_contract.py`), and the last check here.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from echo import fault_output
from stage import Stage

from builders import FLEET, START_US, at, control, echo, offer, pool_state, received
from faults.guards import Guard, line, violations
from faults.memory_fleet import MemoryFleet
from gpuloop.actuators import executor
from gpuloop.actuators.executor import ExecutorState
from gpuloop.loop.decide import governance
from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.shells.journal import JournalBroken
from gpuloop.loop.shells.live import LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.component import Received, Tick, load, save
from gpuloop.schemas.messages import Command, Control
from gpuloop.schemas.messages.control import LONGEST_LEASE_US, Claim, KillLease, SetMode
from gpuloop.schemas.units import MINUTE_US, SECOND_US

MAX_DECIDERS = 4
MINUTES = 40


@dataclass
class Rival:
    """A decider, how much of the log it has read, and for how long it is cut off from it."""

    decider: Decider
    state: DeciderState
    read: int = 0
    cut_off: int = 0

    @property
    def owner(self) -> str:
        return self.decider.owner


@dataclass
class Court:
    """Deciders, the log of controls, the topic of commands, and an executor with its fleet."""

    rng: np.random.Generator
    log: list[Received]
    rivals: list[Rival] = field(default_factory=list)
    sent: list[Command] = field(default_factory=list)
    fleet: MemoryFleet = field(default_factory=MemoryFleet)
    state: ExecutorState = field(default_factory=ExecutorState)
    read: int = 0
    handled: int = 0
    now_us: int = START_US
    wall_us: int = SECOND_US
    acted: int = 0
    commanders: dict[int, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def join(self) -> None:
        """Let another decider start."""
        decider = Decider(FLEET, owner=f"decider-{len(self.rivals)}")
        rival = Rival(decider, decider.initial())
        self.rivals.append(rival)
        for billing, usd in (("on_demand", 3.6), ("spot", 1.5)):
            self.tell(rival, received("market.offers", offer(billing, usd)))

    def tell(self, rival: Rival, event: Received | Tick) -> None:
        """Give a decider an event and put what it says where it belongs."""
        context = at(self.now_us, self.wall_us)
        rival.state, outputs = rival.decider.step(rival.state, event, context)
        for output in outputs:
            if output.topic == "controls":
                self.log.append(echo(output))
            elif isinstance(output.message, Command):
                self.commanded(rival, output.message)

    def commanded(self, rival: Rival, command: Command) -> None:
        """Judge a command by what its decider could know, and put it on the topic."""
        first = self.commanders.setdefault(command.epoch, rival.owner)
        if first != rival.owner:
            self.found.append(f"{first} and {rival.owner} command in epoch {command.epoch}")
        if command.epoch < highest(self.log[: rival.read]):
            self.found.append(f"{rival.owner} commands though it has read of a higher claim")
        self.sent.append(command)

    def live(self, rival: Rival) -> None:
        """Let a minute pass for a decider: what it reads of the log, then the pool, then a tick."""
        if rival.cut_off:
            rival.cut_off -= 1
        elif self.rng.random() < 0.1:
            rival.cut_off = int(self.rng.integers(1, 12))
        else:
            self.catch_up(rival, int(self.rng.integers(rival.read, len(self.log) + 1)))
        if self.rng.random() < 0.05:
            rival.state = load(DeciderState, save(rival.state))
        scale = self.fleet.state
        state = pool_state(
            tick_us=self.now_us,
            on_demand=scale.on_demand_nodes,
            spot=scale.spot_nodes,
            queued=int(self.rng.integers(0, 400)),
            generations={"scaling": self.fleet.generation, "pricing": 0},
        )
        self.tell(rival, received("state.pools", state, "a100"))
        self.tell(rival, Tick(tick_us=self.now_us))

    def catch_up(self, rival: Rival, until: int) -> None:
        """Let a decider read the log up to a position."""
        while rival.read < until:
            event = self.log[rival.read]
            rival.read += 1
            self.tell(rival, event)

    def execute(self) -> None:
        """Let the executor read some of the log, then some of the commands, in their order."""
        until = int(self.rng.integers(self.read, len(self.log) + 1))
        for event in self.log[self.read : until]:
            assert isinstance(event.message, Control)
            executor.control(self.state, event.message, self.wall_us)
        self.read = until
        until = int(self.rng.integers(self.handled, len(self.sent) + 1))
        for command in self.sent[self.handled : until]:
            outcomes = executor.handle(self.state, command, self.fleet, self.now_us, self.wall_us)
            for outcome in outcomes:
                if outcome.status == "applied":
                    self.judge(command)
                for rival in self.rivals:
                    if not rival.cut_off:
                        self.tell(rival, received("actions.outcomes", outcome, "a100"))
        self.handled = until

    def judge(self, command: Command) -> None:
        """Judge an effect by what had acted, and what the executor had read, before it."""
        if command.epoch < self.acted:
            self.found.append(f"epoch {command.epoch} acted after epoch {self.acted}")
        if command.epoch < highest(self.log[: self.read]):
            self.found.append(f"epoch {command.epoch} acted though a higher claim was read")
        self.acted = max(self.acted, command.epoch)


def highest(log: list[Received]) -> int:
    """Return the highest epoch claimed in a stretch of the log."""
    bodies = [one.message.body for one in log if isinstance(one.message, Control)]
    return max((body.epoch for body in bodies if isinstance(body, Claim)), default=0)


def hold_court(seed: int) -> Court:
    """Let deciders come and quarrel for a while, then let everyone read everything."""
    rng = np.random.Generator(np.random.Philox(seed))
    court = Court(rng, [control(SetMode(pool="*", actuator="scaling", mode="auto"))])
    court.join()
    for _ in range(MINUTES):
        court.now_us += MINUTE_US
        court.wall_us += SECOND_US
        court.log.append(control(KillLease(expires_wall_us=court.wall_us + LONGEST_LEASE_US)))
        if len(court.rivals) < MAX_DECIDERS and rng.random() < 0.15:
            court.join()
        for number in rng.permutation(len(court.rivals)):
            court.live(court.rivals[number])
            court.execute()
        if rng.random() < 0.3:  # Someone else changes the pool, so that there is work again.
            court.fleet = MemoryFleet(on_demand=16)
            court.fleet.generation = court.now_us // SECOND_US
    while any(rival.read < len(court.log) for rival in court.rivals):
        for rival in court.rivals:
            court.catch_up(rival, len(court.log))
    return court


def check(seed: int) -> list[str]:
    """Return what a stale controller did, and owners beside the one."""
    court = hold_court(seed)
    owners = [rival.owner for rival in court.rivals if rival.state.governance.owns]
    return [*court.found, *(f"{one} believes that it owns the fleet too" for one in owners[1:])]


def check_zombie(seed: int) -> list[str]:
    """Return how often a process went on after another had gone on in its place."""
    stage = Stage(MemoryBroker())
    old = stage.start()
    for second in range(10, 10 + seed % 5):
        stage.tell(second, [fault_output(second)])
        stage.settle()
    stage.start()
    stage.tell(30, [fault_output(30)])
    stage.settle()
    stage.tell(40, [fault_output(40)])
    try:
        old.advance()
    except JournalBroken:
        return []
    return ["a process that was replaced went on"]


def test_no_stale_decider_acts_and_one_owns_at_most() -> None:
    assert violations(check, range(25)) == []


def test_deciders_quarrel_and_act() -> None:
    """Without several epochs that act, a quarrel would promise nothing."""
    courts = [hold_court(seed) for seed in range(3)]
    assert all(len(court.commanders) >= 2 for court in courts)
    assert sum(court.fleet.generation > 0 for court in courts) == len(courts)


def test_a_process_that_was_replaced_ends() -> None:
    assert violations(check_zombie, range(5)) == []


GUARDS = [
    Guard(
        "the executor refuses an epoch below the highest",
        line(executor.handle, ("if command.epoch < state.epoch:", "if False:")),
        check,
    ),
    Guard(
        "the executor follows claims",
        line(executor.control, ("state.epoch = epoch_after(state.epoch, epoch)", "pass")),
        check,
    ),
    Guard(
        "the executor remembers the highest epoch that acted",
        line(
            executor.handle,
            ("if command.epoch < state.epoch:", "if command.epoch < state.epoch - 1:"),
            ("state.epoch = command.epoch", "pass"),
        ),
        check,
    ),
    Guard(
        "a decider that reads of a higher claim stands back",
        line(
            governance._claimed,
            ("state.owns, state.deposed = False, True", "pass"),
        ),
        check,
    ),
    Guard(
        "of two equal claims the first one counts",
        line(
            governance._claimed,
            ("and first_of_epoch", ""),
            ("seen.epoch >= state.epoch", "seen.epoch > state.epoch"),
        ),
        check,
    ),
    Guard(
        "the journal ends a process that was replaced",
        line(LiveShell._check, ("raise JournalBroken(", "str(")),
        check_zombie,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
