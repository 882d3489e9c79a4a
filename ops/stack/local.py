"""Which units make up a stack, and with which settings each of them runs.

Owns ports, connection strings and the first words on a new world's topics. It does not start
anything itself: `supervisor` does, in the order that `needs` gives.
"""

import http.client
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.evaluate.keys import KeyFileError, load_or_create, public_hex
from gpuloop.loop.services.health import Report
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError, Partition
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack import controls, kafka, kafka_jars, monitor, postgres
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.ports import LOOPBACK, free_ports, requested
from gpuloop.ops.stack.process import Program
from gpuloop.ops.stack.scale import worker
from gpuloop.ops.stack.services import SERVICES, Service
from gpuloop.ops.stack.stores import Stores
from gpuloop.ops.stack.topics import Admin, wanted
from gpuloop.ops.stack.unit import Answer, Unit

PROBE_SECONDS: Final = 2.0
HUNG_SECONDS: Final = 60.0
"""Slow is not hung: an answer takes microseconds of a process that gets to run at all."""

STOP_SECONDS: Final = 12.0
TOPICS_TRIES: Final = 5
"""A Kafka that has just begun to answer may not know all of its metadata yet."""

LEARNER_KEY: Final = "learner.pem"

# One thread per numeric library: the processes share few cores, and threads cost memory.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person asked of `gpuloop up`."""

    root: Path
    settings: Settings
    existing_cluster: bool = False
    apply_topics: bool = False
    replication_factor: int = -1
    kafka_port: int | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(slots=True)
class LocalStack:
    """A stack about to run: its units, and how to reach what they will be."""

    options: Options
    settings: Settings
    units: list[Unit]
    services: tuple[str, ...]
    broker: KafkaBroker
    ports: Iterator[int]
    stores: Stores
    baseline: dict[Partition, int] = field(default_factory=dict)
    """The end of every partition when the services were started."""

    def worker(self, name: str, number: int) -> Unit:
        """Return the unit of a service's nth worker."""
        replica = msgspec.structs.replace(self.settings, replica=str(number))
        unit = _service_unit(SERVICES[name], replica, next(self.ports), self.stores)
        return replace(unit, name=worker(name, number))

    @property
    def simulated(self) -> bool:
        """Return whether the fleet is this stack's twin."""
        return "twin" in self.services


def chosen(options: Options) -> tuple[Service, ...]:
    """Return the services to run.

    Raises:
        StackError: a name is not in the table.

    """
    known = {*SERVICES, "kafka", "postgres"}
    for name in (*options.only, *options.without):
        if name not in known:
            raise StackError(f"no service {name}; there are {', '.join(sorted(known))}")
    given = bool(options.settings.clickhouse_url)
    there = {
        "sink-timescale": bool(options.settings.postgres_dsn) or _wants(options, "postgres"),
        "sink-clickhouse": given or _wants(options, "clickhouse"),
    }
    for name, found in there.items():
        if name in options.only and not found:
            raise StackError(f"{name} has nothing to write to: name its store as well")
    return tuple(
        service
        for service in SERVICES.values()
        if (service.name in options.only if options.only else service.profile != "gpu")
        and service.name not in options.without
        and there.get(service.name, True)
        and not (service.name == "clickhouse" and given)
    )


def assemble(options: Options, classpath: Sequence[Path]) -> LocalStack:
    """Return the stack that the options describe; nothing has been started.

    `classpath` holds Kafka's jars, and is not used with an existing cluster.

    Raises:
        StackError: a requested port is taken, or something that the stack needs is missing.

    """
    layout, settings = Layout(options.root), options.settings
    ports = free_ports(options.root)
    services = chosen(options)
    own_kafka = not options.existing_cluster
    port, controller_port = next(ports), next(ports)
    if own_kafka:
        if options.kafka_port is not None:
            port = requested(options.kafka_port, purpose="Kafka")
        settings = msgspec.structs.replace(settings, bootstrap_servers=f"{LOOPBACK}:{port}")
    to = Stores(postgres_dsn=settings.postgres_dsn, clickhouse_url=settings.clickhouse_url)
    server = None
    if not settings.postgres_dsn and _wants(options, "postgres"):
        server, server_port = postgres.locate(options.root), next(ports)
        settings = msgspec.structs.replace(settings, postgres_dsn=server.dsn(server_port))
        to.own(server, server_port, options.root)
    http = {service.name: next(ports) for service in services}
    settings = msgspec.structs.replace(
        settings,
        state_dir=options.root,
        trusted_keys=(*settings.trusted_keys, _learner_key(layout)),
    )
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    names = tuple(service.name for service in services)
    stack = LocalStack(options, settings, [], names, broker, ports, to)
    stack.units.append(
        _kafka_unit(layout, settings, classpath, port, controller_port)
        if own_kafka
        else _cluster_unit(settings)
    )
    if server is not None:
        stack.units.append(_postgres_unit(server, server_port, settings.postgres_dsn))
    stack.units.append(_topics_unit(stack, own_kafka=own_kafka))
    if "clickhouse" in http:
        to.embedded(http["clickhouse"], options.root)
    stack.settings = msgspec.structs.replace(settings, clickhouse_url=to.clickhouse_url)
    for service in services:
        stack.units.append(_service_unit(service, settings, http[service.name], to))
    return stack


def _wants(options: Options, name: str) -> bool:
    return name not in options.without and (not options.only or name in options.only)


def _learner_key(layout: Layout) -> str:
    try:
        return public_hex(load_or_create(layout.keys / LEARNER_KEY))
    except KeyFileError as error:
        raise StackError(str(error)) from None


def _kafka_unit(
    layout: Layout, settings: Settings, classpath: Sequence[Path], port: int, controller_port: int
) -> Unit:
    def prepare() -> str:
        kafka.configure(layout.kafka, classpath, port=port, controller_port=controller_port)
        return ""

    admin = Admin(settings.bootstrap_servers)
    detail = f"Apache Kafka {kafka_jars.KAFKA_VERSION}"
    return Unit(
        name="kafka",
        prepare=prepare,
        program=lambda: kafka.program(layout.kafka, classpath),
        probe=lambda: Answer(admin.answers(PROBE_SECONDS), detail),
        port=port,
    )


def _cluster_unit(settings: Settings) -> Unit:
    admin = Admin(settings.bootstrap_servers, settings.kafka_config)

    def prepare() -> str:
        if not admin.answers(10.0):
            raise StackError(f"no Kafka answers at {settings.bootstrap_servers}")
        return f"existing cluster at {settings.bootstrap_servers}"

    return Unit(name="kafka", prepare=prepare)


def _topics_unit(stack: LocalStack, *, own_kafka: bool) -> Unit:
    options, settings = stack.options, stack.settings

    def prepare() -> str:
        admin = Admin(settings.bootstrap_servers, settings.kafka_config)
        topics = wanted(settings.topic_prefix)
        if own_kafka or options.apply_topics:
            factor = 1 if own_kafka else options.replication_factor
            admin.apply(topics, replication_factor=factor)
        elif missing := [d.topic for d in admin.diff(topics) if d.what == "topic"]:
            raise StackError(
                f"{len(missing)} topics are missing on {settings.bootstrap_servers}, among them "
                f"{missing[0]}: run `gpuloop topics apply`, or pass --apply-topics"
            )
        try:
            if stack.simulated:
                controls.publish_first(stack.broker, settings.fleet)
            stack.baseline = monitor.ends(stack.broker)
        except BrokerError as error:
            raise StackError(str(error)) from None
        return f"{len(topics)} topics"

    return Unit(name="topics", needs=("kafka",), prepare=prepare, tries=TOPICS_TRIES)


def _postgres_unit(server: postgres.Postgres, port: int, dsn: str) -> Unit:
    def prepare() -> str:
        postgres.create(server)
        return ""

    return Unit(
        name="postgres",
        prepare=prepare,
        program=lambda: server.program(port),
        probe=lambda: Answer(True, postgres.describe(dsn)),
        port=port,
    )


def _service_unit(service: Service, settings: Settings, port: int, to: Stores) -> Unit:
    own = msgspec.structs.replace(to.settings(service.name, settings), http_port=port)
    # What the person's environment says about other libraries goes along; ours is exactly this.
    environment = {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
    program = Program(
        arguments=(sys.executable, *service.arguments),
        environment=environment | own.environment(),
        folder=settings.state_dir,  # Whatever a library drops where it stands, it drops there.
        niceness=service.niceness,
        stop_seconds=STOP_SECONDS,
    )
    # What nothing waits for does not compete with what everything waits for; and after a crash of
    # the whole stack the clock on the topic has run on, until the world says where it resumes.
    needs = service.needs or ("kafka",)
    if service.reads and service.name != "twin":
        needs = (*needs, "twin")
    if service.name in to.waits:
        needs = (*needs, to.waits[service.name])
    return Unit(
        name=service.name,
        needs=needs,
        prepare=lambda: to.prepare(service.name),
        program=lambda: program,
        probe=lambda: ask(port, loop_seconds=service.loop_seconds),
        port=port,
        hung_seconds=HUNG_SECONDS,
    )


def ask(port: int, *, loop_seconds: float | None = None) -> Answer:
    """Return what the service on `port` says of itself.

    Its endpoint has threads of its own: who answers for a loop that has said nothing for
    `loop_seconds` does not answer for the service.
    """
    report = health(port)
    if report is None:
        return Answer(False, "no answer", answered=False)
    if loop_seconds is not None and report.silent_seconds > loop_seconds:
        return Answer(False, f"its loop stands at: {report.detail}", answered=False)
    return Answer(report.ready, report.detail, outside=report.outside)


def health(port: int) -> Report | None:
    """Return the `/health` of the service on `port`, or None when it does not answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/health")
        return msgspec.json.decode(connection.getresponse().read(), type=Report)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return None
    finally:
        connection.close()
