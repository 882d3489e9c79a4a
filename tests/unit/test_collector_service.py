"""The collector's process: which sources it has, when it says that it waits, and how it ends."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuloop.loop.collect.source import Listener
from gpuloop.loop.services import collector
from gpuloop.loop.services.collector import build, collect
from gpuloop.loop.services.collector_clock import ClockThread
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.process import Process
from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.outbox import Acknowledge, Outbox
from gpuloop.loop.shells.wall_world import WallWorld
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.component import Output
from gpuloop.schemas.errors import Explained
from processes import until

DCGM = {"targets": [{"url": "http://n1:9400/metrics"}]}


def settings(folder: Path, **sources: Any) -> Settings:
    path = folder / "collect.json"
    path.write_bytes(msgspec.json.encode(sources))
    return Settings(collect=path)


def names(folder: Path, **sources: Any) -> list[str]:
    return [source.name for source in build(settings(folder, **sources), boot=7)]


def test_exporters_and_servers_are_observed_instead_of_this_machine(tmp_path: Path) -> None:
    server = {"url": "http://p:9090", "jobs": {"running": "gpus"}}
    assert names(tmp_path, dcgm=DCGM, prometheus=server) == ["dcgm", "prometheus"]


def test_this_machine_is_observed_where_nothing_is_named_or_it_is_asked_for(
    tmp_path: Path,
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: make setup EXTRAS=collect")
    assert [source.name for source in build(Settings(), boot=7)] == ["nvml"]
    assert names(tmp_path) == ["nvml"]
    assert names(tmp_path, nvml=True, dcgm=DCGM) == ["nvml", "dcgm"]


@pytest.mark.parametrize(
    ("sources", "why"),
    [({"nvml": False}, "nothing is named"), ({"dgcm": DCGM}, "unknown field `dgcm`"),
     ({"dcgm": {"targets": [{"url": "file:///etc/passwd"}]}}, "url"),
     ({"dcgm": {"targets": []}}, "targets")],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, sources: dict[str, Any], why: str
) -> None:
    with pytest.raises(SettingsError, match=why) as error:
        names(tmp_path, **sources)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.json: No such file"):
        build(Settings(collect=tmp_path / "absent.json"), boot=7)


def test_the_example_in_the_manual_is_understood(tmp_path: Path) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text()
    found = re.search(r"```json\n(.*?)```", manual, re.S)
    assert found is not None
    assert names(tmp_path, **msgspec.json.decode(found[1])) == ["dcgm", "prometheus"]


class Spoken:
    """A source that says what a test lets it say."""

    name = "spoken"
    every_us = 1_000_000

    def __init__(self, act: Callable[[threading.Event, Listener], None]) -> None:
        self._act = act

    def run(self, stop: threading.Event, listener: Listener) -> None:
        self._act(stop, listener)


class Taken:
    """Acknowledges what it is sent."""

    def __init__(self, refusal: str | None = None) -> None:
        self._refusal = refusal
        self._sent: list[Acknowledge] = []

    def send(self, record: Encoded, done: Acknowledge) -> None:
        self._sent.append(done)

    def poll(self, timeout_s: float) -> None:
        sent, self._sent = self._sent, []
        for done in sent:
            done(self._refusal)

    def close(self) -> None:
        pass


def clock() -> ClockThread:
    broker = MemoryBroker()
    world = WallWorld(broker, "local", "n1", wall_us=lambda: 10**15, monotonic_us=lambda: 0)
    return ClockThread(world, broker)


def running(source: Spoken, sender: Taken | None = None) -> tuple[Process, Callable[[], None]]:
    """Return a process and what runs a source in it."""
    process = Process(settings=Settings(), health=Health("collector"), stop=threading.Event())
    outbox = Outbox(sender or Taken(), capacity=100)
    return process, lambda: collect(process, [source], outbox, clock())


def anything() -> Output:
    return Output(
        topic="policies.weights", key="k", message=None, event_id="e", time_us=0, payload=b"x"
    )


def test_a_source_that_cannot_be_observed_ends_the_process_with_its_reason() -> None:
    def fail(stop: threading.Event, listener: Listener) -> None:
        raise Explained("no driver")

    _, run = running(Spoken(fail))
    with pytest.raises(Explained, match="no driver"):
        run()


def test_what_kafka_refuses_for_good_ends_the_process() -> None:
    def speak(stop: threading.Event, listener: Listener) -> None:
        listener.said([anything()])
        stop.wait()

    _, run = running(Spoken(speak), Taken("unknown topic"))
    with pytest.raises(BrokerError, match="unknown topic"):
        run()


def test_a_source_that_hangs_is_told_of_and_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(collector, "SILENT_US", -10 * Spoken.every_us)
    monkeypatch.setattr(collector, "STOP_US", 0)
    process, run = running(Spoken(lambda stop, listener: hangs.wait(60) and None))
    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: process.health.report().detail == "nothing is heard from spoken")
    assert not process.health.report().ready
    process.stop.set()
    thread.join(10)
    assert not thread.is_alive()
    hangs.set()
