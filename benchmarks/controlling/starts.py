"""Every way in which the jobs of a row can start, as columns of a linear programme.

As a job starts later, what it occupies of each step changes at a rate that is constant until its
start or its end passes from one step to the next. So starts at the first and the last moment, and
those that begin or end with a step, span all between, and no occupancy is lost to rounding. On a
grid of hours only the hour's mean is known; the jobs on it may lie anywhere within the hour.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from benchmarks.controlling.away import first_strikes
from benchmarks.controlling.programme import Entry, Programme
from numpy.typing import NDArray

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import WAITING_GRACE_US, WORK_PER_WAIT
from gpuloop.twin.jobs import COLD_START_SIGMA, WARM_START_SECONDS
from gpuloop.twin.pool_level.arrays import (
    FIELD,
    NEXT_US,
    NODES,
    RUNNING,
    SPEC,
    STATE,
    Specs,
)
from gpuloop.twin.pool_level.worlds import PoolWorlds
from gpuloop.twin.workload import DAY_US

FINE_US: Final = HOUR_US
"""Starts that may be this much apart are told apart by bin, others by hour."""

Floats = NDArray[np.float64]


class Job(NamedTuple):
    """A job; times are microseconds since the window began.

    It starts in time up to `on_time_us`, and may start until it gives up. `judged`: whether it
    counts as a violation when it does not start in time, from `violates_us` on. `spared_us` of its
    work would be left at the window's end had it begun at once, and are not charged.
    """

    at_us: int
    gpus: int
    work_us: int
    length_us: int
    patience_us: int
    watts: float
    on_time_us: int = 0
    gives_up_us: int = 0
    violates_us: int = 0
    judged: bool = False
    spared_us: int = 0

    @classmethod
    def of(cls, specs: Specs, spec: int) -> "Job":
        """Return a job that takes no longer to start than it does on warm nodes."""
        pause = WARM_START_SECONDS * float(np.exp(COLD_START_SIGMA * specs.start_normal[spec]))
        work_us = int(specs.work_us[spec])
        return cls(
            at_us=0,
            gpus=int(specs.gpus[spec]),
            work_us=work_us,
            length_us=work_us + int(pause * SECOND_US),
            patience_us=int(specs.patience_us[spec]),
            watts=float(specs.watts[spec]),
        )

    def coming(self, at_us: int, window: "Window", *, judged: bool) -> "Job":
        """Return it as one that comes at a time."""
        gives_up_us = at_us + self.patience_us
        violates_us = at_us + max(WAITING_GRACE_US, self.work_us // WORK_PER_WAIT)
        return self._replace(
            at_us=at_us,
            gives_up_us=gives_up_us,
            violates_us=violates_us,
            on_time_us=min(violates_us, gives_up_us) if judged else gives_up_us,
            judged=judged,
            spared_us=max(self.work_us - (window.ends_us - at_us), 0),
        )

    def left(self, *, at_us: int, work_us: int, window: "Window") -> "Job":
        """Return what is left of it after an interruption: nobody judges when that goes on."""
        rest = self._replace(work_us=work_us, length_us=work_us, patience_us=2 * window.ends_us)
        return rest.coming(at_us, window, judged=False)._replace(spared_us=self.spared_us)

    def usd(self, window: "Window", begins_us: int, ends_us: int, *, charged: bool = True) -> float:
        """Return the energy of a job while it runs in the window, and the price of what is left."""
        runs_us = min(ends_us, window.ends_us) - min(begins_us, window.ends_us)
        hours = window.counted_hours(begins_us, min(ends_us, window.ends_us))
        energy = self.energy_usd(window, hours)
        if not charged or ends_us <= window.ends_us:
            return energy
        left_us = min(self.length_us - runs_us, self.work_us) - self.spared_us
        return energy + self.gpus * left_us / HOUR_US * window.undone_at(window.ends_us)

    def energy_usd(self, window: "Window", hours: float) -> float:
        """Return the energy of hours; the books look once a minute and may miss a job's last."""
        seen = max(1.0 - MINUTE_US / self.length_us, 0.0)
        return self.gpus * self.watts * window.energy_usd_per_watt_hour * hours * seen


class Window(NamedTuple):
    """How long is looked at, what counts of it, and what is charged.

    `counted` is microseconds that count up to each midnight, from the first; `undone_usd` what a
    GPU-hour left undone costs by hour, 0 where the day does not count.
    """

    bins: int
    bin_us: int
    counted: Floats
    undone_usd: Floats
    energy_usd_per_watt_hour: float

    @property
    def ends_us(self) -> int:
        """Return when the window ends."""
        return self.bins * self.bin_us

    def counted_hours(self, from_us: int, until_us: int) -> float:
        """Return how many hours that count lie between two times."""
        midnights = np.linspace(0, self.ends_us, len(self.counted))
        low, high = np.interp([from_us, until_us], midnights, self.counted)
        return float(high - low) / HOUR_US

    def undone_at(self, at_us: int) -> float:
        """Return what a GPU-hour left undone costs at a time."""
        return float(self.undone_usd[min(at_us // HOUR_US, len(self.undone_usd) - 1)])


class Held(NamedTuple):
    """What is so whatever a controller does: by bin, as means.

    `gpus` of jobs that run when the row begins, until they end or a node of theirs is struck, and
    `nodes` by billing under them, (2, bins), which cannot be given up before. `usd` is what these
    jobs cost apart from nodes; `rest` is what is left of those that are struck.
    """

    gpus: Floats
    nodes: Floats
    usd: float
    rest: list["Job"]


def held_from_start(worlds: PoolWorlds, row: int, window: Window) -> Held:
    """Return what the jobs that run when a row begins hold."""
    rules, specs, state = worlds.rules, worlds.specs, worlds.state
    strikes_us = first_strikes(rules, row, hours=window.ends_us // HOUR_US)
    gpus, usd, rest = np.zeros(window.bins), 0.0, []
    until_us = np.zeros(len(strikes_us), dtype=np.int64)
    for slot in state.job[row, : state.high[row]]:
        if slot[STATE] != RUNNING:
            continue
        nodes = slot[FIELD : FIELD + 2 * slot[NODES] : 2]
        length_us = int(slot[NEXT_US] - rules.start_us[row])
        struck_us = int(strikes_us[nodes].min())
        job = Job.of(specs, int(slot[SPEC])).coming(0, window, judged=False)
        job = job._replace(length_us=length_us)
        stays_us, open_us = min(length_us, struck_us), min(length_us, window.ends_us)
        until_us[nodes] = np.maximum(until_us[nodes], stays_us)
        gpus += job.gpus * _filled(stays_us, window)
        usd += job.usd(window, 0, stays_us, charged=struck_us >= open_us)
        if struck_us < open_us:
            left_us = min(job.work_us, length_us - struck_us)
            rest.append(job.left(at_us=struck_us, work_us=left_us, window=window))
    half = len(until_us) // 2
    by_node = np.array([_filled(int(until), window) for until in until_us])
    return Held(gpus, np.array([by_node[:half].sum(axis=0), by_node[half:].sum(axis=0)]), usd, rest)


def jobs_to_start(
    worlds: PoolWorlds, row: int, window: Window, days: Sequence[bool]
) -> Iterator[Job]:
    """Yield jobs that wait when a row begins, and those that arrive and accept its first quote.

    Who waits from the beginning, or comes on a day that does not count, is not judged.
    """
    rules, specs = worlds.rules, worlds.specs
    start_us = int(rules.start_us[row])
    for spec in range(int(rules.first[row]), int(rules.last[row])):
        arrives = spec >= rules.arrivals[row]
        at_us = int(specs.at_us[spec]) - start_us if arrives else 0
        if at_us >= window.ends_us:
            return
        runs = not arrives and specs.started_us[spec] >= 0
        if runs or (arrives and specs.reservation[spec] < worlds.state.quote[row]):
            continue
        judged = arrives and bool(days[at_us // DAY_US])
        yield Job.of(specs, spec).coming(at_us, window, judged=judged)


def _filled(until_us: int, window: Window) -> Floats:
    """Return the share of each bin that lies before a time."""
    edges = np.arange(window.bins + 1) * window.bin_us
    shares: Floats = np.diff(np.minimum(edges, until_us)) / window.bin_us
    return shares


class Grid:
    """Starts by step: rows that say how many GPUs are occupied in each."""

    def __init__(self, programme: Programme, *, steps: int, step_us: int) -> None:
        """Add a column and a row for each step."""
        self.steps: Final = steps
        self.step_us: Final = step_us
        self.gpus: Final = [programme.column() for _ in range(steps)]
        self._programme: Final = programme
        self._rows: Final = [programme.equal(0.0, self._change(step)) for step in range(steps)]

    def _change(self, step: int) -> Iterator[Entry]:
        yield self.gpus[step], 1.0
        if step:
            yield self.gpus[step - 1], -1.0

    def starts_us(self, length_us: int, from_us: int, until_us: int) -> list[int]:
        """Return the starts that span all between two times, up to the end of the grid."""
        until_us = min(until_us, self.steps * self.step_us)
        found = {from_us, until_us}
        for past_us in (0, length_us % self.step_us):
            first_us = from_us + self.step_us - (from_us + past_us) % self.step_us
            found.update(range(first_us, until_us, self.step_us))
        return sorted(found)

    def occupy(self, column: int, gpus: int, start_us: int, length_us: int) -> None:
        """Let a start occupy GPUs for as long as it lasts."""
        for at_us, change in ((start_us, gpus), (start_us + length_us, -gpus)):
            step, past = at_us // self.step_us, at_us % self.step_us / self.step_us
            for place, share in ((step, 1.0 - past), (step + 1, past)):
                if place < self.steps and share:
                    self._programme.put(self._rows[place], column, -change * share)


class Starts:
    """The columns of all jobs of a row; `violations` are entries of those that violate."""

    def __init__(self, programme: Programme, window: Window) -> None:
        """Begin with grids that nothing starts on."""
        self._programme: Final = programme
        self._window: Final = window
        self.fine: Final = Grid(programme, steps=window.bins, step_us=window.bin_us)
        self.hourly: Final = Grid(programme, steps=window.ends_us // HOUR_US, step_us=HOUR_US)
        self.violations: Final[list[Entry]] = []
        self._short: Final[dict[tuple[int, int], list[Entry]]] = {}

    def add(self, job: Job) -> None:
        """Let a job start in time or late, up to the window's end, or give up."""
        window = self._window
        whole = self._programme.equal(1.0)
        apart_us = job.on_time_us - job.at_us
        grid = self.fine if apart_us <= FINE_US else self.hourly
        self._start(job, whole, grid, job.at_us, job.on_time_us, late=False)
        if job.gives_up_us > job.on_time_us and job.on_time_us < window.ends_us:
            if job.length_us < HOUR_US and job.gives_up_us < window.ends_us - 2 * HOUR_US:
                self._start_short(job, whole)
            else:
                self._start(job, whole, self.hourly, job.on_time_us, job.gives_up_us, late=True)
        if job.gives_up_us < window.ends_us:
            usd = job.gpus * job.work_us / HOUR_US * window.undone_at(job.gives_up_us)
            self._option(whole, usd, late=job.judged and job.gives_up_us > job.violates_us)

    def late_gpus(self) -> list[list[Entry]]:
        """Return by hour the mean of GPUs that jobs of the hourly grid occupy, as entries."""
        programme = self._programme
        found = [[(gpus, 1.0)] for gpus in self.hourly.gpus]
        for (first, last), entries in sorted(self._short.items()):
            hours = [programme.column() for _ in range(first, min(last + 1, len(found)))]
            programme.equal(0.0, [*entries, *((hour, -1.0) for hour in hours)])
            for place, hour in enumerate(hours):
                found[first + place].append((hour, 1.0))
        return found

    def _start(
        self, job: Job, whole: int, grid: Grid, from_us: int, until_us: int, *, late: bool
    ) -> None:
        for start_us in grid.starts_us(job.length_us, from_us, until_us):
            usd = job.usd(self._window, start_us, start_us + job.length_us)
            column = self._option(whole, usd, late=late)
            grid.occupy(column, job.gpus, start_us, job.length_us)

    def _start_short(self, job: Job, whole: int) -> None:
        """Let a job of less than an hour run in any hours in which it can: jobs alike share them.

        It may be torn apart there, so it costs no more than it would in one piece.
        """
        first = job.on_time_us // HOUR_US
        last = (job.gives_up_us + job.length_us) // HOUR_US
        runs_us = (job.on_time_us, job.gives_up_us + job.length_us)
        apart = runs_us[1] - runs_us[0] - round(self._window.counted_hours(*runs_us) * HOUR_US)
        usd = 0.0 if apart > SECOND_US else job.energy_usd(self._window, job.length_us / HOUR_US)
        column = self._option(whole, usd, late=True)
        self._short.setdefault((first, last), []).append(
            (column, job.gpus * job.length_us / HOUR_US)
        )

    def _option(self, whole: int, usd: float, *, late: bool) -> int:
        column = self._programme.column(cost=usd)
        self._programme.put(whole, column, 1.0)
        if late:
            self.violations.append((column, 1.0))
        return column
