"""The process of the observe stage: who looks whether it moves, and what follows if not."""

import threading
from functools import partial
from typing import Any

import pytest

from gpuloop.loop.services import observe
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.watchdog import Watchdog


class Waiting(MemoryBroker):
    """A broker on which a record of every input waits for ever."""

    def committed(self, group: str, partitions: list[Partition]) -> dict[Partition, int]:
        """Return that nothing was ever committed."""
        return {}

    def ends(self, partitions: Any) -> dict[Partition, int]:
        """Return that one record waits on each."""
        return dict.fromkeys(partitions, 1)


def test_a_stage_whose_input_waits_while_nothing_moves_ends_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    def hang(observing: object, watch: object, stop: threading.Event) -> None:
        ended.wait(20)  # As a library that consumes no more and says nothing.

    monkeypatch.setattr(observe, "KafkaBroker", lambda *_, **__: Waiting())
    monkeypatch.setattr(observe, "newest_anchors", lambda *_: ())
    monkeypatch.setattr(observe, "Watchdog", partial(Watchdog, patience_s=0.0, every_s=0.01))
    monkeypatch.setattr(observe, "run", hang)
    monkeypatch.setattr(observe.os, "_exit", leave)
    observe.main(Settings(http_port=0))
    assert codes == [observe.EXIT_STUCK]
