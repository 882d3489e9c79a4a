"""Faust as its manual shows it: one agent, one table with a changelog, set once per message.

Usage: faust_per_message.py SERVERS TOPIC RECORDS FOLDER
"""

import os
import sys

import faust
from job import Stopwatch, fold


def main(servers: str, topic: str, records: int, folder: str) -> None:
    """Run until the last record is in the table."""
    app = faust.App(
        "per-message",
        broker=f"kafka://{servers}",
        store="memory://",
        datadir=folder,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        topic_partitions=4,
        web_enabled=False,
    )
    table = app.Table("rows", key_type=bytes, value_type=bytes, partitions=4)
    watch = Stopwatch(records)

    @app.agent(app.topic(topic, key_type=bytes, value_type=bytes))
    async def keep(stream: faust.Stream[bytes]) -> None:
        async for key, value in stream.items():
            row = fold(table.get(key), value)
            if row is not None:
                table[key] = row
            if watch.count():
                os._exit(0)

    sys.argv[1:] = ["worker", "--loglevel=error", "--without-web"]
    app.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
