"""A single-node Kafka as a process of tests, which they may kill and start again on its data."""

import os
from pathlib import Path

import psutil

from gpuloop.ops.stack import kafka
from gpuloop.ops.stack.kafka_jars import cache_folder, fetch
from gpuloop.ops.stack.ports import free_ports
from gpuloop.ops.stack.process import Child
from gpuloop.ops.stack.topics import Admin, wanted


class OwnKafka:
    """A broker in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._classpath = fetch(cache_folder(), lambda done, total: None)
        ports = free_ports(Path(f"{folder}-{os.getpid()}"))
        port, controller_port = next(ports), next(ports)
        kafka.configure(folder, self._classpath, port=port, controller_port=controller_port)
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.admin = Admin(self.bootstrap_servers)

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = kafka.program(self._folder, self._classpath)
        self._child = Child(program, self._folder / "kafka.log")
        while not self.admin.answers(1.0):
            if self._child.exit_status() is not None:
                raise AssertionError((self._folder / "kafka.log").read_text()[-2000:])

    def topics(self, prefix: str = "") -> None:
        """Create every topic of the catalogue under a prefix."""
        self.admin.apply(wanted(prefix))

    def kill(self) -> None:
        """Kill it; what it has acknowledged stays."""
        self._child.kill_group()
        self._child.reap(10.0)
        assert not psutil.pid_exists(self._child.pid)
