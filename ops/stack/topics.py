"""Brings a cluster's topics to what the catalogue says, and tells where they differ.

Owns creation and settings. It never deletes a topic and never changes a number of partitions: both
would move keys or lose records, so they are reported for a person to decide.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from gpuloop.loop.shells.faust_tables import changelogs
from gpuloop.loop.shells.kafka import Properties, properties
from gpuloop.ops.stack.errors import StackError
from gpuloop.schemas.catalogue import CATALOGUE

TIMEOUT_SECONDS: Final = 30.0

_NOT_YET: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A topic as it should be on the cluster, under its full name."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One way in which the cluster departs from the catalogue."""

    topic: str
    what: str
    wanted: str
    found: str


def wanted(prefix: str = "") -> tuple[Wanted, ...]:
    """Return every topic of ours, with the changelogs of the observe stage's tables."""
    return (
        *(
            Wanted(name=prefix + topic.name, partitions=topic.partitions, config=topic.config)
            for topic in CATALOGUE.values()
        ),
        *(
            Wanted(name=changelog.name, partitions=changelog.partitions, config=changelog.config)
            for changelog in changelogs(prefix)
        ),
    )


class Admin:
    """A cluster's topics, for a person with the right to change them."""

    def __init__(self, bootstrap_servers: str, config: Path | None = None) -> None:
        self._servers: Final = bootstrap_servers
        # Its own lines about unreachable brokers would drown ours; errors arrive as exceptions.
        own = {"bootstrap.servers": bootstrap_servers, "log_level": "0"}
        self._settings: Final[Properties] = {**own, **properties(config)}
        self._client: Final = AdminClient(self._settings)

    def answers(self, timeout_seconds: float) -> bool:
        """Return whether the cluster describes itself within the time.

        By metadata and not by an admin request: librdkafka aborts the process when the answer to
        one of those comes after its time, as it does from a broker that is starved.
        """
        try:
            self._client.list_topics(timeout=timeout_seconds)
        except KafkaException:
            return False
        return True

    def partitions(self) -> dict[str, int]:
        """Return the number of partitions of every topic on the cluster."""
        try:
            found = self._client.list_topics(timeout=TIMEOUT_SECONDS).topics
        except KafkaException as error:
            raise self._failed(error) from None
        return {name: len(topic.partitions) for name, topic in found.items()}

    def diff(self, topics: Sequence[Wanted]) -> list[Difference]:
        """Return where the cluster departs from `topics`; an empty list means it does not."""
        found = self.partitions()
        differences = []
        present = [topic for topic in topics if topic.name in found]
        configs = self._configs(topic.name for topic in present)
        for topic in topics:
            if topic.name not in found:
                differences.append(_difference(topic, "topic", "present", "missing"))
                continue
            if found[topic.name] != topic.partitions:
                there = str(found[topic.name])
                differences.append(_difference(topic, "partitions", str(topic.partitions), there))
            for key, value in topic.config.items():
                there = configs[topic.name].get(key, "")
                if there != value:
                    differences.append(_difference(topic, key, value, there))
        return differences

    def apply(self, topics: Sequence[Wanted], *, replication_factor: int = -1) -> list[Difference]:
        """Create what is missing, set what differs, and return what could only be reported.

        `replication_factor` -1 leaves it to the cluster. Returns when all leaders answer.
        """
        before = self.diff(topics)
        missing = {d.topic for d in before if d.what == "topic"}
        by_name = {topic.name: topic for topic in topics}
        self._create([by_name[name] for name in missing], replication_factor)
        self._set([d for d in before if d.what not in ("topic", "partitions")])
        self._await_leaders([topic.name for topic in topics])
        self._await_answers(topics)
        return [d for d in before if d.what == "partitions"]

    def _create(self, topics: Sequence[Wanted], replication_factor: int) -> None:
        if not topics:
            return
        new = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=replication_factor,
                config=topic.config,
            )
            for topic in topics
        ]
        for future in self._client.create_topics(new).values():
            try:
                future.result(TIMEOUT_SECONDS)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._failed(error) from None

    def _set(self, differences: Sequence[Difference]) -> None:
        by_topic: dict[str, list[ConfigEntry]] = {}
        for difference in differences:
            entry = ConfigEntry(
                difference.what,
                difference.wanted,
                incremental_operation=AlterConfigOpType.SET,
            )
            by_topic.setdefault(difference.topic, []).append(entry)
        if not by_topic:
            return
        resources = [
            ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
            for name, entries in by_topic.items()
        ]
        for future in self._client.incremental_alter_configs(resources).values():
            try:
                future.result(TIMEOUT_SECONDS)
            except KafkaException as error:
                raise self._failed(error) from None

    def _await_leaders(self, names: Sequence[str]) -> None:
        """Return when clients can write to every partition; each look waits for the cluster."""
        deadline = monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                found = self._client.list_topics(timeout=TIMEOUT_SECONDS).topics
            except KafkaException as error:
                raise self._failed(error) from None
            leaderless = [
                name
                for name in names
                if name not in found
                or found[name].error is not None
                or any(part.leader < 0 for part in found[name].partitions.values())
            ]
            if not leaderless:
                return
            if monotonic() > deadline:
                raise StackError(f"topic {leaderless[0]} has no leader")
            self._client.poll(0.05)

    def _await_answers(self, topics: Sequence[Wanted]) -> None:
        """Return when every leader serves its partitions, which a slow broker names long before."""
        there = self.partitions()
        parts = [(topic.name, at) for topic in topics for at in range(there[topic.name])]
        reader = Consumer({**self._settings, "group.id": "gpuloop-metadata"})

        def ask(topic: str, number: int) -> None:
            reader.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_SECONDS)

        try:
            await_answers(ask, parts, timeout_seconds=TIMEOUT_SECONDS)
        except KafkaException as error:
            raise self._failed(error) from None
        finally:
            reader.close()

    def _configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        found = {}
        for resource, future in self._client.describe_configs(resources).items():
            try:
                entries = future.result(TIMEOUT_SECONDS)
            except KafkaException as error:
                raise self._failed(error) from None
            found[resource.name] = {key: entry.value for key, entry in entries.items()}
        return found

    def _failed(self, error: KafkaException) -> StackError:
        return StackError(f"Kafka at {self._servers}: {error.args[0].str()}")


def await_answers(
    ask: Callable[[str, int], None],
    partitions: Iterable[tuple[str, int]],
    *,
    timeout_seconds: float,
) -> None:
    """Ask each partition (topic, number) until its leader answers.

    Raises:
        KafkaException: an error that waiting does not mend, or one that lasted for the whole time.

    """
    deadline = monotonic() + timeout_seconds
    for topic, number in partitions:
        while True:
            try:
                ask(topic, number)
                break
            except KafkaException as error:
                if error.args[0].code() not in _NOT_YET or monotonic() > deadline:
                    raise
                sleep(0.05)


def _difference(topic: Wanted, what: str, expected: str, found: str) -> Difference:
    return Difference(topic=topic.name, what=what, wanted=expected, found=found)
