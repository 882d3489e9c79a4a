"""Framer and Faust application on a real Kafka, killed in mid-run, against the `Observe` fold."""

import time
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka as ck
import numpy as np
import pytest

from gpuloop.loop.shells import clock
from gpuloop.schemas.codec import Encoded, decode
from gpuloop.schemas.messages import DeadLetter
from observe_run import (
    MINUTE,
    MINUTES,
    SPEED,
    START,
    TELEMETRY,
    Expected,
    Run,
    begin,
    builtins,
    equals_the_fold,
    run_anchor,
    said_as_the_fold,
    telemetry,
)
from own_kafka import OwnKafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def run(kafka, tmp_path: Path) -> Iterator[Run]:  # type: ignore[no-untyped-def]
    running = Run(kafka.bootstrap_servers, kafka.prefix(), tmp_path)
    begin(running)
    yield running
    running.close()


def test_killed_observe_stage_recovers_to_what_the_fold_computes(run: Run) -> None:
    rng = np.random.default_rng(7)
    run.start("framer")
    run.start("observe")
    run.broker.produce(telemetry(rng, range(10)))
    run.pools_after(START)
    run.broker.produce(telemetry(rng, range(10, 20)))
    run.kill("observe")
    run.kill("framer")
    run.start("framer")
    run.start("observe")
    run.broker.produce(telemetry(rng, range(20, MINUTES)))
    run.settle()

    expected, live = equals_the_fold(run)
    run.kill("observe")
    run.start("observe")
    again = run.pools_after(live["a100"].tick_us + 3 * MINUTE)
    assert builtins(expected.at(again["a100"].tick_us)) == builtins(again)
    said_as_the_fold(run, expected)


def test_workers_that_come_and_go_under_load_equal_one_fold(run: Run) -> None:
    rng = np.random.default_rng(23)
    run.start("framer")
    run.start("observe")
    run.broker.produce(telemetry(rng, range(8)))
    run.pools_after(START)
    run.start("observe", "two")
    run.broker.produce(telemetry(rng, range(8, 16)))
    run.shared(2)
    run.start("observe", "three")
    run.broker.produce(telemetry(rng, range(16, 24)))
    run.shared(3)
    run.broker.produce(telemetry(rng, range(24, 32)))
    run.kill("observe", "two")
    run.broker.produce(telemetry(rng, range(32, MINUTES)))
    run.settle()
    expected, _ = equals_the_fold(run)
    said_as_the_fold(run, expected)


def test_a_broker_that_dies_under_load_takes_nothing_with_it(
    own_kafka: OwnKafka, tmp_path: Path
) -> None:
    run = Run(own_kafka.bootstrap_servers, "", tmp_path)
    try:
        begin(run)
        rng = np.random.default_rng(31)
        run.start("framer")
        run.start("observe")
        run.broker.produce(telemetry(rng, range(10)))
        run.pools_after(START)
        run.broker.produce(telemetry(rng, range(10, 20)))
        own_kafka.kill()
        own_kafka.start()
        run.broker.produce(telemetry(rng, range(20, MINUTES)))
        run.settle(revive=True)
        expected, _ = equals_the_fold(run)
        jobs = {r.key.decode(): decode(r) for r in run.records("state.jobs") if r.key}
        assert jobs == expected.jobs
    finally:
        run.close()


def test_poison_goes_to_deadletters_and_the_stream_goes_on(run: Run) -> None:
    rng = np.random.default_rng(11)
    run.start("framer")
    run.start("observe")
    good = telemetry(rng, range(2))
    poisoned = (*TELEMETRY, "internal.frames", "internal.partials")
    bad = [
        Encoded(topic=topic, key=b"k", headers=headers, value=value)
        for topic in poisoned
        for headers, value in (
            ((), b"{}"),
            ((("ce_type", f"gpuloop.{topic}".encode()),), b'{"fleet": "local", '),
            ((("ce_type", f"gpuloop.{topic}".encode()),), b"\xff\x00[" * 1000),
        )
    ]
    run.broker.produce([*good[: len(good) // 2], *bad, *good[len(good) // 2 :]])
    tombstones = ck.Producer({"bootstrap.servers": run.servers})
    for topic in ("telemetry.jobs", "internal.frames"):
        tombstones.produce(run.prefix + topic, key=b"k", value=None)
    tombstones.flush(10)
    run.settle()

    deadline = time.monotonic() + 30
    while len(run.records("deadletters")) < len(bad) + 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    letters = [decode(record) for record in run.records("deadletters")]
    sources = [letter.topic for letter in letters if isinstance(letter, DeadLetter)]
    assert {topic: sources.count(topic) for topic in poisoned} == {
        topic: 4 if topic in ("telemetry.jobs", "internal.frames") else 3 for topic in poisoned
    }
    expected = Expected()
    for topic in TELEMETRY:
        expected.fold_in(run.records(topic))
    live = run.pools_after(START + (clock.wall_us() - run_anchor(run)) * SPEED)
    assert builtins(expected.at(live["a100"].tick_us)) == builtins(live)
