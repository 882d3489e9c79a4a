"""What a decider remembers of many pools side by side: demand's samples and the envelope's log.

The arrays say what `loop.decide.memory` says of one pool: same windows, same cooldowns. What only
people, faults and other actuators bring about (shadows, breakers, flights) does not occur here: a
command is carried out, or refused, before the next tick.
"""

from typing import Final

import numpy as np

from gpuloop.actuators.envelope import LONG_AGO_US, NODES, SENT, EnvelopeConfig, EnvelopeState
from gpuloop.loop.decide.answers import NO_CAPACITY_US
from gpuloop.loop.decide.memory import PEAK_WINDOW_US
from gpuloop.schemas.policy import CONTROL_TICK_US, PRICE, SPOT, Flags, Floats, Integers
from gpuloop.schemas.units import MINUTE_US

SAMPLES: Final = PEAK_WINDOW_US // CONTROL_TICK_US + 1


class Samples:
    """Demand and cumulative counters of n pools at the latest ticks, oldest first."""

    def __init__(self, rows: int) -> None:
        """Know nothing yet."""
        self._kept = np.zeros((0, 4, rows))

    def add(self, demand: Floats, arrived_gpus: Floats, arrived: Floats, refused: Floats) -> None:
        """Take in a tick, each (n,)."""
        newest = np.stack([demand, arrived_gpus, arrived, refused])[None]
        self._kept = np.concatenate([self._kept, newest])[-SAMPLES:]

    @property
    def minutes(self) -> float:
        """Return the time between the first and the last tick, at least one minute."""
        return max(1.0, (len(self._kept) - 1) * CONTROL_TICK_US / MINUTE_US)

    @property
    def peak(self) -> Floats:
        """Return the most that was demanded, (n,) GPUs."""
        most: Floats = self._kept[:, 0].max(axis=0)
        return most

    def since_first(self) -> tuple[Floats, Floats, Floats]:
        """Return GPUs and jobs that arrived and jobs that were refused meanwhile, each (n,)."""
        gpus, jobs, refused = self._kept[-1, 1:] - self._kept[0, 1:]
        return gpus, jobs, refused


class ChangeLog:
    """The executed changes of n pools within the envelope's window."""

    def __init__(self, rows: int, config: EnvelopeConfig) -> None:
        """Begin without a past."""
        self._window_us: Final = config.window_us
        slots = -(-config.window_us // CONTROL_TICK_US) + 1
        self._at_us: Final = np.full((slots, rows), LONG_AGO_US)
        self._started: Final = np.zeros((slots, rows))
        self._stopped: Final = np.zeros((slots, rows))
        self._grown_us: Final = np.full(rows, LONG_AGO_US)
        self._shrunk_us: Final = np.full(rows, LONG_AGO_US)
        self._priced_us: Final = np.full(rows, LONG_AGO_US)
        self.closed_until_us: Final = np.full((rows, 2), LONG_AGO_US)
        """Until when a billing that had no capacity is not asked for more, (n, 2)."""
        self._turn = 0

    def add(self, now_us: Integers, before: Floats, after: Floats) -> None:
        """Book what was done of an action, (n, 4)."""
        step = (after - before)[:, NODES]
        started, stopped = np.maximum(step, 0.0).sum(axis=1), np.maximum(-step, 0.0).sum(axis=1)
        slot = self._turn % len(self._at_us)
        self._at_us[slot], self._started[slot], self._stopped[slot] = now_us, started, stopped
        self._grown_us[:] = np.where(started > 0.0, now_us, self._grown_us)
        self._shrunk_us[:] = np.where(stopped > 0.0, now_us, self._shrunk_us)
        priced = after[:, PRICE] != before[:, PRICE]
        self._priced_us[:] = np.where(priced, now_us, self._priced_us)
        self._turn += 1

    def close(self, now_us: Integers, refused: Flags, step: Floats) -> None:
        """Note that a growth (n, 4) was refused for want of capacity, where flagged."""
        last = np.where(step[:, SPOT] > 0.0, SPOT, 0)
        rows = np.flatnonzero(refused & (step[:, NODES] > 0.0).any(axis=1))
        self.closed_until_us[rows, last[rows]] = now_us[rows] + NO_CAPACITY_US

    def view(self, now_us: Integers) -> EnvelopeState:
        """Return what the envelope sees of the log."""
        rows = len(now_us)
        inside = self._at_us > now_us - self._window_us
        nothing, never = np.zeros(rows), np.zeros(rows, dtype=np.bool_)
        return EnvelopeState(
            last_growth_us=_within(self._grown_us, now_us, self._window_us),
            last_shrink_us=_within(self._shrunk_us, now_us, self._window_us),
            last_price_us=_within(self._priced_us, now_us, self._window_us),
            started=np.where(inside, self._started, 0.0).sum(axis=0),
            stopped=np.where(inside, self._stopped, 0.0).sum(axis=0),
            migrated=nothing,
            breaker_open=never,
            frozen=never,
            scaling_in_flight=never,
            pricing_in_flight=never,
            tier=np.full(rows, SENT),
        )


def _within(at_us: Integers, now_us: Integers, window_us: int) -> Integers:
    return np.where(at_us > now_us - window_us, at_us, LONG_AGO_US)
