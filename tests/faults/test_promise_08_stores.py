"""Promise 8: sinks equal recomputation; what our own processes derive and keep.

These are the tables of the Faust stage, the money ledger behind `rewards`, and the learner's
experience; the stores have `test_promise_08_sinks.py`. Each is given the same half hour of topics,
once as it is, and once with everything that at-least-once delivery may do: the stage's process dies
between any two acts of its agents and goes on at older commits, and records come again and, where
their source numbers them, in another order. What is kept at the end, and what was said on the way,
must be the same. With SIGKILL on Kafka: `tests/integration/test_faust_observe.py`; samples and
events in any order: `tests/property/test_observe.py`.
"""

from collections.abc import Sequence
from functools import cache

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from builders import START_US
from faults.agent import Observing, survive
from faults.guards import Guard, line, violations
from faults.loops import FLEET
from faults.poison import told
from faults.storm import Died
from gpuloop.loop.evaluate.duplicates import Duplicates
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.learn.rounds import Experience
from gpuloop.loop.shells.faust_agent import Agent
from gpuloop.loop.shells.faust_stages import POOL, FrameStage
from gpuloop.loop.shells.fold import Moment, execute
from gpuloop.schemas.codec import Encoded, Record, decode, encode
from gpuloop.schemas.messages import Frame, GpuSample, Partial, Reward
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams import node_rows
from gpuloop.streams.frames import pack, tick

SOURCES = ("telemetry.jobs", "telemetry.resources", "telemetry.services", "telemetry.tenants")
STAGE = ("internal.frames", *SOURCES, "internal.partials")
SAMPLED = (b"resources", b"services", b"tenants")
MINUTES = 12
DYING = 0.015
"""How likely the process dies at each act of an agent."""


def record_of(encoded: Encoded, offset: int = 0) -> Record:
    """Return a record as it stands on its topic's first partition."""
    return Record(
        topic=encoded.topic, partition=0, offset=offset, timestamp_ms=0, key=encoded.key,
        headers=encoded.headers, value=encoded.value,
    )  # fmt: skip


@cache
def framed() -> tuple[Encoded, ...]:
    """Return what the stage reads: events, and for each minute a frame of samples and a tick."""
    found: list[Encoded] = []
    for number, minute in enumerate(told()[:MINUTES], start=1):
        found += [replace(one, partition=0) for one in minute if one.topic in SOURCES]
        samples = [decode(record_of(one)) for one in minute if one.topic == "telemetry.gpu"]
        frame = pack(FLEET, 0, [one for one in samples if isinstance(one, GpuSample)])
        found += [frame_record(frame), beat(number)]
    return tuple(found)


def frame_record(frame: Frame) -> Encoded:
    """Return a frame as the framer's record."""
    return encode("internal.frames", "0", frame, event_id="f", source="framer", partition=0)


def beat(minute: int) -> Encoded:
    """Return the tick of a minute."""
    return frame_record(tick(FLEET, 0, START_US + minute * MINUTE_US))


def observed(seed: int, *, dying: float) -> tuple[Observing, int]:
    """Return the stage after it has read everything, and how often its process died."""
    rng = np.random.Generator(np.random.Philox(seed))
    observing, deaths = Observing(), 0

    def act() -> None:
        if rng.random() < dying:
            raise Died

    observing.act = act
    for records in (framed(), [beat(MINUTES + 2)]):
        observing.broker.produce(records)
        deaths += survive(observing, STAGE, rng)
    return observing, deaths


def kept(observing: Observing) -> dict[str, object]:
    """Return what the tables say, whatever the bytes."""
    shard = node_rows.shard_from(observing.rows["nodes"], 0)
    partials = msgspec.msgpack.Decoder(dict[str, Partial])
    columns = ("event_us", "boot", "seq", "gpus", "totals", "present")
    rows = observing.rows["pools"]
    return {
        "nodes": [
            (label, *(row[name].tolist() for name in columns))
            for label, row in zip(shard.labels, shard.rows, strict=True)
        ],
        "jobs": observing.rows["jobs"],
        "samples": {key: row for key, row in rows.items() if key in SAMPLED},
        "pools": {key: partials.decode(row) for key, row in rows.items() if key.startswith(POOL)},
    }


def said(observing: Observing, topic: str) -> dict[str, set[bytes]]:
    """Return by id what was said on a topic."""
    found: dict[str, set[bytes]] = {}
    for part in observing.broker.partitions(topic):
        for record in observing.broker.logs[part]:
            found.setdefault(record.header("ce_id") or "", set()).add(record.value or b"")
    return found


@cache
def undisturbed() -> Observing:
    """Return the stage after one reading in peace."""
    return observed(0, dying=0.0)[0]


def check_tables(seed: int) -> list[str]:
    """Return tables and words that are not those of one undisturbed reading."""
    rough, calm = observed(seed, dying=DYING)[0], undisturbed()
    ours, theirs = kept(rough), kept(calm)
    found = [f"{name} differ" for name in theirs if ours[name] != theirs[name]]
    found += [
        f"{topic} says other things"
        for topic in ("state.pools", "state.jobs")
        if said(rough, topic).keys() != said(calm, topic).keys()
    ]
    for topic in ("state.pools", "state.jobs", "internal.partials"):
        found += [
            f"{topic} says two things as {name[:8]}"
            for name, contents in said(rough, topic).items()
            if len(contents) > 1
        ]
    return found


def earned(again: Sequence[Sequence[Encoded]]) -> list[Reward]:
    """Return the rewards that an evaluator books of some minutes."""
    evaluator, offset = Evaluator(), 0
    state, found = evaluator.initial(), list[Reward]()
    for number, minute in enumerate(again, start=1):
        now_us = START_US + number * MINUTE_US
        records = [record_of(one, offset + i) for i, one in enumerate(minute)]
        offset += len(records)
        done = execute(
            evaluator, state, [one for one in records if one.topic in evaluator.inputs],
            Moment(now_us=now_us, wall_us=0, ticks_us=(now_us,)), fleet=FLEET, seed=1,
        )  # fmt: skip
        state = done.state
        found += [one.message for one in done.outputs if isinstance(one.message, Reward)]
    return found


def repeated(seed: int) -> list[list[Encoded]]:
    """Return the minutes as at-least-once delivery may bring them: again, and out of order."""
    rng = np.random.Generator(np.random.Philox(seed))
    minutes: list[list[Encoded]] = []
    for minute in told():
        records = [*minute, *(one for one in minute if rng.random() < 0.3)]
        if minutes:
            records += [one for one in told()[len(minutes) - 1] if rng.random() < 0.1]
        minutes.append([records[i] for i in rng.permutation(len(records))])
    return minutes


def check_money(seed: int) -> list[str]:
    """Return rewards that are not those of one undisturbed reading."""
    ours, theirs = earned(repeated(seed)), earned(told())
    if len(ours) != len(theirs):
        return [f"{len(ours)} rewards, not {len(theirs)}"]
    return [
        f"{one.pool} {one.start_us}: {one.total_usd_micros}, not {other.total_usd_micros}"
        for one, other in zip(ours, theirs, strict=True)
        if one != other
    ]


def learned(minutes: Sequence[Sequence[Encoded]]) -> list[bytes]:
    """Return the transitions that the learner makes of some minutes."""
    found = Experience(FLEET)
    told_to = [one for minute in minutes for one in minute if one.topic in ("decisions", "rewards")]
    for offset, one in enumerate(told_to):
        found.take(record_of(one, offset))
    return [
        b"".join(part.tobytes() for part in (one.observation, one.action, one.next_observation))
        + repr(one.reward).encode()
        for one in found.in_order()
    ]


def check_experience(seed: int) -> list[str]:
    """Return how the learner's experience is not that of one undisturbed reading."""
    ours, theirs = learned(repeated(seed)), learned(told())
    return [] if ours == theirs else [f"{len(ours)} transitions, not the same {len(theirs)}"]


def test_tables_equal_one_undisturbed_reading() -> None:
    assert violations(check_tables, range(12)) == []


def test_money_equals_one_undisturbed_reading() -> None:
    assert violations(check_money, range(6)) == []


def test_experience_equals_one_undisturbed_reading() -> None:
    assert violations(check_experience, range(10)) == []


def test_there_is_something_to_lose_and_the_process_dies() -> None:
    """Tables without rows, or a process that lives, would promise nothing."""
    assert sum(observed(seed, dying=DYING)[1] for seed in range(3)) >= 6
    assert all(kept(undisturbed()).values())
    assert len(said(undisturbed(), "state.pools")) >= 2 * (MINUTES - 1)
    assert len(earned(told())) > 20
    assert len(learned(told())) > 20


GUARDS = [
    Guard(
        "an agent acknowledges what the rows hold, and no more",
        line(FrameStage.take, ("return Turn(mark=1, dropped", "return Turn(mark=0, dropped")),
        check_tables,
    ),
    Guard(
        "rows are written before their records are acknowledged",
        line(Agent._handle, ("await self._write(turn.rows)", "late = turn.rows"),
             ("self._positions.settled[place] = reached",
              "self._positions.settled[place] = reached;"
              " await self._write(late); late = {}")),
        check_tables,
    ),
    Guard(
        "outputs are delivered before their rows are written",
        line(
            Agent._turn,
            ("await self._outlet.deliver(",
             "await self._write(turn.rows); await self._outlet.deliver("),
        ),
        check_tables,
    ),
    Guard(
        "a start reads the tables",
        line(FrameStage._own, ("rows = self._table()", "rows = {}")),
        check_tables,
    ),
    Guard(
        "what the ledger has booked it knows again",
        line(Duplicates.is_new, ("return not seen >> place & 1", "return True")),
        check_money,
    ),
    Guard(
        "experience has an order of its own",
        line(Experience.in_order, ("sorted(self.transitions)", "self.transitions")),
        check_experience,
    ),
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
