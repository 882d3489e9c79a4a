"""The learner: the one process with torch. It writes policy versions; it never deploys one.

It holds nothing that the topics do not: experience is rebuilt from `decisions` and `rewards` at
start, and the versions on `policies` say which rounds are done. Whichever topic is far ahead of the
other is paused, so that a rebuild keeps in memory what lies between them, and nothing is lost.
"""

import logging
from typing import Final

import msgspec

from gpuloop.loop.evaluate.keys import load_or_create, public_hex
from gpuloop.loop.learn import registry
from gpuloop.loop.learn.rounds import Experience, RoundConfig, train_round
from gpuloop.loop.services import metrics
from gpuloop.loop.services.process import Process, serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker, Consumer, Partition, starts
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.schemas.codec import BadInput, Record, dead_letters, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import PolicyVersion

NAME: Final = "learner"
KEY_FILE: Final = "keys/learner.pem"
MAX_RECORDS: Final = 1000
log = logging.getLogger(NAME)


def main(settings: Settings) -> None:
    """Run the learner until it is asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    with serving(NAME, settings) as process:
        try:
            Learner(process, broker).run()
        finally:
            broker.close()


class Learner:
    """Experience so far, and the next round to train."""

    def __init__(self, process: Process, broker: Broker, config: RoundConfig | None = None) -> None:
        """Publish the shipped policy if this fleet has not seen it, and find the next round."""
        self._process = process
        self._broker = broker
        self._config = config or RoundConfig()
        self._fleet = process.settings.fleet
        self._key = load_or_create(process.settings.state_dir / KEY_FILE)
        log.info("signing policies", extra={"public_key": public_hex(self._key)})
        self._experience = Experience(self._fleet)
        ours = [v for v in registry.published(broker) if v.public_key == public_hex(self._key)]
        self._parent, self._weights = self._first_parent(ours)
        newest = max(ours, key=lambda v: v.version, default=None)
        self._rounds_done = newest.version if newest is not None else 0
        if newest is not None:
            self._experience.trained_through(newest.trained_on)

    def _first_parent(self, ours: list[PolicyVersion]) -> tuple[PolicyVersion, bytes]:
        found = registry.shipped()
        if found is None:
            raise RuntimeError("no shipped policy to start from: run `gpuloop train`")
        version, weights = msgspec.structs.replace(found[0], fleet=self._fleet), found[1]
        if all(v.policy_id != version.policy_id for v in ours):
            registry.publish(self._broker, version, weights, self._key)
            log.info("published the shipped policy", extra={"policy": version.policy_id})
        return version, weights

    def run(self) -> None:
        """Consume until asked to stop, training whenever a round is due."""
        positions = starts(self._broker, ["decisions", "rewards"])
        ends = self._broker.ends(list(positions))
        consumer = self._broker.consumer(positions, group=f"gpuloop-{NAME}")
        ahead: set[Partition] = set()
        try:
            while not self._process.stop.is_set():
                records = consumer.poll(max_records=MAX_RECORDS, timeout_s=0.5)
                for record in records:
                    self._take(record)
                    positions[Partition(record.topic, record.partition)] = record.offset + 1
                ahead = self._hold(consumer, ahead)
                if all(positions[part] >= end or part in ahead for part, end in ends.items()):
                    self._train_if_due()
                detail = (
                    f"{len(self._experience.transitions)} transitions, round {self._rounds_done}"
                )
                self._process.health.progress(detail, {str(p): o for p, o in positions.items()})
        finally:
            consumer.close()

    def _hold(self, consumer: Consumer, held: set[Partition]) -> set[Partition]:
        """Pause the partitions that are ahead of their counterpart, and go on with the others."""
        ahead = {Partition(*at) for at in self._experience.ahead()}
        if ahead - held:
            consumer.pause(ahead - held)
        if held - ahead:
            consumer.resume(held - ahead)
        return ahead

    def _take(self, record: Record) -> None:
        metrics.RECORDS.labels(NAME, record.topic).inc()
        try:
            self._experience.take(record)
        except BadInput as error:
            metrics.DEAD_LETTERS.labels(NAME, error.reason).inc()
            letters = dead_letters(record, error, stage=NAME, fleet=self._fleet)
            origin = (record.topic, str(record.partition), str(record.offset))
            self._broker.produce(
                [
                    encode(
                        "deadletters",
                        record.topic,
                        letter,
                        event_id=derived_event_id(f"{NAME}/{letter.chunk}", origin),
                        source=f"gpuloop/{self._fleet}/{NAME}",
                    )
                    for letter in letters
                ]
            )

    def _train_if_due(self) -> None:
        if not self._config.due(self._experience.fresh, rounds_done=self._rounds_done):
            return
        trained = train_round(
            self._experience,
            self._parent,
            self._weights,
            fleet=self._fleet,
            version=self._rounds_done + 1,
            seed=self._process.settings.seed,
            gradient_steps=self._config.gradient_steps,
            created_wall_us=wall_us(),
            given_up=self._process.stop.is_set,
        )
        if trained is None:
            return
        version, weights = trained
        registry.publish(self._broker, version, weights, self._key)
        self._rounds_done += 1
        self._experience.trained_through(version.trained_on)
        log.info(
            "published a policy version",
            extra={"policy": version.policy_id, "transitions": len(self._experience.transitions)},
        )
