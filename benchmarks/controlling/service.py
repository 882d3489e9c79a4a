"""What the days of pools cost and whom they let wait, read off what the worlds left behind.

A batch job that its tenant submitted at an accepted quote is violated when it waits for its first
start for longer than five minutes and a tenth of its work; it belongs to the UTC day on which it
was submitted. One that still waits at the end, less than that, is not judged; nor is what came
before the window. A service minute is violated as the world counts it. The two are never summed.

Cost is capacity and energy, and what is left undone at the on-demand price: what remains of
accepted jobs at the window's end, beyond what would remain had they begun at once, is paid for on
its last day, the work of those given up on the day that they were. Without that allowance the long
jobs that run at every end, whoever is in control, would be most of the cost. What tenants pay or
are paid back is not in it, for service is the other axis.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import WAITING_GRACE_US, WORK_PER_WAIT, TwinConfig
from gpuloop.twin.market import build_market
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.arrays import Rules, Specs, State
from gpuloop.twin.workload import DAY_US

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MINUTES_PER_DAY: Final = 1440
USD_MICROS: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a harness wrote down of rows that lived through whole days side by side.

    Attributes:
        first_us: (rows,) the first midnight of each row's window.
        books: (days + 1, rows, components) `state.books` at each midnight, first and last included.
        counts: (days + 1, rows, counts) `state.counts` at the same.
        work_done_us: (jobs,) `work_done_us(state, specs)` at the last midnight.
        on_demand: (rows, hours) US dollars' millionths per GPU-hour on demand by hour since
            `first_us`; the last hour's holds on.

    """

    first_us: Ints
    books: Floats
    counts: Ints
    work_done_us: Ints
    on_demand: Ints

    @property
    def days(self) -> int:
        """Return how many days the window has."""
        return len(self.books) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Days of pools: arrays (rows, days), or (days,) of one row. Money is US dollars."""

    cost_usd: Floats
    judged: Ints
    violated: Ints
    minutes: Ints
    minutes_violated: Ints

    def row(self, row: int) -> "Score":
        """Return the days of one row."""
        return Score(**{one.name: getattr(self, one.name)[row] for one in fields(self)})


def score(rules: Rules, specs: Specs, window: Window) -> Score:
    """Return what each row's days came to; `specs` are those of the window's end.

    Raises:
        ValueError: the arrays do not fit each other, or an amount of money is not a number.

    """
    _check(rules, specs, window)
    rows, days = len(window.first_us), window.days
    row = _row_of(rules, len(specs.at_us))
    first_us = window.first_us[row]
    end_us = first_us + days * DAY_US
    arrived = (specs.at_us < end_us) & (specs.fate != arrays.REFUSED)

    started, over = specs.started_us >= 0, specs.ended_us >= 0
    until_us = np.where(started, specs.started_us, np.where(over, specs.ended_us, end_us))
    wait_us = until_us - specs.at_us
    long = (wait_us > WAITING_GRACE_US) & (wait_us * WORK_PER_WAIT > specs.work_us)
    judged = arrived & (specs.at_us >= first_us) & (started | over | long)
    day = (specs.at_us - first_us) // DAY_US

    def by_day(chosen: Flags) -> Ints:
        cells = np.bincount(row[chosen] * days + day[chosen], minlength=rows * days)
        return cells.reshape(rows, days)

    paid = np.diff(window.books[:, :, [arrays.CAPACITY, arrays.ENERGY]].sum(2), axis=0).T
    violated = np.diff(window.counts[:, :, arrays.VIOLATED], axis=0).T
    serves = rules.service.astype(bool)[:, None]
    return Score(
        cost_usd=(paid + _undone(rules, specs, window, row, arrived)) / USD_MICROS,
        judged=by_day(judged),
        violated=by_day(judged & long),
        minutes=np.broadcast_to(np.where(serves, MINUTES_PER_DAY, 0), (rows, days)).copy(),
        minutes_violated=np.where(serves, violated, 0),
    )


def work_done_us(state: State, specs: Specs) -> Ints:
    """Return how much work (jobs,) of each job that waits or runs is done; 0 for all others.

    A job that waits again has what its last checkpoint saved.
    """
    rows, slots = np.nonzero(state.job[:, :, arrays.STATE] != arrays.FREE)
    jobs = state.job[rows, slots]
    running = jobs[:, arrays.STATE] == arrays.RUNNING
    since = np.maximum(state.now_us[rows] - jobs[:, arrays.MARK_US], 0)
    spec = jobs[:, arrays.SPEC]
    done = np.zeros(len(specs.at_us), np.int64)
    worked = jobs[:, arrays.DONE_US] + np.where(running, since, 0)
    done[spec] = np.minimum(worked, specs.work_us[spec])
    return done


def on_demand_prices(
    config: TwinConfig, *, traces: Path | None, start_us: int, first_us: int, hours: int
) -> Ints:
    """Return millionths of US dollars per GPU-hour on demand, (pools, hours) from `first_us` on.

    Pools that rent spot nodes only have such a price too, at which their GPUs could be rented.
    `start_us` is when the worlds began, where the price history is laid against their clock.
    """
    market = build_market(
        traces, region=config.region, fleet_start_us=start_us, market_start=config.market_start
    )
    return np.array(
        [
            [market.price(p.gpu_model, "on_demand", first_us + h * HOUR_US) for h in range(hours)]
            for p in config.pools
        ],
        np.int64,
    )


def _undone(rules: Rules, specs: Specs, window: Window, row: Ints, arrived: Flags) -> Floats:
    """Return the price (rows, days), in millionths, of accepted work that could have been done."""
    rows, days = len(window.first_us), window.days
    first_us = window.first_us[row]
    end_us = first_us + days * DAY_US
    # A job that fails has failed by itself, but for one that lost its nodes too often.
    lost = (specs.fate == arrays.FAILED) & ~specs.fails
    given_up = arrived & (lost | (specs.fate == arrays.CANCELLED)) & (specs.ended_us > first_us)
    open_ = arrived & ((specs.fate == arrays.WAITING) | (specs.fate == arrays.STARTED))
    charged = np.flatnonzero(given_up | open_)
    # What happens at a midnight is in the books of the day that ends.
    then_us = np.where(given_up, specs.ended_us, end_us)[charged]
    since_us = then_us - first_us[charged]
    hour = np.minimum(since_us // HOUR_US, window.on_demand.shape[1] - 1)
    begun_us = np.maximum(specs.at_us, rules.start_us[row])
    inevitable_us = np.maximum(specs.work_us - (end_us - begun_us), 0)
    left_us = specs.work_us - window.work_done_us - np.where(given_up, 0, inevitable_us)
    left_us = np.maximum(left_us, 0)[charged]
    price = window.on_demand[row[charged], hour]
    money = specs.gpus[charged] * (left_us / HOUR_US) * price
    cells = row[charged] * days + (since_us - 1) // DAY_US
    totals: Floats = np.bincount(cells, money, rows * days).astype(np.float64)
    return totals.reshape(rows, days)


def _row_of(rules: Rules, jobs: int) -> Ints:
    """Return which row each job belongs to; a row's jobs lie side by side."""
    found: Ints = np.searchsorted(rules.last, np.arange(jobs), side="right").astype(np.int64)
    return found


def _check(rules: Rules, specs: Specs, window: Window) -> None:
    rows, midnights = len(rules.last), len(window.books)
    shapes = {
        "first_us": (rows,),
        "books": (midnights, rows, len(COMPONENTS)),
        "counts": (midnights, rows, arrays.COUNTS),
        "work_done_us": specs.at_us.shape,
    }
    for name, shape in shapes.items():
        if getattr(window, name).shape != shape:
            raise ValueError(f"{name} is {getattr(window, name).shape} and not {shape}")
    if midnights < 2:
        raise ValueError("a window has at least one day, and books at both its midnights")
    if window.on_demand.shape[:1] != (rows,) or window.on_demand.size == 0:
        raise ValueError(f"on_demand is {window.on_demand.shape} and not ({rows}, hours)")
    if rows and int(rules.last[-1]) != len(specs.at_us):
        raise ValueError("the jobs are not those of the rules")
    if np.any(window.first_us % DAY_US):
        raise ValueError("a window begins at midnight")
    if not np.all(np.isfinite(window.books)):
        raise ValueError("an amount in the books is not a number")
