"""Bytewax: a stateful map per key, state snapshots in its recovery store every second.

Usage: bytewax_flow.py SERVERS TOPIC RECORDS FOLDER
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, run_main
from job import Stopwatch, fold


def main(servers: str, topic: str, records: int, folder: str) -> None:
    """Run until the last record is in the state."""
    watch = Stopwatch(records)

    def keep(row: bytes | None, value: bytes) -> tuple[bytes | None, None]:
        row = fold(row, value) or row
        if watch.count():
            os._exit(0)
        return row, None

    flow = Dataflow("peer")
    source = op.input("in", flow, KafkaSource([servers], [topic], tail=True, batch_size=4096))
    keyed = op.map("key", source, lambda message: (message.key.decode(), message.value))
    kept = op.stateful_map("keep", keyed, keep)
    nothing = op.filter("nothing", kept, lambda pair: False)
    op.output("out", nothing, TestingSink([]))
    init_db_dir(Path(folder), 1)
    run_main(flow, epoch_interval=timedelta(seconds=1), recovery_config=RecoveryConfig(folder))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
