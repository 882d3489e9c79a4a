"""The auditor's process: reads the audited topics, chains them onto `audit`, signs checkpoints.

It needs no journal: a chain follows from its source alone. A batch is acknowledged before the next
is read, so when anything fails the process ends and its successor goes on from the last signed
checkpoint. A chain that cannot be continued honestly is an error for a person, not a new chain.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from gpuloop.loop.evaluate.anchors import Anchors
from gpuloop.loop.evaluate.audit import anchors_of, key_path, trusted_keys
from gpuloop.loop.evaluate.auditor import Auditor, last_checkpoint, sources
from gpuloop.loop.evaluate.keys import load_or_create, public_hex
from gpuloop.loop.services import metrics
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.process import serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker, Partition
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.schemas.codec import Encoded, Record

NAME: Final = "auditor"
BATCH_RECORDS: Final = 500
POLL_S: Final = 0.5

_log: Final = logging.getLogger(NAME)


def main(settings: Settings) -> None:
    """Run the auditor until it is asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    try:
        with serving(NAME, settings) as process:
            run(broker, settings, process.health, process.stop, wall_us)
    finally:
        broker.close()


def run(
    broker: Broker,
    settings: Settings,
    health: Health,
    stop: threading.Event,
    wall: Callable[[], int],
) -> None:
    """Chain records until `stop` is set; end with a checkpoint over all of them."""
    key = load_or_create(key_path(settings))
    anchors = anchors_of(settings)
    on_file = anchors.read()
    last = last_checkpoint(broker, on_file, trusted_keys(settings))
    if last is not None and last not in on_file:
        anchors.append(last)  # The predecessor wrote it and did not live to anchor it.
    auditor = Auditor(fleet=settings.fleet, key=key, last=last)
    parts = sources(broker)
    positions = auditor.positions(broker.beginnings(parts), broker.ends(parts))
    _log.info(
        "chains continue",
        extra={"checkpoint": last.number if last else None, "public_key": public_hex(key)},
    )
    consumer = broker.consumer(positions, group=f"gpuloop-{NAME}")
    try:
        while not stop.is_set():
            records = consumer.poll(max_records=BATCH_RECORDS, timeout_s=POLL_S)
            if records:
                broker.produce([_entry(auditor, record) for record in records])
                positions |= {Partition(r.topic, r.partition): r.offset + 1 for r in records}
                consumer.commit(positions)
            if auditor.due(wall()):
                _checkpoint(broker, auditor, anchors, wall())
            health.progress(
                f"{auditor.unsigned} records since the last checkpoint",
                {str(part): at for part, at in positions.items()},
            )
        if auditor.unsigned:
            _checkpoint(broker, auditor, anchors, wall())
    finally:
        consumer.close()


def _entry(auditor: Auditor, record: Record) -> Encoded:
    """Chain a record, and say so where records before it will never be: the chain says it too."""
    missing = auditor.gap(record)
    if missing:
        metrics.AUDIT_MISSED.inc(missing)
        _log.error(
            "records expired before they were audited",
            extra={"topic": record.topic, "partition": record.partition, "missing": missing},
        )
    return auditor.audit(record)


def _checkpoint(broker: Broker, auditor: Auditor, anchors: Anchors, now: int) -> None:
    checkpoint, record = auditor.checkpoint(now)
    broker.produce([record])
    anchors.append(checkpoint)
