"""Stands in for apache/kafka's entry point: the same variables, the same broker, no image.

`KAFKA_A_B_C` becomes `a.b.c`; a triple underscore is a dash, a double one an underscore. Storage is
formatted once, then this process becomes the broker.
"""

import os
import subprocess
from pathlib import Path

PROPERTIES = Path("/opt/kafka/config/server.properties")
LOG4J = Path("/opt/kafka/config/log4j2.properties")
OWN = {"KAFKA_HEAP_OPTS", "KAFKA_OPTS"}
JVM = [
    "/opt/java/bin/java",
    *os.environ.get("KAFKA_HEAP_OPTS", "-Xmx512m").split(),
    *os.environ.get("KAFKA_OPTS", "").split(),
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    f"-Dlog4j2.configurationFile={LOG4J}",
    "-cp",
    "/opt/kafka/libs/*",
]
LOGGING = """\
rootLogger.level = warn
rootLogger.appenderRef.stdout.ref = stdout
logger.server.name = kafka.server
logger.server.level = info
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
"""


def named(variable: str) -> str:
    """Return the broker's name of a setting."""
    name = variable.removeprefix("KAFKA_").lower()
    return name.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")


def main() -> None:
    """Write the settings, format the storage where that was not done, become the broker."""
    found = {
        named(variable): value
        for variable, value in os.environ.items()
        if variable.startswith("KAFKA_") and variable not in OWN
    }
    LOG4J.write_text(LOGGING)
    PROPERTIES.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
    cluster = f"--cluster-id={os.environ['CLUSTER_ID']}"
    tool = ["kafka.tools.StorageTool", "format", cluster, "-c", str(PROPERTIES)]
    subprocess.run([*JVM, *tool, "--ignore-formatted"], check=True)
    os.execv(JVM[0], [*JVM, "kafka.Kafka", str(PROPERTIES)])


if __name__ == "__main__":
    main()
