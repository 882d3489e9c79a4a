"""What the observe stage writes: records and table rows, many to a batch, each batch awaited.

The library sends one record at a time, through a dozen calls each, and only logs a changelog record
that failed. Here everything that follows from one event leaves as one batch per partition, through
the same client, and the agent goes on when the broker has all of it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import faust
from faust.transport.drivers import aiokafka as driver

from gpuloop.loop.shells.faust_tables import APP
from gpuloop.loop.shells.fold import source_of
from gpuloop.loop.shells.partition import partition_of
from gpuloop.schemas.codec import Encoded, Headers

DELIVERY_SECONDS: Final = 30.0
BATCH_BYTES: Final = 512 * 1024
"""Half of what our topics take, so that a batch is never refused for its size."""

Entry = tuple[bytes, bytes | None, Headers]
Batches = Mapping[tuple[str, int], Sequence[Entry]]
"""Entries by full topic name and partition."""


class NotedTable(faust.Table[bytes, bytes]):
    """A table that notes its changes for whoever sends them to its changelog."""

    def on_key_set(self, key: bytes, value: bytes) -> None:
        """Note a row that was written."""
        self._note(key, value)

    def on_key_del(self, key: bytes) -> None:
        """Note a row that was deleted."""
        self._note(key, None)

    def changes(self) -> Batches:
        """Return what was noted since the last call, as it must stand in the changelog."""
        noted: Batches = vars(self).pop("noted", {})
        return noted

    def _note(self, key: bytes, value: bytes | None) -> None:
        noted = vars(self).setdefault("noted", {})
        place = self.changelog_topic.get_topic_name(), self.partition_for_key(key)
        noted.setdefault(place, []).append((key, value, ()))


class Outlet:
    """Sends records and waits until the broker has them."""

    def __init__(self, app: faust.App, *, fleet: str, prefix: str) -> None:
        self.fleet: Final = fleet
        self.source: Final = source_of(fleet, APP)
        self._app: Final = app
        self._prefix: Final = prefix

    async def deliver(self, records: Sequence[Encoded]) -> None:
        """Send records, in order per partition; raise when not all are acknowledged in time."""
        if not records:
            return
        client = await self._client()
        topics = {self._prefix + record.topic for record in records}
        sizes = {topic: len(await client.partitions_for(topic)) for topic in topics}
        batches: dict[tuple[str, int], list[Entry]] = {}
        for record in records:
            topic, number = self._prefix + record.topic, record.partition
            if number is None:
                number = partition_of(record.key, sizes[topic])
            entry = (record.key, record.value, record.headers)
            batches.setdefault((topic, number), []).append(entry)
        await self.send(batches)

    async def send(self, batches: Batches) -> None:
        """Send batches; raise when not all are acknowledged in time."""
        if not batches:
            return
        client, sent = await self._client(), []
        for (topic, number), entries in batches.items():
            batch = client.create_batch()
            for entry in entries:
                if not _added(batch, entry):
                    sent.append(await client.send_batch(batch, topic, partition=number))
                    batch = client.create_batch()
                    if not _added(batch, entry):
                        raise ValueError(f"a record for {topic} is larger than any batch")
            sent.append(await client.send_batch(batch, topic, partition=number))
        await asyncio.wait_for(asyncio.gather(*sent), DELIVERY_SECONDS)

    async def _client(self) -> Any:
        producer = await self._app.maybe_start_producer()
        return cast(driver.Producer, producer)._ensure_producer()


def _added(batch: Any, entry: Entry) -> bool:
    key, value, headers = entry
    added = batch.append(timestamp=None, key=key, value=value, headers=list(headers))
    return added is not None
