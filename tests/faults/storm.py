"""A small world in its real shell, SQLite file included, under a storm of commands and deaths.

A rogue decider sends commands made for the present, an older and a later generation, late and
again; the kill switch and its lease come and go; the process dies at any step and inside the
transaction. A death leaves the files as they were on the disk at that moment, as SIGKILL does.
Time is a wall clock that the storm moves; everything follows from the seed.
"""

import functools
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gpuloop.actuators.commands import Origin, Tariff, scale
from gpuloop.loop.services import keeper
from gpuloop.loop.services.twin_fleet import TwinFleet, TwinState
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.fold import Executed, encode_outputs
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.store import Store
from gpuloop.loop.shells.transactional import TransactionalShell, WorldConfig
from gpuloop.schemas.codec import Encoded, decode, encode
from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import decision_id
from gpuloop.schemas.messages import Command, Control, Outcome
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import ControlBody, scope
from gpuloop.schemas.units import SECOND_US
from gpuloop.twin.config import PoolConfig, TwinConfig

WALL_US = 1_700_000_000_000_000
SPEED = 60.0
NODES = 8
TARIFF = Tariff(gpus_per_node=8, on_demand_usd_per_hour=29.0, spot_usd_per_hour=12.0)
STEPS = ("stepped", "committed", "sent", "appending")
MEMORY = Path("/dev/shm")
"""Where there is one, the file lies in memory: what is asked of it is order, not endurance."""
OUTCOMES = Partition("actions.outcomes", 0)


class Died(BaseException):
    """The process is no more."""


def quiet_pool(name: str) -> PoolConfig:
    return PoolConfig(
        name=name, gpu_model="a100", billings=("on_demand",), on_demand_nodes=NODES,
        nodes_min=1, nodes_max=32, quote_over_list=1.3,
    )  # fmt: skip


CONFIG = TwinConfig(
    seed=1,
    pools=(quiet_pool("a"), quiet_pool("b")),
    services=(),
    arrival_share=0.0,
    fault_rate_factor=0.0,
    gpu_sample_every_us=0,
)


@functools.cache
def fleet() -> TwinFleet:
    """Return the one world that all storms begin anew."""
    return TwinFleet(CONFIG, None, "generator:steady")


class Silent:
    """A watcher who keeps nothing."""

    def resumed(self, world: str, now_us: int, *, unsent: int) -> None:
        pass

    def stepped(
        self, executed: Executed[Any], positions: dict[Partition, int], now_us: int, *, records: int
    ) -> None:
        pass

    def reanchored(self, lag_us: int) -> None:
        pass


@dataclass
class Effect:
    """A change of the world: which pool's generation rose, and when by the wall clock."""

    pool: str
    generation: int
    wall_us: int


@dataclass
class Storm:
    """One world, its broker, its file and its bad luck. Use `storm` to make one."""

    folder: Path
    rng: np.random.Generator
    broker: MemoryBroker
    wall_us: int = WALL_US
    commands: list[Command] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    deaths: int = 0
    doomed: str = ""
    """The step at which the process will die next, once it has passed it `luck` times."""
    luck: int = 0

    def start(self) -> None:
        """Start the process on what its predecessor left on the disk."""
        self.store: Store = _Dying(self.folder / "world.sqlite", self)
        self.shell: TransactionalShell[TwinState] = TransactionalShell(
            fleet(),
            self.broker,
            self.store,
            WorldConfig(fleet="local", seed=1, start_us=fleet().world.start_us, speed=SPEED),
            Silent(),
            wall=lambda: self.wall_us,
            failpoint=self.reach,
        )
        self.shell.open()

    def reach(self, step: str) -> None:
        """Die here, if this is the step and the time has come."""
        if step != self.doomed:
            return
        self.luck -= 1
        if self.luck <= 0:
            self.doomed = ""
            (self.folder / "disk").mkdir()
            for file in self.folder.glob("world.sqlite*"):
                shutil.copy(file, self.folder / "disk")
            raise Died

    def step(self, wall_seconds: float = 0.1) -> None:
        """Let time pass and the process take one step; raise it again if it dies of it."""
        self.wall_us += round(wall_seconds * SECOND_US)
        before = self.generations()
        try:
            self.shell.advance()
        except Died:
            self.deaths += 1
            self.wall_us += int(self.rng.integers(0, 60)) * SECOND_US
            self.rise()
        for pool, generation in self.generations().items():
            if generation > before[pool]:
                self.effects.append(Effect(pool, generation, self.wall_us))

    def rise(self) -> None:
        """Start again on the files as they were on the disk at the moment of death."""
        self.store.close()
        for file in self.folder.glob("world.sqlite*"):
            file.unlink()
        for file in (self.folder / "disk").iterdir():
            file.rename(self.folder / file.name)
        (self.folder / "disk").rmdir()
        self.start()

    def generations(self) -> dict[str, int]:
        """Return how often each pool was scaled, as the process knows it."""
        pools = self.shell.state.world.pools
        return {name: pool.scaling_generation for name, pool in pools.items()}

    def command(self, pool: str, generation: int, *, nodes: int, epoch: int = 1) -> Command:
        """Return a new command of the rogue decider."""
        now_us = fleet().world.now_us
        origin = Origin(
            fleet="local",
            decision_id=decision_id("local", pool, "cluster", epoch, len(self.commands)),
            pool=pool,
            epoch=epoch,
            now_us=now_us,
        )
        made = scale(
            origin,
            before=ScaleTo(on_demand_nodes=NODES, spot_nodes=0),
            to=ScaleTo(on_demand_nodes=nodes, spot_nodes=0),
            generation=generation,
            tariff=TARIFF,
            mode="auto",
            reason="storm",
        )
        self.commands.append(made)
        return made

    def send(self, command: Command) -> None:
        """Put a command on its topic."""
        self.broker.produce([command_record(command)])

    def control(self, body: ControlBody) -> None:
        """Let a person say something."""
        self.broker.produce([control_record(body, self.wall_us)])

    def renew(self) -> None:
        """Let the keeper renew the lease."""
        self.broker.produce([keeper.lease("local", self.wall_us)])

    def outcomes(self) -> dict[str, dict[str, Outcome]]:
        """Return by command what was said of it, the first of each id."""
        found: dict[str, dict[str, Outcome]] = defaultdict(dict)
        for record in self.broker.logs[OUTCOMES]:
            outcome = decode(record)
            assert isinstance(outcome, Outcome)
            found[outcome.command_id].setdefault(record.header("ce_id") or "", outcome)
        return found


class _Dying(Store):
    """The store, in which a process can die between two rows of the outbox."""

    def __init__(self, path: Path, owner: Storm) -> None:
        super().__init__(path)
        self._owner = owner

    def _append(self, output: Encoded) -> int:
        self._owner.reach("appending")
        return super()._append(output)


def command_record(command: Command) -> Encoded:
    """Return a command as a decider's record."""
    output = Output(
        topic="actions.scaling",
        key=command.target,
        message=command,
        event_id=command.command_id,
        time_us=command.issued_at_us,
    )
    return encode_outputs([output], "storm")[0]


def control_record(body: ControlBody, wall_us: int) -> Encoded:
    """Return a control as a person's record."""
    message = Control(fleet="local", by="me", body=body)
    return encode("controls", scope(body), message, event_id=f"me/{wall_us}", source="test")


@contextmanager
def storm(seed: int) -> Iterator[Storm]:
    """Make a world on a broker and a file of its own, started and with a living lease."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        rng = np.random.Generator(np.random.Philox(seed))
        made = Storm(Path(folder), rng, MemoryBroker(wall=lambda: made.wall_us))
        made.renew()
        made.start()
        try:
            yield made
        finally:
            made.shell.close()
            made.store.close()


def rage(world: Storm, steps: int) -> None:
    """Do `steps` random things to a world, then let it settle in peace."""
    rng = world.rng
    held: list[Command] = []
    for _ in range(steps):
        pool = ("a", "b")[rng.integers(2)]
        match rng.choice(["new", "again", "late", "die", "pause", "renew", "wait"]):
            case "new":
                lag = int(rng.choice([0, 0, 0, 1, -1]))
                generation = max(0, world.generations()[pool] + lag)
                made = world.command(pool, generation, nodes=int(rng.integers(1, 32)))
                if rng.random() < 0.3:
                    held.append(made)
                else:
                    world.send(made)
            case "again" if world.commands:
                world.send(world.commands[rng.integers(len(world.commands))])
            case "late" if held:
                world.send(held.pop(rng.integers(len(held))))
            case "die" if not world.doomed:
                world.doomed, world.luck = str(rng.choice(STEPS)), int(rng.integers(1, 4))
            case "pause":
                world.wall_us += int(rng.integers(1, 50)) * SECOND_US
            case "wait":
                for _ in range(int(rng.integers(1, 15))):
                    world.step(1.0)
            case "renew":
                world.renew()
        world.step()
    world.doomed = ""
    world.renew()
    for _ in range(5):
        world.step()
