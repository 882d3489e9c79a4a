"""Fleet time follows its anchor and never runs backwards within a world."""

import pytest

from gpuloop.loop.shells.clock import REACH_US, FleetClock
from gpuloop.loop.shells.fold import MAX_TICKS, due_ticks
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

WALL_US = 1_700_000_000_000_000


def anchor(
    *, fleet_us: int = 0, wall_us: int = WALL_US, speed: float = 60.0, world: str = "w"
) -> ClockAnchor:
    return ClockAnchor(
        fleet="local", world=world, anchor_us=fleet_us, anchor_wall_us=wall_us, speed=speed
    )


def test_fleet_time_is_anchor_plus_speed_times_elapsed() -> None:
    clock = FleetClock(anchor(fleet_us=HOUR_US))
    assert clock.now_us(WALL_US + SECOND_US) == HOUR_US + MINUTE_US
    assert clock.wall_at(HOUR_US + MINUTE_US) == WALL_US + SECOND_US


def test_a_wall_clock_that_steps_back_does_not_take_fleet_time_with_it() -> None:
    clock = FleetClock(anchor())
    later = clock.now_us(WALL_US + 10 * SECOND_US)
    assert clock.now_us(WALL_US - HOUR_US) == later


def test_an_anchor_behind_the_clock_makes_it_wait_not_go_back() -> None:
    clock = FleetClock(anchor())
    reached = clock.now_us(WALL_US + 10 * SECOND_US)
    clock = clock.follow(anchor(wall_us=WALL_US + 10 * SECOND_US, fleet_us=MINUTE_US))
    assert clock.now_us(WALL_US + 11 * SECOND_US) == reached
    assert clock.now_us(WALL_US + 30 * SECOND_US) == 21 * MINUTE_US


def test_another_world_starts_at_its_own_time() -> None:
    clock = FleetClock(anchor(fleet_us=HOUR_US))
    clock.now_us(WALL_US)
    assert clock.follow(anchor(world="other")).now_us(WALL_US) == 0


def test_a_clock_that_stands_never_reaches_a_later_time() -> None:
    clock = FleetClock(anchor(speed=0.0))
    assert clock.now_us(WALL_US + HOUR_US) == 0
    assert clock.wall_at(MINUTE_US) > WALL_US + 1000 * HOUR_US


def test_a_clock_that_is_not_renewed_stands_and_nobody_waits_for_its_next_minute() -> None:
    clock = FleetClock(anchor())
    reached = clock.now_us(WALL_US + HOUR_US)
    assert reached == 60 * REACH_US
    assert clock.now_us(WALL_US + 2 * HOUR_US) == reached
    assert clock.wall_at(reached) == WALL_US + REACH_US
    assert clock.wall_at(reached + MINUTE_US) > WALL_US + 100 * HOUR_US


@pytest.mark.parametrize(
    ("after", "now", "ticks"),
    [
        (0, MINUTE_US - 1, ()),
        (0, MINUTE_US, (MINUTE_US,)),
        (MINUTE_US, MINUTE_US, ()),
        (MINUTE_US - 1, 3 * MINUTE_US, (MINUTE_US, 2 * MINUTE_US, 3 * MINUTE_US)),
    ],
)
def test_ticks_are_the_multiples_passed(after: int, now: int, ticks: tuple[int, ...]) -> None:
    assert due_ticks(after, now, MINUTE_US) == (ticks, 0)


def test_after_a_jump_the_newest_ticks_are_kept_and_the_others_counted() -> None:
    ticks, skipped = due_ticks(0, 100 * MINUTE_US, MINUTE_US)
    assert ticks == tuple(n * MINUTE_US for n in range(101 - MAX_TICKS, 101))
    assert skipped == 100 - MAX_TICKS


def test_a_component_without_ticks_gets_none() -> None:
    assert due_ticks(0, HOUR_US, 0) == ((), 0)
