"""Topics are in place once their leaders answer, however long a slow broker takes to make logs."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from gpuloop.ops.stack.topics import await_answers


class Broker:
    """Refuses the first questions with one error."""

    def __init__(self, code: int, refusals: int) -> None:
        self.code = code
        self.refusals = refusals
        self.answered: list[tuple[str, int]] = []

    def ask(self, topic: str, number: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise KafkaException(KafkaError(self.code))
        self.answered.append((topic, number))


def test_a_leader_that_has_not_made_its_log_yet_is_asked_again() -> None:
    broker = Broker(KafkaError.NOT_LEADER_FOR_PARTITION, refusals=2)
    await_answers(broker.ask, [("controls", 0), ("audit", 1)], timeout_seconds=30.0)
    assert broker.answered == [("controls", 0), ("audit", 1)]


def test_a_refusal_that_waiting_does_not_mend_is_raised_at_once() -> None:
    broker = Broker(KafkaError.TOPIC_AUTHORIZATION_FAILED, refusals=1)
    with pytest.raises(KafkaException):
        await_answers(broker.ask, [("controls", 0)], timeout_seconds=30.0)


def test_the_wait_for_a_leader_ends() -> None:
    broker = Broker(KafkaError.NOT_LEADER_FOR_PARTITION, refusals=1_000_000)
    with pytest.raises(KafkaException):
        await_answers(broker.ask, [("controls", 0)], timeout_seconds=0.0)
