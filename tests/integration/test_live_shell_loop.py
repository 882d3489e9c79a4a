"""The real components on one broker in memory: they die, go on, and replay to the same bytes."""

from pathlib import Path
from typing import Any

import pytest
from echo import Silent

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.replay.player import replay
from gpuloop.loop.replay.record import record
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.services.causes import Diagnosis
from gpuloop.loop.services.forecaster import Foresight
from gpuloop.loop.services.keeper import lease
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.fold import encode_outputs, receive, source_of
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.store import Store
from gpuloop.loop.shells.transactional import TransactionalShell, WorldConfig
from gpuloop.schemas.codec import decode
from gpuloop.schemas.component import Component, Output
from gpuloop.schemas.messages import Control, Outcome
from gpuloop.schemas.messages.control import SetMode, scope
from gpuloop.schemas.units import MINUTE_US, SECOND_US
from gpuloop.streams.features.fold import over
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import TwinConfig

WALL_US = 1_700_000_000_000_000
FLEET = "local"
SEED = 11
MINUTES = 90


def components() -> dict[str, Component[Any]]:
    found: list[Component[Any]] = [
        Observe(FLEET),
        Foresight(FLEET),
        Diagnosis(FLEET),
        Decider(FLEET),
        Evaluator(),
    ]
    return {component.name: component for component in found}


class WorldWatcher:
    def resumed(self, world: str, now_us: int, *, unsent: int) -> None:
        pass

    def stepped(self, *arguments: object, **named: object) -> None:
        pass

    def reanchored(self, lag_us: int) -> None:
        raise AssertionError("the world fell behind")


class Loop:
    """Every process of the loop, and a wall clock that the test moves a second at a time."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.now_us = WALL_US
        config = TwinConfig(
            seed=SEED, gpu_sample_every_us=MINUTE_US, start_us=1_508_162_400_000_000
        )
        fleet = TwinFleet(config, None, "generator:bursty")
        self.store = Store(folder / "world.sqlite")
        self.world = TransactionalShell(
            fleet,
            self.broker,
            self.store,
            WorldConfig(fleet=FLEET, seed=SEED, start_us=fleet.world.start_us, speed=60.0),
            WorldWatcher(),
            wall=lambda: self.now_us,
        )
        self.world.open()
        self.shells: dict[str, LiveShell[Any]] = {}
        self.watchers: dict[str, Silent] = {}
        self.grant()
        for name in components():
            self.start(name)

    def grant(self) -> None:
        modes = [SetMode(pool="*", actuator=a, mode="auto") for a in ("scaling", "migration")]
        controls = [
            Output(
                topic="controls",
                key=scope(body),
                message=Control(fleet=FLEET, by="test", body=body),
                event_id=scope(body),
                time_us=0,
            )
            for body in modes
        ]
        self.broker.produce(encode_outputs(controls, "test"))

    def start(self, name: str) -> None:
        """Start a process, or start it again without its predecessor having said goodbye."""
        self.watchers[name] = Silent()
        self.shells[name] = LiveShell(
            components()[name],
            self.broker,
            LiveConfig(
                fleet=FLEET, seed=SEED, run=f"{name}/{self.now_us}", poll_us=1, max_records=97
            ),
            self.watchers[name],
            wall=lambda: self.now_us,
        )
        self.shells[name].open()

    def second(self) -> None:
        self.now_us += SECOND_US
        self.broker.produce([lease(FLEET, self.now_us)])
        self.world.advance()
        for _ in range(3):
            for shell in self.shells.values():
                while shell.advance():
                    pass


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, Recording]:
    folder = tmp_path_factory.mktemp("loop")
    loop = Loop(folder)
    names = list(components())
    for second in range(MINUTES):
        loop.second()
        if second % 9 == 8:
            loop.start(names[second // 9 % len(names)])
    record(loop.broker, folder / "r", fleet=FLEET, settings={"seed": str(SEED)})
    loop.store.close()
    return loop, Recording(folder / "r")


def test_a_restarted_process_agrees_with_its_journal(played: tuple[Loop, Recording]) -> None:
    loop, _ = played
    assert [watcher.disagreed for watcher in loop.watchers.values()] == [0] * len(components())
    assert sum(watcher.followed for watcher in loop.watchers.values()) > 0


def test_commands_are_applied_and_none_twice(played: tuple[Loop, Recording]) -> None:
    loop, _ = played
    logs = [log for part, log in loop.broker.logs.items() if part.topic == "actions.outcomes"]
    outcomes = [decode(record) for log in logs for record in log]
    applied = [o.command_id for o in outcomes if isinstance(o, Outcome) and o.status == "applied"]
    assert applied
    assert len(applied) == len(set(applied))


@pytest.mark.parametrize("name", list(components()))
def test_a_component_replays_to_the_same_bytes(played: tuple[Loop, Recording], name: str) -> None:
    _, recording = played
    report = replay(recording, components()[name])
    assert report.identical, report.first_difference
    assert report.cuts >= MINUTES
    if name != "causes":  # On a quiet day it has nothing to say.
        assert report.equal >= MINUTES


def test_features_computed_offline_equal_those_told_online(
    played: tuple[Loop, Recording],
) -> None:
    loop, recording = played
    states = [receive(r, FLEET) for r in recording.records(Partition("state.pools", 0))]
    offline = encode_outputs(list(over(states)), source_of(FLEET, Foresight.name))
    online = loop.broker.logs[Partition("insight.features", 0)]
    assert len(online) > 3 * MINUTES
    told = {record.header("ce_id"): (record.key, record.value) for record in online}
    made = {dict(e.headers)["ce_id"].decode(): (e.key, e.value) for e in offline}
    assert list(made.items()) == list(told.items())
