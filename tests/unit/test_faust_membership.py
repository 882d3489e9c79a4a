"""What the observe stage is to its consumer group, and what it hears when it is out of it."""

import asyncio
from types import SimpleNamespace

import pytest

from gpuloop.loop.shells.faust_app import ObserveConfig, build
from gpuloop.loop.shells.faust_consumer import SettledConsumer


class Silent:
    """A watch that nobody reads."""

    def ready(self) -> None: ...
    def handled(self, *_: object) -> None: ...
    def refused(self, *_: object) -> None: ...
    def known(self, *_: object) -> None: ...
    def passed_over(self, *_: object) -> None: ...


def test_a_replica_has_the_same_address_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A static member's assignment names its address, and another one breaks the library."""
    addresses = set()
    for host in ("0f3c", "9ae1"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        config = ObserveConfig(bootstrap_servers="b:9092", fleet="local", replica="two")
        addresses.add(str(build(config, Silent()).app.conf.canonical_url))
    assert addresses == {"http://two"}


def member(task: "asyncio.Task[None] | None") -> SettledConsumer:
    consumer = object.__new__(SettledConsumer)
    coordinator = SimpleNamespace(_coordination_task=task)
    consumer._thread = SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator))
    return consumer


def test_the_end_of_membership_is_heard_by_its_error() -> None:
    async def outcomes() -> list[BaseException | None]:
        async def lost() -> None:
            raise AssertionError("another address")

        async def going_on() -> None:
            await asyncio.Event().wait()

        ended, running = asyncio.create_task(lost()), asyncio.create_task(going_on())
        await asyncio.wait([ended])
        found = [member(task).coordination_error() for task in (ended, running, None)]
        running.cancel()
        await asyncio.wait([running])
        return [*found, member(running).coordination_error()]

    error, *others = asyncio.run(outcomes())
    assert str(error) == "another address"
    assert others == [None, None, None]
