"""Headers that no writer of ours leaves: the broker takes them, and nobody may stop at them."""

import asyncio
from typing import Final

import aiokafka
import pytest
from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from conftest import Kafka
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_records import tolerate_any_header
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.schemas.codec import BadInput, Record, decode

pytestmark = pytest.mark.kafka

SAMPLES = Partition("telemetry.gpu", 0)


class Bytes(str):
    """A header's name that is sent as bytes which are no text."""

    def encode(self, *_: object) -> bytes:  # type: ignore[override]
        return b"\xff\xfe"


RECORDS: Final[list[tuple[bytes, list[tuple[str, bytes | None]]]]] = [
    (b"1", []),
    (b"2", [(Bytes("x"), b"y"), ("ce_id", b"i")]),
    (b"3", [("ce_id", None), ("ce_id", b"j")]),
]
"""Values with headers: none, one whose name is no text, and one that is null and there twice."""


async def _send(servers: str, topic: str) -> None:
    """Write the records in one batch."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    try:
        batch = producer.create_batch()
        for value, names in RECORDS:
            assert batch.append(timestamp=None, key=b"k", value=value, headers=names) is not None
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()


@pytest.fixture
def prefix(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> str:
    found = kafka.prefix()
    monkeypatch.setattr(message_accumulator, "DefaultRecordBatchBuilder",
                        _DefaultRecordBatchBuilderPy)  # fmt: skip
    asyncio.run(_send(kafka.bootstrap_servers, f"{found}telemetry.gpu"))
    return found


def read(broker: KafkaBroker) -> list[Record]:
    reader = broker.consumer({SAMPLES: 0})
    try:
        return reader.poll(max_records=3, timeout_s=10.0, linger_s=5.0)
    finally:
        reader.close()


def test_a_record_with_an_unreadable_header_is_read_without_headers(
    kafka: Kafka, prefix: str
) -> None:
    broker = KafkaBroker(kafka.bootstrap_servers, prefix=prefix)
    # The interpreter specialises a call that is made often, and then sees the error elsewhere.
    for _ in range(12):
        records = read(broker)
    broker.close()
    assert [record.value for record in records] == [b"1", b"2", b"3"]
    assert records[1].headers == ()
    assert records[2].headers == (("ce_id", b""), ("ce_id", b"j"))
    with pytest.raises(BadInput):
        decode(records[1])


def test_the_observe_stage_reads_such_a_record_and_those_behind_it(
    kafka: Kafka, prefix: str
) -> None:
    tolerate_any_header()

    async def values() -> list[bytes | None]:
        reader = aiokafka.AIOKafkaConsumer(
            f"{prefix}telemetry.gpu",
            bootstrap_servers=kafka.bootstrap_servers,
            auto_offset_reset="earliest",
        )
        await reader.start()
        try:
            records = [await asyncio.wait_for(reader.getone(), 10.0) for _ in range(3)]
        finally:
            await reader.stop()
        assert dict(records[1].headers)["ce_id"] == b"i"
        return [record.value for record in records]

    assert asyncio.run(values()) == [b"1", b"2", b"3"]
