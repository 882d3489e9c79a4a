"""What a sink needs of a store: rows and positions that become durable together.

Two stores keep to it, and what they tell apart is all a sink knows of them: to try again, to
lay something aside, to end. How rows are written is each store's own business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gpuloop.loop.shells.broker import Partition
from gpuloop.schemas.errors import Explained
from gpuloop.streams.sinks.tables import Rows


class StoreDown(Exception):
    """The store cannot be used now, or did not say what became of a write; trying again may do."""


class StoreRefused(Exception):
    """The store refuses rows for what is in them; nothing of their batch counts as written."""


class Fenced(Explained):
    """Another process has moved this sink's positions: it works, so this one must not."""


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets [first, next) of one partition."""

    first: int
    next: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a store stands on a partition: what comes next, and how far a begun batch reached."""

    next: int
    begun: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is written as one: the span of each partition it comes from, and the rows of each."""

    spans: Mapping[Partition, Span]
    rows: Mapping[Partition, Rows]


class Store(Protocol):
    """Tables, and with them the positions of the sink that fills them."""

    def open(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        """Connect anew, make what is missing, and return where each partition stands.

        `parts` maps each partition to where one begins that the store does not know.

        Raises:
            StoreDown: it cannot be used now.

        """
        ...

    def write(self, batch: Batch) -> None:
        """Make a batch's rows and positions durable; what was written already changes nothing.

        Raises:
            StoreDown: what became of it is unknown; `open` says.
            StoreRefused: for the content of a row.
            Fenced: a position is not where the batch begins.

        """
        ...

    def tend(self, fleet_us: int) -> None:
        """Do what is due at fleet time `fleet_us`: room ahead, retention, aggregates.

        Raises:
            StoreDown: it is done another time.

        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...
