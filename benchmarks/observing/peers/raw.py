"""A consumer loop that decodes every sample, reads its every field and keeps nothing.

Usage: raw.py SERVERS TOPIC RECORDS FOLDER
"""

import sys

import confluent_kafka as ck
from job import Stopwatch, read


def main(servers: str, topic: str, records: int) -> None:
    """Read the topic's partitions from their beginnings."""
    consumer = ck.Consumer({"bootstrap.servers": servers, "group.id": "raw"})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([ck.TopicPartition(topic, number, 0) for number in partitions])
    watch = Stopwatch(records)
    while True:
        # As many as the framer takes at once: a few thousand cost a bare loop more as well.
        for message in consumer.consume(64, 0.1):
            read(message.value())
            if watch.count():
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
