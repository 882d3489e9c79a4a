"""Quix Streams: a stateful function per key, RocksDB state with changelog topics.

Usage: quix.py SERVERS TOPIC RECORDS FOLDER
"""

import sys

from job import Stopwatch, fold
from quixstreams import Application
from quixstreams.state import State


def main(servers: str, topic: str, records: int, folder: str) -> None:
    """Run until the last record is in the state."""
    app = Application(
        broker_address=servers,
        consumer_group="quix",
        auto_offset_reset="earliest",
        commit_interval=1.0,
        state_dir=folder,
        loglevel="ERROR",
    )
    watch = Stopwatch(records)

    def keep(value: bytes, state: State) -> None:
        row = fold(state.get_bytes("row"), value)
        if row is not None:
            state.set_bytes("row", row)
        if watch.count():
            app.stop()

    source = app.topic(topic, key_deserializer="bytes", value_deserializer="bytes")
    app.dataframe(source).apply(keep, stateful=True)
    app.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
