"""What the decider remembers of a pool, and what it must not forget before its time."""

import pytest

from builders import START_US, pool_state
from decider_loop import replace
from gpuloop.actuators.envelope import EnvelopeConfig, EnvelopeState, migration_budget, stop_budget
from gpuloop.loop.decide.memory import (
    MAX_CHANGES,
    PEAK_WINDOW_US,
    Change,
    PoolMemory,
    envelope_view,
    forget,
    remember,
)
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

POOL = pool_state()
HUGE = 10**6


def view(memory: PoolMemory, *virtual: str) -> EnvelopeState:
    return envelope_view([memory], [frozenset(virtual)], [False], [0])


def changes(actuator: str, count: int, **fields: int) -> list[Change]:
    return [
        Change(at_us=START_US + index, command_id=f"{index:064}", actuator=actuator, **fields)
        for index in range(count)
    ]


@pytest.mark.parametrize("log", ["changes", "virtual"])
def test_a_change_is_remembered_for_the_whole_window_however_many_follow_it(log: str):
    memory = PoolMemory(latest=POOL)
    setattr(memory, log, changes("scaling", 1, stopped=5) + changes("migration", 2 * MAX_CHANGES))
    shadow = ("scaling", "migration") if log == "virtual" else ()
    forget(memory, START_US + HOUR_US - 1, HOUR_US)
    assert view(memory, *shadow).stopped.tolist() == [5.0]
    forget(memory, START_US + 2 * HOUR_US, HOUR_US)
    assert getattr(memory, log) == []


def test_more_changes_than_can_be_told_leave_no_budget_of_any_size():
    memory = PoolMemory(latest=POOL, changes=changes("scaling", MAX_CHANGES, stopped=1))
    seen = view(memory)
    assert seen.stopped[0] > stop_budget(seen.stopped * 0 + HUGE, EnvelopeConfig())[0]
    assert seen.started[0] > HUGE
    memory.changes = changes("migration", MAX_CHANGES)
    assert view(memory).migrated[0] > migration_budget(seen.stopped * 0 + HUGE, EnvelopeConfig())[0]
    assert view(memory).stopped[0] == 0.0


@pytest.mark.parametrize("every_us", [SECOND_US, 10 * SECOND_US, MINUTE_US])
def test_the_peak_of_demand_holds_for_its_window_at_any_rate_of_ticks(every_us: int):
    memory = PoolMemory(latest=POOL)
    remember(memory, replace(POOL, gpus_allocated=500))
    for at_us in range(every_us, PEAK_WINDOW_US, every_us):
        remember(memory, replace(POOL, tick_us=START_US + at_us))
    assert max(one.demand_gpus for one in memory.samples) == 500
    assert len(memory.samples) <= PEAK_WINDOW_US // MINUTE_US + 1
    for at_us in range(PEAK_WINDOW_US, PEAK_WINDOW_US + 2 * MINUTE_US, every_us):
        remember(memory, replace(POOL, tick_us=START_US + at_us))
    assert max(one.demand_gpus for one in memory.samples) == 100
