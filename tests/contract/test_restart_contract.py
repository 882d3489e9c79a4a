"""A live shell that dies anywhere goes on as if it had not, around what it finds damaged."""

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from echo import FLEET, START_US, Echo, EchoState, anchor, fault, fault_output
from stage import SEED, STORY, WALL_US, Stage, play, simulated, written

from gpuloop.loop.replay.player import replay
from gpuloop.loop.replay.record import record
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.shells.broker import Partition, PositionLost
from gpuloop.loop.shells.journal import JOURNAL, SNAPSHOTS, JournalBroken
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, decode
from gpuloop.schemas.component import Context, Event, Output
from gpuloop.schemas.messages import Anomaly, Cut, DeadLetter, Snapshot
from gpuloop.schemas.messages.base import Message
from gpuloop.schemas.units import SECOND_US

STEPS = ("stepped", "refused", "journaled", "produced", "committed")
DEAD = Partition("deadletters", 0)


class Died(BaseException):
    """The process is no more."""


def dies_at(step: str, occurrence: int) -> Callable[[str], None]:
    count = itertools.count(1)

    def failpoint(reached: str) -> None:
        if reached == step and next(count) == occurrence:
            raise Died

    return failpoint


def by_id(messages: list[tuple[str, Message]]) -> dict[str, Message]:
    """Return messages by id; copies of one id must be equal."""
    found: dict[str, Message] = {}
    for id_, message in messages:
        assert found.setdefault(id_, message) == message
    return found


def snapshots(broker: MemoryBroker) -> list[Snapshot]:
    messages = [decode(r) for r in broker.logs[SNAPSHOTS]]
    return [m for m in messages if isinstance(m, Snapshot)]


@pytest.mark.parametrize("occurrence", [1, 2, 4, 6])
@pytest.mark.parametrize("step", STEPS)
def test_death_at_any_step_leaves_the_outputs_of_an_undisturbed_run(
    step: str, occurrence: int
) -> None:
    stage = Stage(MemoryBroker())
    stage.start(failpoint=dies_at(step, occurrence), snapshot_every_cuts=3)
    deaths = 0
    for second, outputs in STORY:
        stage.tell(second, outputs)
        try:
            stage.settle()
        except Died:
            deaths += 1
            stage.start(snapshot_every_cuts=3)
            stage.settle()
    assert deaths == 1
    assert stage.watcher.disagreed == 0
    assert by_id(written(stage.broker)) == by_id(simulated(STORY))


def test_only_the_last_cut_is_sent_again() -> None:
    stage = play(MemoryBroker(), STORY)
    before = written(stage.broker)
    stage.start()
    assert stage.watcher.followed == 8
    again = written(stage.broker)[len(before) :]
    assert again == before[-len(again) :]
    assert 1 <= len(again) < len(before)


class Signing(Echo):
    """Puts the name of its run into all it says."""

    def step(
        self, state: EchoState, event: Event, ctx: Context
    ) -> tuple[EchoState, Sequence[Output]]:
        self._salt = f"{ctx.run}/"
        return super().step(state, event, ctx)


def test_a_cut_that_is_followed_is_that_of_the_run_which_made_it() -> None:
    stage = Stage(MemoryBroker(), component=Signing())
    stage.start()
    stage.tell(61, [fault_output(1)])
    stage.settle()
    stage.start()
    stage.tell(121, [fault_output(2)])
    stage.settle()
    assert (stage.watcher.followed, stage.watcher.disagreed) == (1, 0)
    runs = [m.metric.split("/")[0] for _, m in written(stage.broker) if isinstance(m, Anomaly)]
    assert runs == ["run-1"] * 4 + ["run-2"] * 2  # The last cut of run-1 was sent again.


def test_a_clean_stop_leaves_nothing_to_follow() -> None:
    stage = Stage(MemoryBroker())
    stage.start()
    stage.tell(10, [fault_output(1)])
    stage.settle()
    stage.shell.close()
    stop = threading.Event()
    stop.set()
    stage.shell.run(stop)
    stage.start()
    assert stage.watcher.followed == 0
    assert stage.shell.saved.state.heard == 1


def test_a_start_that_had_to_follow_much_spares_the_next_one_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuloop.loop.shells.live.FOLLOWED_CUTS", 5)
    stage = play(MemoryBroker(), STORY)
    stage.start()
    assert stage.watcher.followed == 8
    stage.start()
    assert stage.watcher.followed == 0


def test_a_large_state_is_chunked_and_comes_back() -> None:
    stage = Stage(MemoryBroker(), component=Echo(ballast=1_300_000))
    stage.start(snapshot_every_cuts=1)
    stage.tell(10, [fault_output(1)])
    stage.settle()
    stage.tell(20, [fault_output(2)])
    stage.settle()
    assert {s.chunks for s in snapshots(stage.broker)} == {3}
    stage.start()
    assert len(stage.shell.saved.state.ballast) == 1_300_000
    assert stage.shell.saved.state.heard == 2


@pytest.mark.parametrize("damage", ["torn", "bytes"])
def test_a_damaged_snapshot_is_passed_over_for_an_older_one(damage: str) -> None:
    stage = Stage(MemoryBroker())
    stage.start(snapshot_every_cuts=2)
    for second, outputs in STORY:
        stage.tell(second, outputs)
        stage.settle()
    log = stage.broker.logs[SNAPSHOTS]
    assert len(log) >= 3
    newest = log.pop()
    if damage == "bytes":
        broken = Encoded(
            topic=newest.topic, key=b"causes", headers=newest.headers, value=b"\x81\xa1x\x01"
        )
        stage.broker.produce([broken])
    stage.start()
    assert stage.watcher.followed > 0
    assert stage.watcher.disagreed == 0
    assert by_id(written(stage.broker)) == by_id(simulated(STORY))


class Upgraded(Echo):
    state_version = 2


def test_a_new_state_version_follows_the_whole_journal() -> None:
    stage = play(MemoryBroker(), STORY, snapshot_every_cuts=2)
    stage.component = Upgraded()
    stage.start()
    assert stage.watcher.followed == 8
    assert stage.shell.saved.state.heard == 30


def test_changed_code_goes_on_and_says_that_it_disagrees() -> None:
    stage = play(MemoryBroker(), STORY)
    stage.component = Echo(salt="new ")
    stage.start()
    assert stage.watcher.disagreed == 7  # One cut has no outputs.


def test_a_journal_that_misses_a_cut_stops_the_start() -> None:
    stage = play(MemoryBroker(), STORY)
    cuts = stage.broker.logs[JOURNAL]
    third = decode(cuts[2])
    assert isinstance(third, Cut)
    cuts[2] = cuts[1]
    with pytest.raises(JournalBroken, match="cut 3 is missing"):
        stage.start()


def test_a_journal_whose_input_has_expired_cannot_be_followed() -> None:
    stage = play(MemoryBroker(), [(10, [fault_output(1)])])
    stage.broker.expire(Partition("telemetry.faults", 0), 1)
    with pytest.raises(PositionLost):
        stage.start()


def test_input_that_expired_while_nobody_read_is_counted_and_passed() -> None:
    stage = Stage(MemoryBroker())
    stage.start(snapshot_every_cuts=1)
    stage.tell(10, [fault_output(1)])
    stage.settle()
    assert stage.watcher.snapshots[-1] == 1
    stage.tell(20, [fault_output(n) for n in range(2, 9)])
    stage.broker.expire(Partition("telemetry.faults", 0), 5)
    stage.start()
    stage.settle()
    assert stage.watcher.expired == 1
    assert stage.shell.saved.state.heard == 1 + 3


def test_a_replaced_process_stops_instead_of_going_on() -> None:
    stage = Stage(MemoryBroker())
    old = stage.start()
    stage.tell(10, [fault_output(1)])
    stage.settle()
    stage.start()
    stage.tell(20, [fault_output(2)])
    stage.settle()
    with pytest.raises(JournalBroken, match="run-2"):
        old.advance()


def test_two_processes_at_one_cut_leave_the_first_as_winner() -> None:
    stage = Stage(MemoryBroker())
    first = stage.start()
    stage.tell(10, [fault_output(1)])

    def meanwhile(step: str) -> None:
        if step == "stepped":
            assert first.advance()

    second = stage.start(failpoint=meanwhile)
    assert second.advance()  # Both wrote cut 1; that of run-1 stands first.
    with pytest.raises(JournalBroken, match="run-1"):
        second.advance()
    stage.tell(20, [fault_output(2)])
    assert first.advance()


def test_bad_input_is_set_aside_whole_and_the_rest_goes_on() -> None:
    stage = Stage(MemoryBroker())
    stage.start()
    bad = Encoded(
        topic="telemetry.faults", key=b"\xff", headers=fault(0).headers, value=b'{"fleet": tru'
    )
    stage.broker.produce([fault(1), bad, fault(2, detail="refuse me"), fault(3, fleet="other")])
    stage.tell(10, [fault_output(4)])
    stage.settle()
    letters = [decode(r) for r in stage.broker.logs[DEAD]]
    assert [m.reason for m in letters if isinstance(m, DeadLetter)] == [
        "truncated",
        "inconsistent",
        "wrong_fleet",
    ]
    assert stage.shell.saved.state.heard == 2
    assert stage.watcher.refused == 3


def test_a_dead_letter_is_safe_before_the_journal_names_its_record() -> None:
    stage = Stage(MemoryBroker())
    stage.start(failpoint=dies_at("refused", 1))
    stage.tell(10, [fault_output(1, detail="refuse me")])
    with pytest.raises(Died):
        stage.settle()
    assert len(stage.broker.logs[DEAD]) == 1
    assert stage.broker.logs[JOURNAL] == []
    stage.start()
    stage.settle()
    first, second = stage.broker.logs[DEAD]
    assert (first.value, first.headers) == (second.value, second.headers)


def test_nothing_is_consumed_before_there_is_a_clock() -> None:
    stage = Stage(MemoryBroker())
    stage.broker.logs[Partition("telemetry.clock", 0)].clear()
    stage.start()
    stage.tell(10, [fault_output(1)])
    for _ in range(3):
        assert not stage.shell.advance()
    assert "no fleet clock" in stage.watcher.waits[-1]
    stage.broker.produce([anchor(wall_us=WALL_US)])
    stage.settle()
    assert stage.shell.saved.state.heard == 1


def test_a_long_silence_brings_a_bounded_number_of_ticks() -> None:
    stage = Stage(MemoryBroker())
    stage.start()
    stage.tell(10, [fault_output(1)])
    stage.settle()
    stage.wall.now_us += 100 * SECOND_US  # Silence of 100 minutes of fleet time: 100 ticks.
    stage.settle()
    assert stage.shell.saved.state.ticks == 16
    assert stage.watcher.skipped == 100 - 16


def test_who_has_seen_a_later_world_says_that_it_waits_for_this_one() -> None:
    stage = Stage(MemoryBroker())
    stage.start()
    for hour in range(1, 8):  # Seven hours of fleet time, an anchor a minute of wall time.
        stage.tell(3600 * hour, [fault_output(hour)])
        fleet_us = START_US + 3600 * hour * SECOND_US
        stage.broker.produce([anchor(wall_us=stage.wall.now_us, fleet_us=fleet_us)])
        stage.settle()
    begin_us = stage.wall.now_us
    for second in range(0, 50, 10):
        stage.wall.now_us = begin_us + second * SECOND_US
        fleet_us = START_US + 60 * second * SECOND_US
        stage.broker.produce([anchor(wall_us=stage.wall.now_us, fleet_us=fleet_us, world="w2")])
        stage.settle()
    assert "another world on these topics" in stage.watcher.waits[-1]


def test_a_clock_years_ahead_moves_no_component_whether_it_runs_or_starts() -> None:
    stage = Stage(MemoryBroker())
    stage.start()
    forged = anchor(wall_us=WALL_US + 1, fleet_us=START_US + 10**15)
    stage.broker.produce([forged])
    stage.tell(61, [fault_output(1)])
    stage.settle()
    assert stage.watcher.unheeded == ["clock anchors"]
    stage.start()
    stage.tell(121, [fault_output(2)])
    stage.settle()
    assert stage.shell.saved.now_us < START_US + 122 * SECOND_US


def test_a_recording_made_after_deaths_replays_to_the_same_bytes(tmp_path: Path) -> None:
    stage = Stage(MemoryBroker())
    stage.start(failpoint=dies_at("journaled", 2))
    for second, outputs in STORY:
        stage.tell(second, outputs)
        try:
            stage.settle()
        except Died:
            stage.start(failpoint=dies_at("produced", 3))
            stage.settle()
    record(stage.broker, tmp_path / "r", fleet=FLEET, settings={"seed": str(SEED)})
    report = replay(Recording(tmp_path / "r"), Echo())
    assert report.identical
    assert report.equal == 34


def test_a_last_cut_whose_outputs_had_not_left_is_unconfirmed_not_different(
    tmp_path: Path,
) -> None:
    stage = Stage(MemoryBroker())
    stage.start(failpoint=dies_at("journaled", 2))
    stage.tell(10, [fault_output(1)])
    stage.settle()
    stage.tell(20, [fault_output(2)])
    with pytest.raises(Died):
        stage.settle()
    record(stage.broker, tmp_path / "r", fleet=FLEET, settings={"seed": str(SEED)})
    report = replay(Recording(tmp_path / "r"), Echo())
    assert report.identical
    assert (report.equal, report.unconfirmed) == (1, 1)
