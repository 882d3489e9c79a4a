"""A real broker, secured as the containers' is: every process can do its own work and no other.

TLS for all; SCRAM for processes and people; certificates for the broker and for who governs it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import confluent_kafka as ck
import pytest

from gpuloop.loop.shells.broker import BrokerError, Partition
from gpuloop.loop.shells.kafka import KafkaBroker, KafkaConsumer, properties
from gpuloop.ops.stack import identities
from gpuloop.ops.stack import kafka as kafka_stack
from gpuloop.ops.stack.access import (
    ADMIN,
    BROKER,
    CLIENT,
    OPERATOR,
    PRINCIPALS,
    VIEWER,
    Access,
    broker_settings,
    rights,
)
from gpuloop.ops.stack.kafka_jars import cache_folder, fetch
from gpuloop.ops.stack.ports import free_ports
from gpuloop.ops.stack.process import Child
from gpuloop.ops.stack.topics import Admin, wanted
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Encoded

pytestmark = pytest.mark.timeout(180)
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Secured:
    """A secured broker, where to reach it, and the folder of identities that it knows."""

    clients: str
    admins: str
    folder: Path

    def config(self, principal: str) -> Path:
        return self.folder / principal / CLIENT

    def broker(self, principal: str, config: Path | None = None) -> KafkaBroker:
        return KafkaBroker(self.clients, config=config or self.config(principal))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    classpath = fetch(cache_folder(), lambda done, total: None)
    inside, admin, controller = islice(free_ports(folder), 3)
    identities.make(folder / "access", [LOOPBACK], datetime.now(UTC))
    kafka_stack.configure(folder, classpath, port=inside, controller_port=controller)
    listeners = {"INSIDE": inside, "ADMIN": admin}
    named = ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in listeners.items())
    with (folder / "server.properties").open("a") as file:
        for key, value in {
            "listeners": f"{named},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": named,
            "listener.security.protocol.map": "INSIDE:SASL_SSL,ADMIN:SSL,CONTROLLER:SSL",
            **broker_settings(str(folder / "access" / BROKER)),
        }.items():
            file.write(f"{key}={value}\n")
    child = Child(kafka_stack.program(folder, classpath), folder / "kafka.log")
    try:
        found = Secured(f"{LOOPBACK}:{inside}", f"{LOOPBACK}:{admin}", folder / "access")
        topics = Admin(found.admins, found.config(ADMIN))
        while not topics.answers(1.0):
            if child.exit_status() is not None:
                pytest.fail((folder / "kafka.log").read_text()[-2000:])
        access = Access(found.admins, found.config(ADMIN))
        access.admit(identities.passwords(found.folder))
        access.grant(rights())
        topics.apply(wanted())
        yield found
    finally:
        child.kill_group()
        child.reap(10.0)


def record(topic: str) -> Encoded:
    return Encoded(topic=topic, key=b"k", headers=(), value=b"{}")


def may_write(broker: KafkaBroker, topic: str) -> bool:
    try:
        broker.produce([record(topic)])
    except BrokerError as error:
        return refused(error)
    return True


def may_read(broker: KafkaBroker, topic: str) -> bool:
    try:
        broker.partitions(topic)
    except BrokerError as error:
        return refused(error)
    return True


def refused(error: BrokerError) -> bool:
    """Return False if the broker said no; any other failure is one."""
    if "authorization failed" not in str(error).lower():
        raise error
    return False


def heard(consumer: KafkaConsumer) -> None:
    """Read until the broker says something else."""
    while True:
        consumer.poll(max_records=1, timeout_s=1.0)


@pytest.mark.parametrize("principal", [name for name in PRINCIPALS if name != VIEWER])
def test_each_principal_writes_what_it_produces_and_nothing_else(
    secured: Secured, principal: str
) -> None:
    broker = secured.broker(principal)
    own = {
        right.name
        for right in rights()
        if (right.principal, right.operation) == (principal, "write")
    }
    try:
        written = {topic for topic in CATALOGUE if may_write(broker, topic)}
    finally:
        broker.close()
    assert written == own & set(CATALOGUE)


def test_a_viewer_writes_nothing(secured: Secured) -> None:
    broker = secured.broker(VIEWER)
    try:
        with pytest.raises(BrokerError, match="authorization failed"):
            broker.produce([record("decisions")])
    finally:
        broker.close()


def test_only_the_decider_writes_what_an_executor_obeys() -> None:
    writers = {
        right.principal
        for right in rights()
        if right.operation == "write" and right.name.startswith("actions.")
    }
    assert writers == {"decider", "twin"}  # The twin answers on `actions.outcomes`.
    commands = {topic for topic in CATALOGUE if topic.startswith("actions.")} - {"actions.outcomes"}
    assert not any(
        right.operation == "write" and right.name in commands
        for right in rights()
        if right.principal != "decider"
    )


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_each_principal_reads_what_it_consumes_or_produces_and_nothing_else(
    secured: Secured, principal: str
) -> None:
    broker = secured.broker(principal)
    own = {right.name for right in rights() if right.principal == principal}
    try:
        assert {topic for topic in CATALOGUE if may_read(broker, topic)} == own & set(CATALOGUE)
    finally:
        broker.close()


def test_a_reader_that_loses_its_rights_hears_of_it(secured: Secured) -> None:
    access = Access(secured.admins, secured.config(ADMIN))
    broker = secured.broker("decider")
    broker.produce([record("decisions")])
    consumer = broker.consumer({Partition("decisions", 0): 0})
    try:
        while not consumer.poll(max_records=1, timeout_s=1.0):
            pass
        access.grant(right for right in rights() if right.principal != "decider")
        with pytest.raises(BrokerError, match="authorization failed"):
            heard(consumer)
    finally:
        access.grant(rights())
        consumer.close()
        broker.close()


def person(secured: Secured, who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person who was handed an identity."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GPULOOP_")}
    own = {
        "GPULOOP_BOOTSTRAP_SERVERS": secured.clients,
        "GPULOOP_KAFKA_CONFIG": str(secured.config(who)),
    }
    return subprocess.run(
        [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
        env=kept | own, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_people_see_and_steer_as_their_identity_lets_them(secured: Secured) -> None:
    assert person(secured, OPERATOR, "control", "kill", "--reason", "a drill").returncode == 0
    for who in (OPERATOR, VIEWER):
        assert "a drill" in person(secured, who, "control", "list").stdout
        assert person(secured, who, "tail", "controls", "--no-follow").returncode == 0
    refused = person(secured, VIEWER, "control", "clear")
    assert refused.returncode == 1
    assert "authorization failed" in refused.stderr.lower()


def test_nobody_gets_in_without_the_password_or_without_tls(
    secured: Secured, tmp_path: Path
) -> None:
    given = properties(secured.config("decider"))
    for changed in (
        {**given, "sasl.password": "guessed"},
        {"security.protocol": "plaintext"},
        {**given, "security.protocol": "sasl_plaintext"},
    ):
        file = tmp_path / "client"
        file.write_text("".join(f"{key}={value}\n" for key, value in changed.items()))
        client = ck.Consumer(
            {
                "bootstrap.servers": secured.clients,
                "group.id": "x",
                "log_level": "0",
                **properties(file),
            }
        )
        try:
            with pytest.raises(ck.KafkaException):
                client.list_topics(timeout=3)
        finally:
            client.close()


def test_rights_that_are_no_longer_wanted_are_taken_away_and_those_of_others_stay(
    secured: Secured,
) -> None:
    access = Access(secured.admins, secured.config(ADMIN))
    assert access.grant(rights()) == (0, 0)
    fewer = [right for right in rights() if right.principal != "forecaster"]
    added, taken = access.grant(fewer)
    assert (added, taken) == (0, len(rights()) - len(fewer))
    assert access.grant(rights()) == (taken, 0)


def test_identities_are_kept_until_they_are_about_to_end(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert identities.make(tmp_path, ["kafka", "127.0.0.1"], now)
    before = identities.passwords(tmp_path)
    assert not identities.make(tmp_path, ["kafka"], now)
    assert identities.passwords(tmp_path) == before
    late = now + identities.VALID - identities.RENEWED
    assert identities.make(tmp_path, ["kafka"], late)
    assert identities.passwords(tmp_path) != before
    assert tmp_path.stat().st_mode & 0o077 == 0
