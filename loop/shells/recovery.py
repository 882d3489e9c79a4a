"""Bring a component back to where it was: newest snapshot, then the journal to its end.

Nothing is sent while following. A followed cut whose outputs differ from what the journal says is
counted and reported but does not stop the start: after an upgrade the code that runs now is the one
that must go on, and what was sent stands.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Generic

from gpuloop.loop.shells.broker import Broker, starts
from gpuloop.loop.shells.follow import BrokerSource, follow
from gpuloop.loop.shells.journal import (
    JOURNAL,
    Entry,
    Saved,
    consecutive,
    cuts_since,
    newest_snapshot,
)
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.component import Component, S

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Generic[S]):
    """A component after its journal.

    `last_outputs` may never have left and are to be sent again; `disagreed` counts followed cuts
    whose outputs differ from what was recorded.
    """

    saved: Saved[S]
    last_outputs: list[Encoded]
    followed: int
    disagreed: int
    from_snapshot: bool


def recover(component: Component[S], broker: Broker, *, fleet: str, seed: int) -> Recovered[S]:
    """Return the component as its last process left it, or as it is before any input.

    Raises:
        JournalBroken: the journal misses a cut after the snapshot.
        PositionLost: what the journal names is no longer on its topic.

    """
    snapshot = newest_snapshot(broker, component, fleet=fleet)
    saved = snapshot or _before_any_input(component, broker)
    entries = cuts_since(broker, saved.journal_offset, component.name, fleet=fleet)
    if snapshot is None and (first := next(entries, None)) is not None:
        if first.cut.number == 1:
            entries = chain([first], entries)
        else:
            saved = _anew_after(first, entries, saved)
    # Positions in the snapshot may lack an input that was added since.
    source = BrokerSource(broker, starts(broker, component.inputs) | saved.positions)
    last: list[Encoded] = []
    followed = disagreed = 0
    try:
        for step in follow(
            component, saved, consecutive(entries, saved.number), source, fleet=fleet, seed=seed
        ):
            saved, last, followed = step.saved, step.outputs, followed + 1
            if not step.agrees:
                disagreed += 1
                log.error("followed cut disagrees", extra={"number": step.cut.number})
    finally:
        source.close()
    return Recovered(
        saved=saved,
        last_outputs=last,
        followed=followed,
        disagreed=disagreed,
        from_snapshot=snapshot is not None,
    )


def _before_any_input(component: Component[S], broker: Broker) -> Saved[S]:
    return Saved(
        state=component.initial(),
        number=0,
        now_us=0,
        wall_us=0,
        positions=starts(broker, component.inputs),
        journal_offset=broker.beginnings([JOURNAL])[JOURNAL],
    )


def _anew_after(first: Entry, rest: Iterator[Entry], saved: Saved[S]) -> Saved[S]:
    """Return `saved` numbered to go on after a journal whose beginning is gone."""
    last = first
    for entry in rest:
        last = entry
    log.warning(
        "no snapshot is usable and the journal's beginning is gone: starting anew",
        extra={"first": first.cut.number, "last": last.cut.number},
    )
    return replace(saved, number=last.cut.number, journal_offset=last.offset + 1)
