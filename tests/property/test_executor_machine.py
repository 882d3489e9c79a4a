"""The executor under everything a topic and a machine can do to it.

Commands are delivered, duplicated, reordered and held back, the process crashes and comes back from
what was saved, kills come and go, deciders take over from each other. Whatever the order: a command
takes effect at most once and not after it was reported as refused or failed, generations and epochs
rise, nothing starts after its expiry, during a kill, or without a lease.

Each guard of `actuators/executor.py` has been taken out and the machine seen to fail.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from gpuloop.actuators import executor
from gpuloop.actuators.commands import Origin, Tariff, scale
from gpuloop.actuators.executor import ExecutorState
from gpuloop.schemas.component import State, load, save
from gpuloop.schemas.fleet import Refused, Target
from gpuloop.schemas.identity import decision_id
from gpuloop.schemas.messages import Command, Control
from gpuloop.schemas.messages.actions import Actuator, DesiredState, ScaleTo
from gpuloop.schemas.messages.control import Claim, Kill, KillLease
from gpuloop.schemas.units import MINUTE_US

TARIFF = Tariff(gpus_per_node=8, on_demand_usd_per_hour=29.0, spot_usd_per_hour=12.0)
POOLS = ("a", "b")


class Pool(msgspec.Struct):
    nodes: int = 10
    generation: int = 0


class MemoryFleetState(State):
    pools: dict[str, Pool]
    broken: bool = False


class MemoryFleet:
    """Two pools in memory, and a list of effects that no crash forgets."""

    name = "test"

    def __init__(self) -> None:
        self.state = MemoryFleetState(pools={name: Pool() for name in POOLS})

    def read(self, actuator: Actuator, target: str) -> Target | None:
        pool = self.state.pools.get(target)
        if actuator != "scaling" or pool is None:
            return None
        now = ScaleTo(on_demand_nodes=pool.nodes, spot_nodes=0)
        return Target(target, now, pool.generation)

    def apply(self, actuator: Actuator, target: str, to: DesiredState, now_us: int) -> Target:
        if self.state.broken:
            raise Refused("no_capacity", "broken")
        assert isinstance(to, ScaleTo)
        pool = self.state.pools[target]
        pool.nodes, pool.generation = to.on_demand_nodes, pool.generation + 1
        done = self.read(actuator, target)
        assert done is not None
        return done


class ExecutorMachine(RuleBasedStateMachine):
    """One executor, one fleet, any number of deciders."""

    commands = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.fleet = MemoryFleet()
        self.state = ExecutorState(lease_expires_wall_us=10)
        self.now_us, self.latest_us, self.wall_us = 0, 0, 0
        self.epoch, self.made = 1, 0
        self.newest: Command | None = None
        self.killed = False
        self.killed_epoch = -1
        self.applied: dict[str, int] = {}
        self.settled: set[str] = set()
        self.epochs: list[int] = []
        self.claimed = 0
        self.commit()

    @rule(
        target=commands,
        pool=st.sampled_from(POOLS),
        lag=st.sampled_from([0, 0, 0, -1, 1]),
        nodes=st.integers(1, 20),
        older=st.sampled_from([0, 0, 1, -1]),
    )
    def decide(self, pool: str, lag: int, nodes: int, older: int) -> Command:
        """A decider of this epoch, an older or a newer one commands, on a view that may be old."""
        self.made += 1
        epoch = max(0, self.epoch - older)
        generation = max(0, self.fleet.state.pools[pool].generation + lag)
        origin = Origin(
            fleet="test",
            decision_id=decision_id("test", pool, "cluster", epoch, self.made),
            pool=pool,
            epoch=epoch,
            now_us=self.now_us,
        )
        return scale(
            origin,
            before=ScaleTo(on_demand_nodes=10, spot_nodes=0),
            to=ScaleTo(on_demand_nodes=nodes, spot_nodes=0),
            generation=generation,
            tariff=TARIFF,
            mode="auto",
            reason="test",
        )

    @rule()
    def deliver_again(self) -> None:
        """The newest command once more, as after a missing acknowledgement."""
        if self.newest is not None:
            self.deliver(self.newest)

    @rule(command=commands)
    def deliver(self, command: Command) -> None:
        """Any command, at any time, in any order, any number of times."""
        self.newest = command
        before = msgspec.structs.replace(self.fleet.state.pools[command.pool])
        self.latest_us = max(self.latest_us, self.now_us)
        outcomes = executor.handle(self.state, command, self.fleet, self.now_us, self.wall_us)
        statuses = [outcome.status for outcome in outcomes]
        if "applied" not in statuses:
            assert self.fleet.state.pools[command.pool] == before
            assert statuses in (["rejected"], ["expired"], ["accepted", "failed"])
            self.settled.add(command.command_id)
            return
        assert command.command_id not in self.settled, "done after it was reported as not done"
        assert statuses == ["accepted", "applied"]
        assert before.generation == command.generation
        assert outcomes[1].generation == before.generation + 1
        assert self.latest_us < command.expires_at_us, "started after its expiry"
        assert not self.killed, "started after a kill"
        assert command.epoch > self.killed_epoch, "an epoch that was killed acted"
        assert self.wall_us < self.state.lease_expires_wall_us, "started without a lease"
        assert command.epoch >= self.claimed, "an epoch acted after the claim of a higher one"
        self.applied[command.command_id] = self.applied.get(command.command_id, 0) + 1
        self.epochs.append(command.epoch)

    @rule()
    def commit(self) -> None:
        """Executor and fleet are saved together, as one transaction does it."""
        self.saved = (save(self.state), save(self.fleet.state))
        self.memory = (
            dict(self.applied), set(self.settled), list(self.epochs), self.claimed, self.latest_us,
        )  # fmt: skip

    @rule()
    def crash(self) -> None:
        """What was not saved has not happened."""
        self.state = load(ExecutorState, self.saved[0])
        self.fleet.state = load(MemoryFleetState, self.saved[1])
        applied, settled, epochs, self.claimed, self.latest_us = self.memory
        self.applied, self.settled, self.epochs = dict(applied), set(settled), list(epochs)
        self._control(Kill(engaged=self.killed))  # The compacted topic is read again.

    @rule(minutes=st.sampled_from([0, 1, 9, 11, 75]))
    def wait(self, minutes: int) -> None:
        self.now_us += minutes * MINUTE_US
        self.wall_us += minutes

    @rule(
        target=commands,
        pool=st.sampled_from(POOLS),
        lag=st.sampled_from([0, 0, 0, -1, 1]),
        older=st.sampled_from([0, 0, 0, 1]),
    )
    def decide_and_deliver(self, pool: str, lag: int, older: int) -> Command:
        """The usual course: a view of now, a living lease, a command that arrives."""
        self._control(KillLease(expires_wall_us=self.wall_us + 5))
        command = self.decide(pool=pool, lag=lag, nodes=5, older=older)
        self.deliver(command)
        return command

    @rule()
    def clock_goes_back(self) -> None:
        self.now_us = max(0, self.now_us - 20 * MINUTE_US)

    @rule()
    def take_over(self) -> None:
        self.epoch += 1
        self.claimed = self.epoch
        self._control(Claim(owner="another", epoch=self.epoch))

    @rule()
    def kill(self) -> None:
        self.killed, self.killed_epoch = True, max(self.killed_epoch, self.state.epoch)
        self._control(Kill(engaged=True))
        self.commit()

    @rule()
    def clear(self) -> None:
        self.killed = False
        self._control(Kill(engaged=False))

    @rule()
    def renew(self) -> None:
        self._control(KillLease(expires_wall_us=self.wall_us + 50))

    @rule(broken=st.booleans())
    def break_fleet(self, broken: bool) -> None:
        self.fleet.state.broken = broken

    def _control(self, body: Kill | KillLease | Claim) -> None:
        executor.control(self.state, Control(fleet="test", by="me", body=body), self.wall_us)

    @invariant()
    def nothing_was_done_twice(self) -> None:
        assert all(times == 1 for times in self.applied.values())

    @invariant()
    def epochs_only_rise(self) -> None:
        assert self.epochs == sorted(self.epochs)

    @invariant()
    def each_effect_raised_one_generation(self) -> None:
        raised = sum(pool.generation for pool in self.fleet.state.pools.values())
        assert raised == len(self.applied)


TestExecutorMachine = ExecutorMachine.TestCase
TestExecutorMachine.settings = settings(max_examples=150, stateful_step_count=40)
