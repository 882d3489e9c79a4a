"""Only a clock that goes on as a world's clock does moves fleet time; a forged one does not."""

import pytest

from gpuloop.loop.shells.clock import REACH_US
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.timekeeping import (
    BORNE_OUT_US,
    NEWEST,
    Timekeeper,
    newest_anchors,
)
from gpuloop.schemas.codec import encode
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

WALL_US = 1_700_000_000_000_000
START_US = 1_508_112_000_000_000
YEAR_US = 365 * 24 * HOUR_US
SPEED = 60.0


def anchor(
    wall_s: float, *, fleet_us: int | None = None, speed: float = SPEED, world: str = "w"
) -> ClockAnchor:
    """Return the anchor that an honest world publishes at that second, or one with differences."""
    honest_us = START_US + round(SPEED * wall_s * SECOND_US)
    return ClockAnchor(
        fleet="local",
        world=world,
        anchor_us=honest_us if fleet_us is None else fleet_us,
        anchor_wall_us=WALL_US + round(wall_s * SECOND_US),
        speed=speed,
    )


def at(seconds: float) -> int:
    return WALL_US + round(seconds * SECOND_US)


def honest_us(seconds: float) -> int:
    return START_US + round(SPEED * seconds * SECOND_US)


def now_us(keeper: Timekeeper, seconds: float) -> int:
    assert keeper.clock is not None
    return keeper.clock.now_us(at(seconds))


def running(seconds: int = 60) -> Timekeeper:
    """Return a keeper that has heard a world for so long."""
    keeper = Timekeeper()
    for second in range(0, seconds + 1, 10):
        assert keeper.hear(anchor(second), at(second))
    return keeper


FORGED = {
    "of the year 10031": anchor(61, fleet_us=254_400_000_000_000_000),
    "years ahead": anchor(61, fleet_us=START_US + 30 * YEAR_US),
    "an hour ahead": anchor(61, fleet_us=honest_us(61) + HOUR_US),
    "years back": anchor(61, fleet_us=START_US - 30 * YEAR_US),
    "as fast as can be": anchor(61, speed=100_000.0),
    "of another world": anchor(61, fleet_us=START_US + YEAR_US, world="x"),
    "stamped long ago": anchor(0, fleet_us=honest_us(61)),
    "stamped years ahead": anchor(61 + 1e8, fleet_us=honest_us(61)),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_clock_that_departs_from_the_one_that_is_followed_does_not_move_time(
    forged: ClockAnchor,
) -> None:
    keeper = running()
    assert not keeper.hear(forged, at(61))
    assert now_us(keeper, 62) == honest_us(62)
    assert keeper.hear(anchor(70), at(70))
    assert now_us(keeper, 75) == honest_us(75)


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_start_passes_a_forged_last_anchor_over_for_the_line_before_it(
    forged: ClockAnchor,
) -> None:
    keeper = Timekeeper()
    keeper.open([anchor(40), anchor(50), anchor(60), forged], at(62))
    assert now_us(keeper, 62) == honest_us(62)


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_start_passes_over_a_forged_anchor_that_is_the_oldest_left(forged: ClockAnchor) -> None:
    keeper = Timekeeper()
    keeper.open([forged, anchor(70), anchor(80)], at(82))
    assert now_us(keeper, 82) == honest_us(82)


def test_forged_anchors_that_agree_do_not_win_while_the_world_speaks() -> None:
    keeper = running(0)
    for second in range(1, 200):
        forged = anchor(second, fleet_us=honest_us(second) + YEAR_US)
        assert not keeper.hear(forged, at(second))
        if second % 10 == 0:
            assert keeper.hear(anchor(second), at(second))
    assert now_us(keeper, 199) == honest_us(199)


def test_many_small_steps_ahead_take_a_clock_no_further_than_half_its_speed() -> None:
    keeper = running(0)
    ahead_us = 0
    for tenth in range(1, 100):
        ahead_us += 10 * MINUTE_US
        keeper.hear(anchor(tenth / 10, fleet_us=honest_us(tenth / 10) + ahead_us), at(tenth / 10))
    assert now_us(keeper, 10) == honest_us(10)


@pytest.mark.parametrize(
    "change",
    [{"world": "x", "fleet_us": START_US}, {"speed": 600.0}, {"fleet_us": START_US - YEAR_US}],
    ids=["another world", "a higher speed", "a world from a backup"],
)
def test_what_is_borne_out_while_the_old_clock_is_silent_is_followed(
    change: dict[str, object],
) -> None:
    keeper = running()
    speed = float(str(change.get("speed", SPEED)))
    begin_us = int(str(change.get("fleet_us", honest_us(70))))
    for second in range(70, 70 + BORNE_OUT_US // SECOND_US, 10):
        fleet_us = begin_us + round(speed * (second - 70) * SECOND_US)
        assert not keeper.hear(anchor(second, **{**change, "fleet_us": fleet_us}), at(second))  # type: ignore[arg-type]
    second = 70 + BORNE_OUT_US // SECOND_US
    fleet_us = begin_us + round(speed * (second - 70) * SECOND_US)
    last = anchor(second, **{**change, "fleet_us": fleet_us})  # type: ignore[arg-type]
    assert keeper.hear(last, at(second))
    assert keeper.clock is not None
    assert keeper.clock.anchor == last


def test_a_world_that_stood_for_a_night_goes_on_at_once() -> None:
    keeper = running()
    assert keeper.hear(anchor(65, speed=0.0), at(65))
    morning = 65 + 8 * 3600
    assert now_us(keeper, morning) == honest_us(65)
    assert keeper.hear(anchor(morning, fleet_us=honest_us(65)), at(morning))
    assert now_us(keeper, morning + 1) == honest_us(66)


def test_a_world_that_died_resumes_a_little_back_and_is_followed_at_once() -> None:
    keeper = running()
    resumed = anchor(90, fleet_us=honest_us(60) - 5 * MINUTE_US)
    assert keeper.hear(resumed, at(90))
    assert keeper.clock is not None
    assert keeper.clock.anchor == resumed


def test_a_clock_set_back_a_few_seconds_is_the_same_clock() -> None:
    assert running().hear(anchor(67, fleet_us=honest_us(70)), at(67))


def test_an_old_anchor_does_not_make_a_night_without_power_pass() -> None:
    keeper = Timekeeper()
    keeper.open([anchor(50), anchor(60)], at(8 * 3600))
    assert now_us(keeper, 8 * 3600) == honest_us(60) + round(SPEED * REACH_US)


def test_the_newest_anchors_of_a_fleet_are_found_among_those_of_others() -> None:
    broker = MemoryBroker()
    for second in range(0, 400, 10):
        for fleet in ("local", "other"):
            message = ClockAnchor(
                fleet=fleet, world=fleet, anchor_us=second, anchor_wall_us=second, speed=1.0
            )
            event_id = f"{fleet}/{second}"
            record = encode("telemetry.clock", fleet, message, event_id=event_id, source="test")
            broker.produce([record])
    found = newest_anchors(broker, "local")
    assert [one.anchor_us for one in found] == list(range(400 - 10 * NEWEST, 400, 10))
