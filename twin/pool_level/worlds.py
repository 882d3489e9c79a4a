"""Worlds side by side, advanced and commanded in batches."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.twin.config import MAX_LOYALTY
from gpuloop.twin.pool_level import arrays, kernel, sight
from gpuloop.twin.pool_level.arrays import FIELD, NEVER, Rules, Specs, State

GANG_NODES: Final = 17
"""Nodes that one job may hold at most."""


class SlotsFull(RuntimeError):
    """A row has more jobs waiting and running than it was given slots for."""


class PoolWorlds:
    """Rows of pools on one clock per row, all of which stand at the same distance from its start.

    Money in `state` is US dollars' millionths. Advancing and commanding are the only changes.
    """

    def __init__(self, rules: Rules, specs: Specs, *, slots: int = 4096) -> None:
        """Begin: rent what the rules say and place the jobs that run.

        Raises:
            SlotsFull: more jobs run when a row begins than there are slots.

        """
        self.rules: Final = rules
        self.specs: Final = specs
        self.state: Final = _state(rules, slots, int(specs.tenant.max(initial=0)) + 1)
        self.rows: Final = len(rules.start_us)
        self._elapsed_us = 0
        for row in range(self.rows):
            if not kernel.begin(self.state, rules, specs, row):
                raise SlotsFull(f"{slots} slots are too few for the jobs of row {row}")

    @property
    def elapsed_us(self) -> int:
        """Return how much time has passed since the rows began."""
        return self._elapsed_us

    def advance(self, duration_us: int) -> None:
        """Let time pass in all rows.

        Raises:
            SlotsFull: a row has too many jobs at once.

        """
        self._elapsed_us += duration_us
        full = kernel.advance(self.state, self.rules, self.specs, self._elapsed_us)
        if full >= 0:
            raise SlotsFull(f"row {full} has more jobs than slots")

    def scale(self, desired: NDArray[Any]) -> NDArray[np.int64]:
        """Ask for (rows, 2) nodes on demand and spot; return per row what became of the order."""
        answers = np.zeros(self.rows, np.int64)
        wanted = np.ascontiguousarray(desired, dtype=np.int64)
        kernel.order(self.state, self.rules, self.specs, wanted, answers)
        return answers

    def price(self, quotes: NDArray[Any], loyalty: NDArray[Any] | None = None) -> None:
        """Quote (rows,) prices per GPU-hour to whoever comes from now on, within the bounds.

        `loyalty` (rows,) is the ratio by which tenants with a record are told less; None leaves it.
        """
        low = self.rules.reference * self.rules.price_floor
        high = self.rules.reference * self.rules.price_ceiling
        self.state.quote[:] = np.clip(quotes, low, high)
        if loyalty is not None:
            self.state.loyalty[:] = np.clip(loyalty, 0.0, MAX_LOYALTY)

    def look(self) -> sight.Sight:
        """Return what telemetry would say of the rows now."""
        seen = sight.blank(self.rows, self.state.phase.shape[1])
        sight.look(self.state, self.rules, self.specs, seen)
        return seen

    def books(self) -> dict[str, NDArray[np.float64]]:
        """Return millionths of US dollars by ledger component, (rows,), costs negative."""
        signs = np.where(np.arange(len(COMPONENTS)) == arrays.REVENUE, 1.0, -1.0)
        signed = self.state.books * signs
        return {name: signed[:, column] for column, name in enumerate(COMPONENTS)}

    def queued_gpus(self) -> NDArray[np.int64]:
        """Return the GPUs that waiting jobs ask for, (rows,)."""
        waiting = self.state.job[:, :, arrays.STATE] == arrays.QUEUED
        gpus: NDArray[np.int64] = np.where(waiting, self.state.job[:, :, arrays.GPUS], 0)
        return np.asarray(gpus.sum(axis=1))


def _state(rules: Rules, slots: int, tenants: int) -> State:
    rows = len(rules.start_us)
    columns = rules.cold_start_us.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "desired": (rows, 2),
        "generation": (rows, 2),
        "job": (rows, slots, FIELD + 2 * GANG_NODES),
        "queue": (rows, slots),
        "rates": (rows, len(COMPONENTS)),
        "books": (rows, len(COMPONENTS)),
        "counts": (rows, arrays.COUNTS),
        "answers": (rows, arrays.KINDS, arrays.ANSWERS),
        "record_jobs": (rows, tenants),
        "record_us": (rows, tenants),
    }
    by_node = ("phase", "free", "due_us", "boot", "tenant", "lost_us", "reclaim_us", "kill_us",
               "serving")  # fmt: skip
    shapes |= dict.fromkeys(by_node, (rows, columns))
    state = State(
        **{
            name: np.zeros(shapes.get(name, (rows,)), dtype=arrays.row_type(name))
            for name in State._fields
        }
    )
    for name in ("due_us", "lost_us", "reclaim_us", "kill_us"):
        getattr(state, name)[:] = NEVER
    state.tenant[:] = -1
    state.job[:, :, arrays.NEXT_US] = NEVER
    state.now_us[:] = rules.start_us
    state.quote[:] = rules.reference
    state.node_next_us[:] = state.job_next_us[:] = -1
    return state
