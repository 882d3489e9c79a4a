"""Virtual time, deterministic order, seeded bad luck."""

from collections.abc import Sequence
from typing import ClassVar

import pytest

from gpuloop.loop.shells.simulation import Disturbance, Lag, Simulation
from gpuloop.schemas.component import Context, Event, Output, Received, State, Tick
from gpuloop.schemas.messages import ResourceSample
from gpuloop.schemas.units import MINUTE_US, SECOND_US


class Log(State):
    lines: list[str] = []


class Talker:
    """Says one thing on each tick, and repeats what it hears once."""

    name: ClassVar[str] = "talker"
    inputs: ClassVar[tuple[str, ...]] = ()
    state_version: ClassVar[int] = 1

    def __init__(self, name: str = "talker", every_us: int = MINUTE_US) -> None:
        self.name = name  # type: ignore[misc]
        self.state_type = Log
        self.tick_every_us = every_us

    def initial(self) -> Log:
        return Log()

    def step(self, state: Log, event: Event, ctx: Context) -> tuple[Log, Sequence[Output]]:
        assert isinstance(event, Tick)
        state.lines.append(str(event.tick_us))
        return state, [said(f"{self.name}/{event.tick_us}")]


class Listener:
    """Keeps what it hears."""

    name: ClassVar[str] = "listener"
    inputs: ClassVar[tuple[str, ...]] = ("telemetry.resources",)
    state_version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.state_type = Log
        self.tick_every_us = MINUTE_US

    def initial(self) -> Log:
        return Log()

    def step(self, state: Log, event: Event, ctx: Context) -> tuple[Log, Sequence[Output]]:
        heard = event.id if isinstance(event, Received) else f"tick {event.tick_us}"
        state.lines.append(f"{heard} at {ctx.now_us}")
        return state, ()


def said(id_: str) -> Output:
    message = ResourceSample(
        fleet="local",
        resource="r",
        kind="storage",
        event_time_us=0,
        boot=1,
        seq=1,
        pool="h100",
        load=0.0,
        capacity=1.0,
    )
    return Output(topic="telemetry.resources", key="r", message=message, event_id=id_, time_us=0)


def heard(simulation: Simulation) -> list[str]:
    state = simulation.states["listener"]
    assert isinstance(state, Log)
    return state.lines


def test_what_a_tick_causes_is_delivered_before_the_next_component_ticks() -> None:
    simulation = Simulation([Talker(), Listener()], seed=1, start_us=0)
    simulation.run(2 * MINUTE_US)
    assert heard(simulation) == [
        f"talker/{MINUTE_US} at {MINUTE_US}",
        f"tick {MINUTE_US} at {MINUTE_US}",
        f"talker/{2 * MINUTE_US} at {2 * MINUTE_US}",
        f"tick {2 * MINUTE_US} at {2 * MINUTE_US}",
    ]


def test_a_step_goes_to_the_next_tick_of_any_component() -> None:
    simulation = Simulation([Talker(every_us=45 * SECOND_US), Listener()], seed=1, start_us=0)
    assert [simulation.step() // SECOND_US for _ in range(4)] == [45, 60, 90, 120]


def test_wall_time_runs_along_at_the_given_speed() -> None:
    simulation = Simulation([Talker()], seed=1, start_us=0, speed=60.0, wall_start_us=5)
    walls: list[int] = []
    component = simulation.components[0]
    original = component.step

    def step(state: Log, event: Event, ctx: Context) -> tuple[Log, Sequence[Output]]:
        walls.append(ctx.wall_us)
        return original(state, event, ctx)

    component.step = step
    simulation.run(2 * MINUTE_US)
    assert walls == [5 + SECOND_US, 5 + 2 * SECOND_US]


def test_the_same_seed_meets_the_same_luck_and_another_does_not() -> None:
    def run(seed: int) -> list[str]:
        luck = Disturbance(seed=seed, drop=0.2, duplicate=0.2, delay=0.2)
        simulation = Simulation([Talker(), Listener()], seed=1, start_us=0, disturbance=luck)
        simulation.run(300 * MINUTE_US)
        return heard(simulation)

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("seed", [11, 12])
def test_messages_are_lost_doubled_and_late_in_the_shares_asked_for(seed: int) -> None:
    luck = Disturbance(seed=seed, drop=0.1, duplicate=0.2, delay=0.3)
    simulation = Simulation([Talker(), Listener()], seed=1, start_us=0, disturbance=luck)
    simulation.run(2000 * MINUTE_US)
    times: dict[str, list[str]] = {}
    for line in heard(simulation):
        if line.startswith("talker"):
            id_, _, at = line.partition(" at ")
            times.setdefault(id_.removeprefix("talker/"), []).append(at)
    lost = 2000 - len(times)
    doubled = sum(len(at) == 2 for at in times.values())
    late = sum(at[0] != sent for sent, at in times.items())
    assert 150 < lost < 250
    assert 330 < doubled < 470
    assert 520 < late < 680


def test_topics_outside_the_disturbance_are_left_alone() -> None:
    luck = Disturbance(seed=1, topics=("state.",), drop=1.0)
    simulation = Simulation([Talker(), Listener()], seed=1, start_us=0, disturbance=luck)
    simulation.run(MINUTE_US)
    assert len(heard(simulation)) == 2


def test_a_loop_that_never_rests_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parrot(Listener):
        def step(self, state: Log, event: Event, ctx: Context) -> tuple[Log, Sequence[Output]]:
            return state, [said("again")]

    monkeypatch.setattr("gpuloop.loop.shells.simulation.MAX_MESSAGES_PER_TICK", 1000)
    simulation = Simulation([Parrot()], seed=1, start_us=0)
    with pytest.raises(RuntimeError, match="do not come to rest"):
        simulation.send([said("first")])


def test_a_halted_run_stands_with_messages_under_way_and_what_is_sent_comes_after_them() -> None:
    class Twice(Talker):
        def step(self, state: Log, event: Event, ctx: Context) -> tuple[Log, Sequence[Output]]:
            return state, [said("first"), said("second")]

    simulation = Simulation([Twice(), Listener()], seed=1, start_us=0)
    simulation.run(MINUTE_US, halt=lambda: bool(heard(simulation)))
    assert heard(simulation) == [f"first at {MINUTE_US}"]
    simulation.send([said("from outside")])
    simulation.run(MINUTE_US)
    assert heard(simulation)[1:] == [
        f"second at {MINUTE_US}",
        f"from outside at {MINUTE_US}",
        f"tick {MINUTE_US} at {MINUTE_US}",
    ]


def test_a_run_in_many_halts_is_the_run_in_one() -> None:
    def run(halts: bool) -> list[str]:
        luck = Disturbance(seed=3, drop=0.2, duplicate=0.2, delay=0.2)
        talkers = [Talker(), Talker("other", 45 * SECOND_US)]
        simulation = Simulation([*talkers, Listener()], seed=1, start_us=0, disturbance=luck)
        until_us = 60 * MINUTE_US
        known = 0
        while halts and simulation.now_us < until_us:
            known = len(heard(simulation))
            simulation.run(until_us, halt=lambda: len(heard(simulation)) > known)  # noqa: B023
        simulation.run(until_us)
        return heard(simulation)

    assert run(halts=True) == run(halts=False)


def lagging(**settings: object) -> Simulation:
    lag = Lag(component="listener", every_us=MINUTE_US, most_us=50 * SECOND_US, **settings)  # type: ignore[arg-type]
    components = [Talker(), Listener(), Punctual()]
    return Simulation(components, seed=1, start_us=0, lags=[lag])


class Punctual(Listener):
    """Listens as well, under a name of its own."""

    name: ClassVar[str] = "punctual"


def lateness(simulation: Simulation, name: str = "listener") -> list[tuple[str, int]]:
    """Return what a listener heard and how late after its tick, in seconds."""
    state = simulation.states[name]
    assert isinstance(state, Log)
    parts = [line.rsplit(" at ", 1) for line in state.lines]
    return [(what, int(at) % MINUTE_US // SECOND_US) for what, at in parts]


def test_a_component_that_lags_learns_of_a_tick_later_and_in_the_same_order() -> None:
    simulation = lagging()
    simulation.run(20 * MINUTE_US)
    late = lateness(simulation)
    minutes = [(f"talker/{at * MINUTE_US}", f"tick {at * MINUTE_US}") for at in range(1, 20)]
    assert [what for what, _ in late] == [what for pair in minutes for what in pair]
    assert [late[i][1] for i in range(0, 38, 2)] == [late[i][1] for i in range(1, 38, 2)]
    seconds = {at for _, at in late}
    assert len(seconds) > 10
    assert 0 <= min(seconds) < 10
    assert 40 < max(seconds) < 50
    assert {at for _, at in lateness(simulation, "punctual")} == {0}


def test_a_lag_that_names_topics_leaves_ticks_alone_and_a_share_leaves_others_on_time() -> None:
    simulation = lagging(topics=("telemetry.resources",), share=0.5)
    simulation.run(60 * MINUTE_US)
    late = lateness(simulation)
    assert {at for what, at in late if what.startswith("tick")} == {0}
    on_time = sum(at == 0 for what, at in late if what.startswith("talker"))
    assert 15 < on_time < 45


def test_lags_are_the_same_again_and_however_the_run_is_cut() -> None:
    whole, cut = lagging(), lagging()
    whole.run(20 * MINUTE_US)
    for _ in range(20 * 6):
        cut.run(cut.now_us + 10 * SECOND_US)
    assert lateness(cut) == lateness(whole)


def test_a_lag_that_would_let_one_tick_overtake_the_next_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Lag(component="listener", every_us=MINUTE_US, most_us=MINUTE_US)
