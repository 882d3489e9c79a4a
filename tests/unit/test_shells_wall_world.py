"""A real fleet's clock is the wall's, kept by one of those who could, and never put into a twin."""

import pytest

from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.timekeeping import CLOCK, Timekeeper, newest_anchors
from gpuloop.loop.shells.wall_world import (
    ANCHOR_EVERY_US,
    FIRST_SPREAD_US,
    SILENCE_US,
    SPREAD_US,
    WORLD,
    WallWorld,
)
from gpuloop.schemas.codec import decode, encode
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import HOUR_US, SECOND_US

WALL_US = 1_700_000_000_000_000


class Scene:
    """Candidates on one broker under one clock that the test moves."""

    def __init__(self) -> None:
        self.now_us = WALL_US
        self.broker = MemoryBroker(wall=lambda: self.now_us)
        self.running: dict[str, WallWorld] = {}

    def start(self, name: str) -> WallWorld:
        world = WallWorld(
            self.broker, "f", name, wall_us=lambda: self.now_us, monotonic_us=lambda: self.now_us
        )
        world.open()
        self.running[name] = world
        return world

    def pass_time(self, elapsed_us: int) -> None:
        """Let everybody who runs listen and speak, ten times a second."""
        for _ in range(elapsed_us // 100_000):
            self.now_us += 100_000
            for world in self.running.values():
                world.advance(0)

    def said(self) -> list[ClockAnchor]:
        messages = [decode(record) for record in self.broker.logs[CLOCK]]
        return [one for one in messages if isinstance(one, ClockAnchor)]

    def anchor(self, *, world: str, speed: float, at_us: int) -> None:
        message = ClockAnchor(
            fleet="f", world=world, anchor_us=at_us, anchor_wall_us=self.now_us, speed=speed
        )
        name = f"clock/{self.now_us}"
        record = encode("telemetry.clock", "f", message, event_id=name, source="t")
        self.broker.produce([record])


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_an_empty_topic_soon_has_the_wall_clock_at_speed_one(scene: Scene) -> None:
    scene.start("n1")
    scene.pass_time(FIRST_SPREAD_US + SECOND_US)
    first = scene.said()[0]
    assert (first.world, first.speed, first.anchor_us) == (WORLD, 1.0, first.anchor_wall_us)


def test_one_of_many_keeps_the_clock_and_at_its_pace(scene: Scene) -> None:
    for number in range(20):
        scene.start(f"n{number}")
    scene.pass_time(FIRST_SPREAD_US + SECOND_US)
    before = len(scene.said())
    scene.pass_time(20 * ANCHOR_EVERY_US)
    assert 18 <= len(scene.said()) - before <= 21


def test_another_takes_over_when_the_keeper_is_gone(scene: Scene) -> None:
    for number in range(5):
        scene.start(f"n{number}")
    scene.pass_time(HOUR_US // 60)
    (keeper,) = [
        name for name, world in scene.running.items() if scene.broker.logs[CLOCK][-1].header(
            "ce_id"
        ) == world._mine
    ]  # fmt: skip
    del scene.running[keeper]
    before = len(scene.said())
    scene.pass_time(SILENCE_US + SPREAD_US + SECOND_US)
    assert len(scene.said()) > before


def test_all_that_was_said_is_one_line_to_a_follower(scene: Scene) -> None:
    for number in range(5):
        scene.start(f"n{number}")
    keeper = Timekeeper()
    for _ in range(3):
        scene.pass_time(30 * SECOND_US)
        scene.running.pop(next(iter(scene.running)))
        scene.pass_time(40 * SECOND_US)
    assert all(keeper.hear(anchor, scene.now_us) for anchor in scene.said())


def test_a_fleet_on_a_twins_clock_is_told_of_and_left_alone(scene: Scene) -> None:
    scene.anchor(world="twin", speed=60.0, at_us=WALL_US - 100 * HOUR_US)
    world = scene.start("n1")
    scene.pass_time(10 * SILENCE_US)
    assert world.elsewhere == "the clock of world twin at speed 60"
    assert [anchor.world for anchor in newest_anchors(scene.broker, "f")] == ["twin"]


def test_a_present_that_another_keeps_under_another_name_is_not_spoken_over(scene: Scene) -> None:
    scene.anchor(world="ntp", speed=1.0, at_us=WALL_US)
    world = scene.start("n1")
    scene.pass_time(10 * SILENCE_US)
    assert world.elsewhere is None
    assert {anchor.world for anchor in scene.said()} == {"ntp"}


def test_the_clock_goes_on_after_everybody_was_away_for_hours(scene: Scene) -> None:
    scene.start("n1")
    scene.pass_time(20 * SECOND_US)
    scene.running.clear()
    scene.now_us += 5 * HOUR_US
    scene.start("n2")
    scene.pass_time(SILENCE_US + SPREAD_US + SECOND_US)
    assert scene.said()[-1].anchor_us > WALL_US + 5 * HOUR_US
    keeper = Timekeeper()
    assert all(keeper.hear(anchor, scene.now_us) for anchor in scene.said())
