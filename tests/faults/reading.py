"""A journaled component in its live shell, reading a fleet's topics with records added to them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from echo import Silent, anchor

from builders import START_US
from faults.loops import FLEET
from faults.poison import KEY, Spoil, told
from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.evaluate.keys import public_hex
from gpuloop.loop.services.causes import Diagnosis
from gpuloop.loop.services.forecaster import Foresight
from gpuloop.loop.shells.broker import starts
from gpuloop.loop.shells.follow import BrokerSource, follow
from gpuloop.loop.shells.journal import Saved, cuts_since
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.component import Component, load, save
from gpuloop.schemas.messages.internal import Segment
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.observe import Observe

SPEED = 60.0

COMPONENTS: tuple[Callable[[], Component[Any]], ...] = (
    lambda: Observe(FLEET),
    lambda: Foresight(FLEET),
    lambda: Diagnosis(FLEET),
    lambda: Decider(FLEET, trusted_keys=[public_hex(KEY)]),
    Evaluator,
)


class Reading:
    """A component in its live shell, and the fleet's topics with some records among them."""

    def __init__(
        self,
        make: Callable[[], Component[Any]],
        spoil: Spoil,
        seed: int,
        *,
        share: float = 0.1,
        instead: bool = False,
    ) -> None:
        """Add bad records to a share of the good ones, or let them stand `instead` of them."""
        self.make, self.share, self.instead = make, share, instead
        self.component = make()
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.spoil = spoil
        self.wall_us = START_US
        self.broker = MemoryBroker(wall=lambda: self.wall_us)
        self.broker.produce([anchor(wall_us=START_US, speed=SPEED)])
        self.added: list[Record] = []

    def read(self) -> list[str]:
        """Let it read everything, minute by minute; return what stopped it, if anything did."""
        config = LiveConfig(fleet=FLEET, seed=1, run="run", poll_us=0)
        shell: LiveShell[Any] = LiveShell(
            self.component, self.broker, config, Silent(), wall=lambda: self.wall_us
        )
        shell.open()
        for minute in told():
            self.say(minute)
            self.wall_us += SECOND_US
            try:
                while shell.advance():
                    pass
                load(self.component.state_type, save(shell.saved.state))
            except Exception as error:
                return [f"{self.component.name} stopped: {type(error).__name__} {error}"]
        ends = self.broker.ends(list(shell.saved.positions))
        return [
            f"{self.component.name} left {part} unread"
            for part, at in shell.saved.positions.items()
            if at != ends[part]
        ]

    def say(self, minute: Sequence[Encoded]) -> None:
        """Write what was said in a minute, and more after some of it."""
        for record in minute:
            if record.topic not in self.component.inputs:
                continue
            spoilt = self.rng.random() < self.share
            if not (spoilt and self.instead):
                self.broker.produce([record])
            if spoilt:
                added = self.spoil(record, self.rng)
                [(part, offset)] = self.broker.produce([added])
                self.added.append(self.broker.logs[part][offset])

    def differences(self) -> list[str]:
        """Return the cuts that would have led to something else without what was added."""
        topics = list(self.component.inputs)
        before: Saved[Any] = Saved(
            state=self.component.initial(), number=0, now_us=0, wall_us=0, positions={},
            journal_offset=0,
        )  # fmt: skip
        source = Without(self.broker, topics, self.added)
        cuts = cuts_since(self.broker, 0, self.component.name, fleet=FLEET)
        again = follow(self.make(), before, cuts, source, fleet=FLEET, seed=1)
        return [
            f"{self.component.name} said something else in cut {step.cut.number}"
            for step in again
            if not step.agrees
        ]


class Without(BrokerSource):
    """The records that a journal names, but some."""

    def __init__(self, broker: MemoryBroker, topics: list[str], out: Iterable[Record]) -> None:
        super().__init__(broker, starts(broker, topics))
        self.out = {(one.topic, one.partition, one.offset) for one in out}

    def take(self, segment: Segment) -> list[Record]:
        """Return the segment's records that are not left out."""
        found = super().take(segment)
        return [one for one in found if (one.topic, one.partition, one.offset) not in self.out]
