"""What the observe stage sends: whole, in order, in as few batches as hold it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

batches = pytest.importorskip("aiokafka.producer.message_accumulator")

from gpuloop.loop.shells.faust_outlet import Entry, Outlet  # noqa: E402
from gpuloop.loop.shells.partition import partition_of  # noqa: E402
from gpuloop.schemas.codec import Encoded  # noqa: E402

BATCH_BYTES = 4096


class Noting(batches.BatchBuilder):  # type: ignore[misc, name-defined]
    """A batch of the client's own that remembers the keys that found room."""

    def __init__(self) -> None:
        super().__init__(BATCH_BYTES, 0)
        self.keys: list[bytes] = []

    def append(self, **entry: Any) -> Any:
        """Take an entry if there is room."""
        added = super().append(**entry)
        if added is not None:
            self.keys.append(entry["key"])
        return added


class Client:
    """A producer that takes batches, or fails those of one partition."""

    def __init__(self, failing: int | None = None) -> None:
        self.sent: list[tuple[str, int, list[bytes]]] = []
        self.asked = 0
        self._failing = failing

    def create_batch(self) -> Noting:
        return Noting()

    async def partitions_for(self, topic: str) -> set[int]:
        self.asked += 1
        return {0, 1, 2, 3}

    async def send_batch(
        self, batch: Noting, topic: str, *, partition: int
    ) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.append((topic, partition, batch.keys))
        if partition == self._failing:
            done.set_exception(RuntimeError("not written"))
        else:
            done.set_result(None)
        return done


class Direct(Outlet):
    """An outlet on a given client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._prefix = "p."  # type: ignore[misc]

    async def _client(self) -> Any:
        return self.client


def delivered(client: Client, records: Sequence[Encoded]) -> None:
    asyncio.run(Direct(client).deliver(records))


def record(key: bytes, *, size: int = 10, partition: int | None = None) -> Encoded:
    value = b"x" * size
    return Encoded(topic="state.nodes", key=key, headers=(), value=value, partition=partition)


def test_what_goes_to_one_partition_is_one_batch_in_its_order() -> None:
    client, keys = Client(), [f"n{n}".encode() for n in range(40)]
    delivered(client, [record(key) for key in keys])
    assert {topic for topic, _, _ in client.sent} == {"p.state.nodes"}
    assert {number: found for _, number, found in client.sent} == {
        number: [key for key in keys if partition_of(key, 4) == number] for number in range(4)
    }
    assert len(client.sent) == 4
    assert client.asked == 1


def test_what_no_batch_holds_goes_in_several_and_keeps_its_order() -> None:
    client, keys = Client(), [f"n{n:02d}".encode() for n in range(30)]
    delivered(client, [record(key, size=500, partition=2) for key in keys])
    assert len(client.sent) > 2
    assert [key for _, _, found in client.sent for key in found] == keys


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    client = Client()
    delivered(client, [record(b"a", partition=0), record(b"b", size=20_000, partition=0)])
    assert [found for _, _, found in client.sent] == [[b"a"], [b"b"]]


def test_a_batch_that_is_not_written_is_heard_of() -> None:
    with pytest.raises(RuntimeError, match="not written"):
        delivered(Client(failing=1), [record(b"a", partition=0), record(b"b", partition=1)])


def test_rows_keep_their_partition_and_a_deleted_one_has_no_value() -> None:
    client = Client()
    rows: list[Entry] = [(b"0/1/0", b"row", ()), (b"0/0/0", None, ())]
    asyncio.run(Direct(client).send({("observe-nodes-changelog", 3): rows}))
    assert client.sent == [("observe-nodes-changelog", 3, [b"0/1/0", b"0/0/0"])]
