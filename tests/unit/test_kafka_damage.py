"""A batch that is damaged in the broker's log ends its reader and is named; nobody waits for it."""

from typing import Any

import confluent_kafka as ck
import pytest

from gpuloop.loop.shells import kafka
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.kafka import KafkaConsumer


class Message:
    """What librdkafka hands out in the place of a batch that it cannot read."""

    def __init__(self, code: int) -> None:
        self._error = ck.KafkaError(code, "message at 207 of 3944 bytes failed")

    def error(self) -> ck.KafkaError:
        return self._error

    def topic(self) -> str:
        return "audit"

    def partition(self) -> int:
        return 0


class Reader:
    """A consumer of librdkafka that has one message."""

    def __init__(self, message: Message) -> None:
        self._messages: list[Any] = [message]

    def consume(self, count: int, timeout: float) -> list[Any]:
        found, self._messages = self._messages[:count], self._messages[count:]
        return found


def polled(code: int) -> list[Any]:
    reader: Any = Reader(Message(code))
    return list(KafkaConsumer(reader, prefix="").poll(max_records=10, timeout_s=0.0))


@pytest.mark.parametrize("code", [ck.KafkaError._BAD_MSG, ck.KafkaError._BAD_COMPRESSION])
def test_a_damaged_batch_is_named_and_ends_its_reader(code: int) -> None:
    with pytest.raises(BrokerError, match=r"audit/0: the broker's log is damaged: message at 207"):
        polled(code)


def test_what_librdkafka_tries_again_is_waited_for() -> None:
    assert polled(ck.KafkaError._TRANSPORT) == []


def test_batches_are_held_against_their_checksum() -> None:
    assert kafka._CONSUMER["check.crcs"] is True
