"""A story told to a live shell whose wall clock the test sets."""

from collections.abc import Sequence

from echo import FLEET, START_US, Echo, EchoState, Silent, anchor, fault_output, weights_output

from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.fold import Failpoint, encode_outputs, no_failpoint
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.schemas.codec import decode
from gpuloop.schemas.component import Component, Output
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import SECOND_US

WALL_US = 1_700_000_000_000_000
SPEED = 60.0
SEED = 7
ANOMALIES = Partition("insight.anomalies", 0)

Story = Sequence[tuple[int, Sequence[Output]]]
"""What arrives from outside, by second of fleet time since the start."""

STORY: Story = (
    (10, [fault_output(n) for n in range(5)]),
    (30, [weights_output(b"weights" * 100)]),
    (59, [fault_output(5, node="n2"), fault_output(6, node="n2")]),
    (61, []),
    (65, [fault_output(7)]),
    (185, []),
    (200, [fault_output(n, node=f"n{n}") for n in range(8, 30)]),
    (245, []),
)


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now_us = WALL_US

    def __call__(self) -> int:
        return self.now_us


class Stage:
    """A broker with a fleet clock, and a live shell on it that may die and be started again."""

    def __init__(self, broker: Broker, *, component: Component[EchoState] | None = None) -> None:
        self.broker = broker
        self.wall = Wall()
        self.component = component or Echo()
        self.watcher = Silent()
        self.runs = 0
        broker.produce([anchor(wall_us=WALL_US, speed=SPEED)])

    def start(self, *, failpoint: Failpoint = no_failpoint, **config: int) -> LiveShell[EchoState]:
        """Open a new shell, as a restarted process would."""
        self.runs += 1
        self.watcher = Silent()
        self.shell = LiveShell(
            self.component,
            self.broker,
            LiveConfig(fleet=FLEET, seed=SEED, run=f"run-{self.runs}", poll_us=20_000, **config),
            self.watcher,
            wall=self.wall,
            failpoint=failpoint,
        )
        self.shell.open()
        return self.shell

    def tell(self, second: int, outputs: Sequence[Output]) -> None:
        """Let it be that second of fleet time and write what arrives then."""
        self.wall.now_us = WALL_US + round(second * SECOND_US / SPEED)
        self.broker.produce(encode_outputs(outputs, "test"))

    def settle(self) -> None:
        """Advance until everything is consumed and nothing more happens."""
        ends = self.broker.ends(list(self.shell.saved.positions))
        for _ in range(200):
            if not self.shell.advance() and self.shell.saved.positions == ends:
                return
        raise AssertionError(f"still at {self.shell.saved.positions}, not {ends}")


def play(broker: Broker, story: Story, **config: int) -> Stage:
    """Tell the whole story to a live shell, waiting until each part of it is consumed."""
    stage = Stage(broker)
    stage.start(**config)
    for second, outputs in story:
        stage.tell(second, outputs)
        stage.settle()
    stage.shell.close()
    return stage


def written(broker: Broker) -> list[tuple[str, Message]]:
    end = broker.ends([ANOMALIES])[ANOMALIES]
    records = read_between(broker, ANOMALIES, 0, end)
    return [(r.header("ce_id") or "", decode(r)) for r in records]


def simulated(story: Story) -> list[tuple[str, Message]]:
    simulation = Simulation([Echo()], seed=SEED, start_us=START_US, speed=SPEED)
    outputs = simulation.collect("insight.anomalies")
    for second, arriving in story:
        simulation.run(START_US + second * SECOND_US)
        simulation.send(arriving)
    return [(m.id, m.message) for m in outputs if m.message is not None]
