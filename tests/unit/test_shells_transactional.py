"""The world's shell: one transaction a step, whatever dies, and a clock that stands meanwhile."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuloop.actuators.commands import Origin, Tariff, scale
from gpuloop.loop.services.keeper import lease
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.fold import Executed, encode_outputs
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.store import Store, StoreError
from gpuloop.loop.shells.transactional import TransactionalShell, WorldConfig
from gpuloop.schemas.codec import Encoded, Record, decode
from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import decision_id
from gpuloop.schemas.messages import ClockAnchor, Command, DeadLetter, Outcome
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.units import MINUTE_US, SECOND_US
from gpuloop.twin.config import TwinConfig

WALL_US = 1_700_000_000_000_000
CONFIG = TwinConfig(seed=3, fault_rate_factor=1.0)


class Died(BaseException):
    pass


class Watcher:
    def __init__(self) -> None:
        self.unsent = -1
        self.lags: list[int] = []

    def resumed(self, world: str, now_us: int, *, unsent: int) -> None:
        self.unsent = unsent

    def stepped(
        self, executed: Executed[Any], positions: dict[Partition, int], now_us: int, *, records: int
    ) -> None:
        pass

    def reanchored(self, lag_us: int) -> None:
        self.lags.append(lag_us)


class Stage:
    """A world on a broker in memory, with a wall clock that the test moves."""

    def __init__(self, folder: Path, *, config: TwinConfig = CONFIG) -> None:
        self.broker = MemoryBroker()
        self.path = folder / "world.sqlite"
        self.fleet = TwinFleet(config, None, "generator:steady")
        self.now_us = WALL_US
        self.store: Store | None = None
        self.broker.produce([lease("local", WALL_US)])

    def start(self, failpoint: Callable[[str], None] = lambda step: None) -> None:
        if self.store is not None:
            self.store.close()
        self.store = Store(self.path)
        self.watcher = Watcher()
        config = WorldConfig(fleet="local", seed=3, start_us=self.fleet.world.start_us, speed=60.0)
        self.shell = TransactionalShell(
            self.fleet,
            self.broker,
            self.store,
            config,
            self.watcher,
            wall=lambda: self.now_us,
            failpoint=failpoint,
        )
        self.shell.open()

    def pass_time(self, wall_seconds: float) -> None:
        for _ in range(round(wall_seconds * 10)):
            self.now_us += SECOND_US // 10
            self.shell.advance()

    def said(self) -> list[Record]:
        return [
            record
            for part, log in self.broker.logs.items()
            if part.topic.startswith(("telemetry.", "market.")) and part.topic != "telemetry.clock"
            for record in log
        ]

    def anchors(self) -> list[ClockAnchor]:
        log = self.broker.logs[Partition("telemetry.clock", 0)]
        return [m for m in map(decode, log) if isinstance(m, ClockAnchor)]

    def outcomes(self) -> dict[str, list[str]]:
        """Return the statuses said of each command, one for each id."""
        found: dict[str, dict[str, str]] = {}
        for record in self.broker.logs[Partition("actions.outcomes", 0)]:
            outcome = decode(record)
            assert isinstance(outcome, Outcome)
            by_id = found.setdefault(outcome.command_id, {})
            by_id[record.header("ce_id") or ""] = f"{outcome.status} {outcome.reason}"
        return {command: list(by_id.values()) for command, by_id in found.items()}


def order(stage: Stage, *, nodes: int, generation: int, tick: int = 0) -> Command:
    now_us = stage.fleet.world.now_us
    origin = Origin(
        fleet="local",
        decision_id=decision_id("local", "h100", "cluster", 1, now_us + tick),
        pool="h100",
        epoch=1,
        now_us=now_us,
    )
    return scale(
        origin,
        before=ScaleTo(on_demand_nodes=24, spot_nodes=0),
        to=ScaleTo(on_demand_nodes=nodes, spot_nodes=0),
        generation=generation,
        tariff=Tariff(gpus_per_node=8, on_demand_usd_per_hour=80.0, spot_usd_per_hour=30.0),
        mode="auto",
        reason="test",
    )


def send(stage: Stage, command: Command) -> None:
    output = Output(
        topic="actions.scaling",
        key=command.target,
        message=command,
        event_id=command.command_id,
        time_us=command.issued_at_us,
    )
    stage.broker.produce(encode_outputs([output], "test"))


def dies_at(step: str, occurrence: int) -> Callable[[str], None]:
    count = itertools.count(1)

    def failpoint(reached: str) -> None:
        if reached == step and next(count) == occurrence:
            raise Died

    return failpoint


def by_id(records: list[Record]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for record in records:
        value = record.value or b""
        assert found.setdefault(record.header("ce_id") or "", value) == value
    return found


def test_the_shell_says_what_the_world_says(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(5.0)
    reached_us = stage.fleet.world.now_us
    assert reached_us == stage.fleet.world.start_us + 5 * MINUTE_US
    alone = TwinFleet(CONFIG, None, "generator:steady").world
    expected = encode_outputs(alone.advance(reached_us), "x")
    assert by_id(stage.said()) == {
        dict(record.headers)["ce_id"].decode(): record.value for record in expected
    }


@pytest.mark.parametrize("occurrence", [1, 2, 9])
@pytest.mark.parametrize("step", ["stepped", "committed", "sent"])
def test_death_at_any_step_loses_and_changes_nothing_said(
    tmp_path: Path, step: str, occurrence: int
) -> None:
    stage = Stage(tmp_path)
    stage.start(dies_at(step, occurrence))
    with pytest.raises(Died):
        stage.pass_time(5.0)
    stage.start()
    stage.pass_time(3.0)
    alone = TwinFleet(CONFIG, None, "generator:steady").world
    expected = encode_outputs(alone.advance(stage.fleet.world.now_us), "x")
    assert by_id(stage.said()) == {
        dict(record.headers)["ce_id"].decode(): record.value for record in expected
    }


@pytest.mark.parametrize("step", ["stepped", "committed", "sent"])
def test_a_command_takes_effect_once_whatever_dies(tmp_path: Path, step: str) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(0.5)
    command = order(stage, nodes=26, generation=0)
    stage.start(dies_at(step, 1))
    send(stage, command)
    with pytest.raises(Died):
        stage.pass_time(1.0)
    stage.start()
    stage.pass_time(1.0)
    assert stage.outcomes() == {command.command_id: ["accepted ok", "applied ok"]}
    send(stage, command)  # A duplicate, long after.
    stage.pass_time(1.0)
    assert stage.outcomes() == {
        command.command_id: ["accepted ok", "applied ok", "rejected duplicate"]
    }
    target = stage.fleet.world.read("scaling", "h100")
    assert target is not None
    assert target.generation == 1
    assert target.state == ScaleTo(on_demand_nodes=26, spot_nodes=0)


def test_time_stands_while_the_process_is_down(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(2.0)
    before_us = stage.fleet.world.now_us
    stage.now_us += 3600 * SECOND_US
    stage.start()
    assert stage.anchors()[-1].anchor_us == before_us
    assert stage.anchors()[-1].anchor_wall_us == stage.now_us
    assert stage.anchors()[-1].world == stage.anchors()[0].world
    stage.pass_time(1.0)
    assert stage.fleet.world.now_us == before_us + MINUTE_US


def test_a_clean_stop_says_that_time_stands_and_leaves_nothing_to_send(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(2.0)
    stop = threading.Event()
    stop.set()
    stage.shell.run(stop)
    assert stage.anchors()[-1].speed == 0.0
    stage.start()
    assert stage.watcher.unsent == 0


def test_the_anchor_is_renewed_without_a_jump(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(21.0)
    anchors = stage.anchors()
    assert len(anchors) == 3
    for one, two in itertools.pairwise(anchors):
        assert two.anchor_us - one.anchor_us == 60 * (two.anchor_wall_us - one.anchor_wall_us)


def test_a_world_that_cannot_keep_up_sets_its_clock_back_and_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(1.0)
    before_us = stage.fleet.world.now_us
    stage.now_us += 600 * SECOND_US  # The process was suspended: ten hours of fleet time.
    stage.shell.advance()
    assert stage.fleet.world.now_us == before_us + MINUTE_US
    assert stage.watcher.lags == [599 * MINUTE_US]
    assert stage.anchors()[-1].anchor_us == before_us + MINUTE_US


def test_a_second_process_cannot_open_the_same_world(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    with pytest.raises(StoreError, match="locked"):
        Store(stage.path)


def test_a_fresh_world_owes_nothing_to_commands_of_another(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    send(stage, order(stage, nodes=30, generation=0))
    stage.start()
    stage.pass_time(1.0)
    assert stage.outcomes() == {}
    assert stage.shell.state.executor.lease_expires_wall_us > WALL_US


def test_a_fresh_world_on_the_topics_of_another_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)
    stage.start()
    assert "another world was here" not in caplog.text
    stage.store.close()
    stage.path.unlink()
    stage.start()
    assert "another world was here" in caplog.text


def test_a_world_does_not_go_on_under_another_configuration(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    stage.pass_time(0.5)
    stage.fleet = TwinFleet(TwinConfig(seed=4), None, "generator:steady")
    stage.start()
    with pytest.raises(ValueError, match="another configuration"):
        stage.pass_time(0.1)


def test_a_command_that_cannot_be_read_is_set_aside_and_the_world_goes_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.start()
    headers = (("ce_type", b"gpuloop.actions.command"),)
    bad = Encoded(topic="actions.scaling", key=b"h100", headers=headers, value=b'{"fleet":"local"}')
    stage.broker.produce([bad])
    stage.pass_time(1.0)
    [letter] = map(decode, stage.broker.logs[Partition("deadletters", 0)])
    assert isinstance(letter, DeadLetter)
    assert (letter.topic, letter.reason, letter.stage) == ("actions.scaling", "wrong_type", "twin")
    assert stage.fleet.world.now_us == stage.fleet.world.start_us + MINUTE_US
