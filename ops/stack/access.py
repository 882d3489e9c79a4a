"""Who may do what on a secured cluster, and how a cluster is brought to it.

Every process has a name of its own and the rights that the service table gives it: to read what it
consumes, to write what it produces and read that back, and its own group of offsets. Beside them
stand two people: the `viewer` reads everything, the `operator` also writes what people write. What
is not granted is denied. The cluster is governed over mutual TLS by `admin`, which no process is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
)
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from gpuloop.loop.shells.faust_tables import app_id, changelogs
from gpuloop.loop.shells.kafka import properties
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.services import SERVICES
from gpuloop.schemas.catalogue import CATALOGUE

OPERATOR: Final = "operator"
VIEWER: Final = "viewer"
BROKER: Final = "broker"
ADMIN: Final = "admin"

PRINCIPALS: Final = (
    *(service.name for service in SERVICES.values() if service.reads or service.writes),
    OPERATOR,
    VIEWER,
)
"""Who signs in with a password; `broker` and `admin` have certificates."""

READER: Final = "gpuloop-reader"
"""The group that labels whoever only looks; nothing is committed under it."""

SCRAM_ITERATIONS: Final = 8192
TIMEOUT_SECONDS: Final = 30.0

_KINDS: Final = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
_OPERATIONS: Final = {"read": AclOperation.READ, "write": AclOperation.WRITE}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Right:
    """One thing that one principal may do; to read or to write includes to describe."""

    principal: str
    operation: Literal["read", "write"]
    kind: Literal["topic", "group"]
    name: str


def rights(prefix: str = "") -> tuple[Right, ...]:
    """Return everything that is allowed, under the names that a cluster has for it."""
    return tuple(sorted({right for name in PRINCIPALS for right in _rights_of(name, prefix)}))


def _rights_of(principal: str, prefix: str) -> Iterator[Right]:
    reads, writes = _topics_of(principal)
    for topic in {*reads, *writes}:
        yield Right(principal=principal, operation="read", kind="topic", name=prefix + topic)
    for topic in writes:
        yield Right(principal=principal, operation="write", kind="topic", name=prefix + topic)
    for group in (READER, f"gpuloop-{principal}"):
        yield Right(principal=principal, operation="read", kind="group", name=group)
    if principal == "observe":
        group = app_id(prefix)
        yield Right(principal=principal, operation="read", kind="group", name=group)
        for log in changelogs(prefix):
            yield Right(principal=principal, operation="read", kind="topic", name=log.name)
            yield Right(principal=principal, operation="write", kind="topic", name=log.name)


def _topics_of(principal: str) -> tuple[Sequence[str], Sequence[str]]:
    if principal in SERVICES:
        return SERVICES[principal].reads, SERVICES[principal].writes
    by_people = [topic.name for topic in CATALOGUE.values() if "people" in topic.producers]
    return list(CATALOGUE), by_people if principal == OPERATOR else []


def broker_settings(folder: str) -> dict[str, str]:
    """Return what secures a broker, beside its listeners; `folder` holds its certificate.

    Listeners named `CONTROLLER` and `ADMIN` ask for a certificate, every other for a password.
    """
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    certified = {
        f"listener.name.{name}.ssl.client.auth": "required" for name in ("controller", "admin")
    }
    return {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:CN={BROKER};User:CN={ADMIN}",
        "allow.everyone.if.no.acl.found": "false",
        "inter.broker.listener.name": "ADMIN",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{folder}/{IDENTITY}",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{folder}/{AUTHORITY}",
        **certified,
        **{
            f"listener.name.{name}.scram-sha-512.sasl.jaas.config": scram
            for name in ("inside", "host")
        },
    }


AUTHORITY: Final = "ca.pem"
IDENTITY: Final = "identity.pem"
"""A private key with the certificate of its public half."""

CLIENT: Final = "kafka.properties"


class Access:
    """The rights on a cluster, changed by whoever holds the certificate of `admin`."""

    def __init__(self, bootstrap_servers: str, config: Path) -> None:
        self._servers: Final = bootstrap_servers
        own = {"bootstrap.servers": bootstrap_servers, "log_level": "0"}
        self._client: Final = AdminClient({**own, **properties(config)})

    def admit(self, passwords: Mapping[str, str]) -> None:
        """Let principals sign in with these passwords, and with no others."""
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, SCRAM_ITERATIONS)
        wanted: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(name, how, password.encode())
            for name, password in passwords.items()
        ]
        self._await(self._client.alter_user_scram_credentials(wanted).values())

    def grant(self, wanted: Iterable[Right]) -> tuple[int, int]:
        """Make the rights of our principals these; return how many were added and taken away.

        Rights of others on the cluster are left alone.
        """
        bindings = {_binding(right) for right in wanted}
        found = {one for one in self._found() if one.principal in _OURS}
        new, gone = list(bindings - found), [_filter(one) for one in found - bindings]
        if new:
            self._await(self._client.create_acls(new).values())
        if gone:
            self._await(self._client.delete_acls(gone).values())
        return len(new), len(gone)

    def _found(self) -> list[AclBinding]:
        every = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None,  # type: ignore[arg-type]
            AclOperation.ANY, AclPermissionType.ANY,
        )  # fmt: skip
        try:
            found: list[AclBinding] = self._client.describe_acls(every).result(TIMEOUT_SECONDS)
        except KafkaException as error:
            raise self._failed(error) from None
        return found

    def _await(self, futures: Iterable[Future[Any]]) -> None:
        for future in futures:
            try:
                future.result(TIMEOUT_SECONDS)
            except KafkaException as error:
                raise self._failed(error) from None

    def _failed(self, error: KafkaException) -> StackError:
        return StackError(f"Kafka at {self._servers}: {error.args[0].str()}")


_OURS: Final = frozenset(f"User:{name}" for name in PRINCIPALS)


def _binding(right: Right) -> AclBinding:
    return AclBinding(
        _KINDS[right.kind], right.name, ResourcePatternType.LITERAL, f"User:{right.principal}", "*",
        _OPERATIONS[right.operation], AclPermissionType.ALLOW,
    )  # fmt: skip


def _filter(one: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        one.restype, one.name, one.resource_pattern_type, one.principal, one.host,
        one.operation, one.permission_type,
    )  # fmt: skip
