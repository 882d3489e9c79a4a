"""A process that runs the echo component live on Kafka and may kill itself on the way.

It writes a line when it has recovered.

Usage: live_process.py BOOTSTRAP PREFIX RUN [STEP OCCURRENCE]
"""

import itertools
import os
import signal
import sys
import threading
from typing import Any

from echo import FLEET, Echo, Silent

from gpuloop.loop.shells.journal import Saved
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.live import LiveConfig, LiveShell


class Announcing(Silent):
    def resumed(self, saved: Saved[Any], *, followed: int, disagreed: int, expired: int) -> None:
        print(f"resumed after {followed} cuts, {disagreed} disagree", flush=True)


def main(bootstrap: str, prefix: str, run: str, step: str = "", occurrence: str = "0") -> None:
    reached = itertools.count(1)

    def failpoint(name: str) -> None:
        if name == step and next(reached) == int(occurrence):
            os.kill(os.getpid(), signal.SIGKILL)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    config = LiveConfig(
        fleet=FLEET,
        seed=7,
        run=run,
        max_records=20,
        snapshot_every_cuts=7,
    )
    broker = KafkaBroker(bootstrap, prefix=prefix)
    LiveShell(Echo(), broker, config, Announcing(), failpoint=failpoint).run(stop)
    broker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
