"""Promise 10: bad input neither stops the stream nor vanishes.

Half an hour of a fleet's topics is given to everyone who reads them, with records among it that
nobody should have put there. Poison breaks its topic's contract beyond doubt: it must be on the
dead letters whole, value, key and headers, and what its reader says must be what it says without
it, cut by cut. A hostile record may be well formed and is absurd: its reader must come to the end
all the same, keep a state that can be saved, and say nothing that others could not read; what of it
is refused is on the dead letters as well.

Readers are the journaled components in their shell, the framer, the
agents of the Faust stage, the learner's loop and the world's shell, whose process also dies. That
refusals survive a death of the others: promise 1. Poison on Kafka, tombstones included:
`tests/integration/test_faust_observe.py`. Sinks: `test_promise_08_sinks.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from echo import anchor
from msgspec.structs import replace

from builders import START_US
from faults.agent import Observing
from faults.dead import is_refused, unreadable, vanished
from faults.guards import Guard, line, value, violations
from faults.loops import FLEET
from faults.poison import POISON, Spoil, everywhere, hostile, poison, told
from faults.reading import COMPONENTS, Reading
from faults.storm import STEPS, command_record, control_record, storm
from faults.until_read import UntilRead
from gpuloop.loop.learn import experience
from gpuloop.loop.learn.rounds import RoundConfig
from gpuloop.loop.services.learner import Learner
from gpuloop.loop.services.process import Process
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells import fold
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_agent import Agent
from gpuloop.loop.shells.framer import Framer
from gpuloop.loop.shells.live import LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.transactional import TransactionalShell
from gpuloop.reasoning import series, tracks
from gpuloop.schemas import codec
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.messages import control
from gpuloop.schemas.messages.control import Claim, KillLease
from gpuloop.schemas.units import INT64_MAX

CAUSES = [make().name for make in COMPONENTS].index("causes")
JOBS = Partition("telemetry.jobs", 0)
SPOILS: tuple[Spoil, ...] = (poison, hostile)


def check_poison(seed: int) -> list[str]:
    """Return where poison stopped a component, changed what it says, or is not set aside."""
    reading = Reading(COMPONENTS[seed % len(COMPONENTS)], poison, seed)
    stopped = reading.read()
    return stopped or [*reading.differences(), *vanished(reading.broker, reading.added)]


def check_hostile(seed: int) -> list[str]:
    """Return where absurd records stopped a component, made it unreadable, or are gone."""
    reading = Reading(COMPONENTS[seed % len(COMPONENTS)], hostile, seed, share=0.5)
    stopped = reading.read()
    refused = [record for record in reading.added if is_refused(record)]
    return stopped or [*unreadable(reading.broker), *vanished(reading.broker, refused)]


BROKEN = (("gpus", 0), ("value", 1e308), ("value", -1e308), ("event_time_us", INT64_MAX))


def check_causes(seed: int) -> list[str]:
    """Return what a source of states that is always wrong in one field does to the causes."""
    name, number = BROKEN[seed % len(BROKEN)]
    reading = Reading(COMPONENTS[CAUSES], everywhere(name, number), seed, share=0.5, instead=True)
    stopped = reading.read()
    return stopped or unreadable(reading.broker)


def mixed(topics: tuple[str, ...], seed: int, share: float) -> list[Encoded]:
    """Return what was told on some topics, with poison or hostile records among it."""
    rng = np.random.Generator(np.random.Philox(seed))
    spoil = SPOILS[seed % len(SPOILS)]
    found: list[Encoded] = []
    for one in (one for minute in told() for one in minute if one.topic in topics):
        found += [one] + [spoil(one, rng)] * (rng.random() < share)
    return found


def put(broker: MemoryBroker, records: list[Encoded]) -> list[Record]:
    """Write records and return those of them that are to be refused."""
    placed = broker.produce(records)
    return [one for part, at in placed if is_refused(one := broker.logs[part][at])]


@contextmanager
def stopping(what: str, found: list[str]) -> Iterator[None]:
    """Add to what was found that something stopped, if it does."""
    try:
        yield
    except Exception as error:
        found.append(f"{what} stopped: {type(error).__name__} {error}")


def check_framer(seed: int) -> list[str]:
    """Return where bad samples stopped the framer or vanished, and good ones that went along."""
    broker, found = MemoryBroker(wall=lambda: START_US), list[str]()
    broker.produce([anchor(wall_us=START_US, speed=0.0)])
    records = mixed(("telemetry.gpu",), seed, 0.05)
    refused = put(broker, records)
    packer, framed = Framer(broker, FLEET, wall=lambda: START_US), 0
    packer.open()
    with stopping("the framer", found):
        # One round takes what one linger of wall time allows, which may be less than all.
        while (done := packer.advance()).samples or done.refused:
            framed += done.samples
    packer.close()
    late = len(records) - len(refused) - framed
    if late and seed % 2 == 0:  # Hostile samples may be dated in a future that is refused.
        found.append(f"{late} good samples are in no frame")
    return found + vanished(broker, refused)


def check_agent(seed: int) -> list[str]:
    """Return where bad events stopped the jobs' agent, vanished, or changed its words or rows."""
    rng, found = np.random.Generator(np.random.Philox(seed)), list[str]()
    ours, calm = Observing(), Observing()
    records = [replace(one, partition=0) for one in mixed((JOBS.topic,), seed, 0.2)]
    refused = put(ours.broker, records)
    bad = {one.offset for one in refused}
    calm.broker.produce([one for offset, one in enumerate(records) if offset not in bad])
    with stopping("the agent", found):
        ours.live([JOBS.topic], rng)
    calm.live([JOBS.topic], rng)
    if ours.rows != calm.rows:
        found.append("the rows are others than without what was refused")
    if ours.settled != {JOBS.topic: len(records)}:
        found.append("the agent has not acknowledged everything")
    return found + vanished(ours.broker, refused)


def check_learner(seed: int) -> list[str]:
    """Return where bad records stopped the learner or vanished, and steps it did not learn of."""
    broker, found = MemoryBroker(wall=lambda: START_US), list[str]()
    refused = put(broker, mixed(("decisions", "rewards"), seed, 0.5))
    health = UntilRead("learner", broker)
    with TemporaryDirectory() as folder, stopping("the learner", found):
        settings = Settings(state_dir=Path(folder), fleet=FLEET)
        process = Process(settings=settings, health=health, stop=health.stop)
        learner = Learner(process, broker, RoundConfig(first_after=10**9))
        learner.run()
        found += [
            f"a transition holds {number}"
            for step in learner._experience.in_order()
            for number in (step.reward, *step.observation, *step.action, *step.next_observation)
            if not np.isfinite(number)
        ]
    return found + vanished(broker, refused)


def check_world(seed: int) -> list[str]:
    """Return bad commands that stopped a world that dies at times, or vanished, or took effect."""
    refused: list[Record] = []
    found: list[str] = []
    with storm(seed) as world, stopping("the world", found):
        rng = world.rng
        world.control(Claim(owner="nobody", epoch=INT64_MAX))
        for _ in range(25):
            if rng.random() < 0.3 and not world.doomed:
                world.doomed, world.luck = str(rng.choice(STEPS)), int(rng.integers(1, 4))
            generation = world.generations()["a"]
            good = world.command("a", generation, nodes=int(rng.integers(1, 32)))
            spoil = SPOILS[int(rng.integers(2))]
            refused += put(world.broker, [spoil(command_record(good), rng) for _ in range(2)])
            lease = control_record(KillLease(expires_wall_us=world.wall_us), world.wall_us)
            refused += put(world.broker, [poison(lease, rng)])
            world.renew()
            world.send(good)
            world.step()
        world.doomed = ""
        for _ in range(3):
            world.step()
        if not world.effects:
            found.append("nothing took effect any more")
    return found + vanished(world.broker, refused)


def test_poison_is_set_aside_whole_and_changes_no_word_of_any_component() -> None:
    assert violations(check_poison, range(10)) == []


def test_absurd_records_stop_no_component_and_are_seen_through() -> None:
    assert violations(check_hostile, range(15)) == []


def test_a_source_that_is_always_wrong_leaves_the_causes_readable() -> None:
    assert violations(check_causes, range(len(BROKEN))) == []


def test_bad_samples_stop_no_framer() -> None:
    assert violations(check_framer, range(6)) == []


def test_bad_events_stop_no_agent_of_the_faust_stage() -> None:
    assert violations(check_agent, range(6)) == []


def test_bad_experience_stops_no_learner() -> None:
    assert violations(check_learner, range(6)) == []


def test_bad_commands_stop_no_world() -> None:
    assert violations(check_world, range(8)) == []


@pytest.mark.parametrize("way", POISON)
def test_every_way_to_poison_is_refused(way: str) -> None:
    """Poison that a reader took for good would promise nothing."""
    rng = np.random.Generator(np.random.Philox(1))
    broker = MemoryBroker(wall=lambda: START_US)
    topics = ("telemetry.jobs", "state.pools", "decisions", "controls", "approvals")
    for topic in topics:
        good = next(one for minute in told() for one in minute if one.topic == topic)
        assert len(put(broker, [POISON[way](good, rng)])) == 1, topic
        assert put(broker, [good]) == [], topic


GUARDS = [
    Guard(
        "a component goes on after a record that it cannot read",
        line(fold.execute, ("except BadInput as error:", "except KeyError as error:")),
        check_poison,
    ),
    Guard(
        "what a component refuses is set aside",
        line(LiveShell._cut, ("encode_dead_letters(executed.refused,", "encode_dead_letters((),")),
        check_poison,
    ),
    Guard(
        "what is for another fleet is none of ours",
        line(fold.addressed, ("if message.fleet != fleet:", "if False:")),
        check_poison,
    ),
    Guard(
        "what is nested too deep is bad input",
        line(codec.decode, ("except RecursionError:", "except MemoryError:")),
        check_poison,
    ),
    Guard(
        "a dead letter has all chunks of its record",
        line(codec.dead_letters, ("range(0, len(value), size)", "range(0, size, size)")),
        check_poison,
    ),
    Guard(
        "a dead letter fits on its topic",
        line(codec._kept_key, ("if len(key) > DEAD_LETTER_KEY_BYTES:", "if False:")),
        check_poison,
    ),
    Guard(
        "the causes take no number that they cannot hold",
        value(series, "MOST", float("inf")),
        check_causes,
    ),
    Guard(
        "the causes ask no pace of a job without a GPU",
        line(tracks._pace, ("and job.gpus and", "and")),
        check_causes,
    ),
    Guard(
        "what the framer refuses is set aside",
        line(Framer._write, ("if done.refused:", "if False:")),
        check_framer,
    ),
    Guard(
        "what an agent refuses is set aside",
        line(Agent._turn, ("await self._refuse(record, error)", "pass")),
        check_agent,
    ),
    Guard(
        "an agent goes on after a record that it cannot read",
        line(Agent._turn, ("except BadInput as error:", "except KeyError as error:")),
        check_agent,
    ),
    Guard(
        "the learner takes no decision whose parts do not fit",
        line(experience.ExperienceJoin.decision, ("_refuse_misshapen(decision)", "pass")),
        check_learner,
        range(1, 200, 2),
    ),
    Guard(
        "the learner goes on after a record that it cannot read",
        line(Learner._take, ("except BadInput as error:", "except KeyError as error:")),
        check_learner,
    ),
    Guard(
        "what a world refuses leaves with what it did",
        line(TransactionalShell.advance, ("executed.refused, stage", "(), stage")),
        check_world,
    ),
    Guard(
        "no claim is believed that nobody could follow",
        value(control, "EPOCH_LEAP", INT64_MAX),
        check_world,
    ),
]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
