"""What surrounds the observe stage's agents: future telemetry, watchdog, TLS, placement."""

import asyncio
import threading
from pathlib import Path

import pytest
from faust.types import TP

from gpuloop.loop.shells.broker import BrokerError, Partition
from gpuloop.loop.shells.faust_consumer import Positions, SettledConsumer
from gpuloop.loop.shells.faust_stages import JobStage, SampleStage
from gpuloop.loop.shells.faust_tables import CHANGELOG_TOPICS, TABLES, changelogs
from gpuloop.loop.shells.partition import partition_of
from gpuloop.loop.shells.watchdog import Seen, StallDetector, Watchdog
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Received
from gpuloop.schemas.messages import JobEvent, Message, TenantEvent

HOUR = 3_600_000_000
NOW = 1_000 * HOUR
JOBS = Partition("telemetry.jobs", 0)
SECOND = 1_000_000


def job(at: int) -> JobEvent:
    return JobEvent(
        fleet="local",
        job="j",
        kind="submitted",
        pool="h100",
        tenant="t",
        job_class="c",
        event_time_us=at,
        boot=1,
        seq=1,
        gpus=1,
    )


def received(message: Message, topic: str) -> Received:
    return Received(topic=topic, partition=0, offset=0, key="k", id="i", message=message)


def test_an_event_from_the_far_future_is_refused_before_it_can_age_the_others() -> None:
    stage = JobStage(dict, lambda: NOW)
    with pytest.raises(BadInput, match="out_of_range"):
        stage.take(received(job(NOW + 2 * HOUR), "telemetry.jobs"))
    assert stage.take(received(job(NOW), "telemetry.jobs")).outputs


def test_a_message_of_another_topic_is_refused() -> None:
    refusal = TenantEvent(
        fleet="local",
        tenant="t",
        segment="s",
        kind="refused",
        job="j",
        pool="h100",
        event_time_us=NOW,
        boot=1,
        seq=1,
        gpus=1,
        quote_usd_micros_per_gpu_hour=1,
    )
    with pytest.raises(BadInput, match="unknown_type"):
        JobStage(dict, lambda: None).take(received(refusal, "telemetry.jobs"))
    with pytest.raises(BadInput, match="unknown_type"):
        SampleStage("local", dict, lambda: None).take(received(job(NOW), "telemetry.tenants"))


def seen(  # type: ignore[no-untyped-def]
    *,
    end: int,
    handled: int,
    settled: int = 0,
    committed: int = 0,
    ready: bool = True,
    restored: int = 0,
):
    return Seen(
        ready=ready,
        restored=restored,
        ends={JOBS: end},
        handled={JOBS: handled},
        settled={JOBS: settled},
        committed={JOBS: committed},
    )


def test_input_that_waits_while_nothing_moves_is_stuck_after_the_patience() -> None:
    detector = StallDetector(30 * SECOND)
    assert detector.stuck(seen(end=9, handled=5), 0) == []
    assert detector.stuck(seen(end=99, handled=5), 29 * SECOND) == []
    (why,) = detector.stuck(seen(end=99, handled=5), 30 * SECOND)
    assert why == "input of telemetry.jobs/0 stands at 5, 99 waits"


def test_slow_progress_and_an_empty_topic_are_not_stuck() -> None:
    detector = StallDetector(30 * SECOND)
    for minute in range(10):
        assert detector.stuck(seen(end=99, handled=minute), minute * 60 * SECOND) == []
    quiet = StallDetector(30 * SECOND)
    for minute in range(10):
        look = seen(end=5, handled=5, settled=5, committed=5)
        assert quiet.stuck(look, minute * 60 * SECOND) == []


def test_a_commit_that_never_comes_is_stuck_though_records_are_handled() -> None:
    detector = StallDetector(30 * SECOND)
    found = [
        detector.stuck(seen(end=n, handled=n, settled=n, committed=3), n * SECOND)
        for n in range(4, 40)
    ]
    assert found[0] == []
    assert "commit of telemetry.jobs/0 stands at 3" in found[-1][0]


def test_a_partition_left_behind_by_others_that_move_gets_more_time() -> None:
    detector, other = StallDetector(30 * SECOND), Partition("telemetry.jobs", 1)

    def behind(second: int) -> Seen:
        return Seen(
            ready=True,
            ends={JOBS: 279, other: 9_999},
            handled={JOBS: 0, other: second},
            settled={},
            committed={JOBS: 0, other: second},
        )

    found = {n: detector.stuck(behind(n), n * SECOND) for n in range(0, 121, 3)}
    assert [n for n, stuck in found.items() if stuck] == [120]
    assert found[120] == ["input of telemetry.jobs/0 stands at 0, 279 waits"]


def test_recovery_gets_more_time() -> None:
    detector = StallDetector(30 * SECOND)
    restoring = seen(end=9, handled=0, ready=False)
    assert detector.stuck(restoring, 0) == []
    assert detector.stuck(restoring, 100 * SECOND) == []
    assert detector.stuck(restoring, 120 * SECOND) != []


def test_the_time_that_recovery_took_is_not_held_against_the_input() -> None:
    detector = StallDetector(30 * SECOND)
    for second in range(0, 100, 3):
        assert detector.stuck(seen(end=9, handled=0, ready=False), second * SECOND) == []
    for second in range(100, 130, 3):
        assert detector.stuck(seen(end=9, handled=0), second * SECOND) == []
    assert detector.stuck(seen(end=9, handled=0), 131 * SECOND) != []


def test_recovery_that_goes_on_may_take_as_long_as_it_takes() -> None:
    detector = StallDetector(30 * SECOND)
    for minute in range(60):
        look = seen(end=9, handled=0, ready=False, restored=minute)
        assert detector.stuck(look, minute * 60 * SECOND) == []
    assert detector.stuck(look, (59 * 60 + 121) * SECOND) != []


def test_the_watchdog_bites_once_and_bears_a_broker_that_does_not_answer() -> None:
    looks, bitten, done = iter(range(100)), [], threading.Event()

    def look() -> Seen:
        if next(looks) == 0:
            raise BrokerError("away")
        return seen(end=9, handled=0)

    def bite(why: list[str]) -> None:
        bitten.append(why)
        done.set()

    dog = Watchdog(look, bite, patience_s=0.02, every_s=0.01)
    dog.start()
    assert done.wait(5)
    dog.stop()
    assert len(bitten) == 1


def test_the_watchdog_that_fails_itself_says_so_and_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bitten: list[list[str]] = []
    done = threading.Event()

    def look() -> Seen:
        raise KeyError("a partition nobody knows")

    def bite(why: list[str]) -> None:
        bitten.append(why)
        done.set()

    dog = Watchdog(look, bite, patience_s=60, every_s=0.01)
    dog.start()
    assert done.wait(5)
    dog.stop()
    assert bitten == [["the watchdog failed: KeyError('a partition nobody knows')"]]
    [record] = caplog.records
    assert record.exc_info is not None


def test_tables_have_the_partitions_of_the_topics_they_are_written_by() -> None:
    assert TABLES["nodes"] == CATALOGUE["internal.frames"].partitions
    assert TABLES["jobs"] == CATALOGUE["telemetry.jobs"].partitions
    assert TABLES["pools"] == CATALOGUE["internal.partials"].partitions
    assert CHANGELOG_TOPICS[0].name == "observe-nodes-changelog"
    assert changelogs("x.")[2].name == "x.observe-pools-changelog"


def test_the_agents_place_keys_as_every_other_process_does() -> None:
    aiokafka = pytest.importorskip("aiokafka.partitioner")
    place = aiokafka.DefaultPartitioner()
    keys = [f"node-{n}".encode() for n in range(200)] + [b"", b"\xff" * 7]
    for count in (1, 4, 7):
        parts = list(range(count))
        assert [place(k, parts, parts) for k in keys] == [partition_of(k, count) for k in keys]


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [
        ("security.protocol=ssl", "SSL"),
        (
            "security.protocol=sasl_ssl\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=u\n"
            "sasl.password=p",
            "SASL_SSL",
        ),
    ],
)
def test_a_secured_cluster_is_reached_as_its_properties_say(
    tmp_path: Path, lines: str, protocol: str
) -> None:
    security = pytest.importorskip("gpuloop.loop.shells.faust_security")
    path = tmp_path / "kafka.properties"
    path.write_text(lines)
    assert security.broker_credentials(path).protocol.value == protocol


@pytest.mark.parametrize(
    "line",
    [
        "security.protocol=sasl_ssl\nsasl.mechanism=GSSAPI",
        "security.protocol=tls",
        "ssl.endpoint.identification.algorithm=none",
    ],
)
def test_security_that_cannot_be_carried_over_is_refused(tmp_path: Path, line: str) -> None:
    security = pytest.importorskip("gpuloop.loop.shells.faust_security")
    path = tmp_path / "kafka.properties"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"support|unknown"):
        security.broker_credentials(path)
    assert security.broker_credentials(None) is None


def test_the_last_seek_says_where_a_partition_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed predecessor's commit can land between two seeks of one assignment."""
    place = TP("telemetry.jobs", 1)
    committed = iter([{place: 0}, {place: 62}])

    async def seek(self: object) -> dict[TP, int]:
        return next(committed)

    async def earliest(self: object, *places: TP) -> dict[TP, int]:
        return dict.fromkeys(places, 0)

    sought = []

    async def seek_to(self: object, place: TP, offset: int) -> None:
        sought.append(offset)

    positions = Positions()
    consumer = object.__new__(SettledConsumer)
    monkeypatch.setattr(SettledConsumer, "positions", property(lambda self: positions))
    monkeypatch.setattr(SettledConsumer.__mro__[1], "seek_to_committed", seek)
    monkeypatch.setattr(SettledConsumer, "earliest_offsets", earliest)
    monkeypatch.setattr(SettledConsumer, "_seek", seek_to)
    asyncio.run(consumer.seek_to_committed())
    asyncio.run(consumer.seek_to_committed())
    assert positions.expected(("telemetry.jobs", 1)) == 62
    assert sought == [0, 62]
