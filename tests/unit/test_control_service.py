"""Costs and violations of days are what their definitions say, down to the edge cases."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmarks.controlling.service import (
    Score,
    Window,
    on_demand_prices,
    score,
    work_done_us,
)

from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import DEFAULT_START_US, TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.arrays import Rules, Specs
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import DAY_US

FIRST_US = 20_000 * DAY_US
END_US = FIRST_US + 2 * DAY_US


def job(at_us: int, **told: Any) -> dict[str, Any]:
    """Return a job of an hour on one GPU, started at once and finished, but for what is told."""
    usual = {"gpus": 1, "work_us": HOUR_US, "started_us": at_us, "fails": False}
    usual |= {"ended_us": at_us + 2 * HOUR_US, "fate": arrays.FINISHED, "row": 0, "done_us": 0}
    return {"at_us": at_us, **usual, **told}


def waiting(at_us: int, **told: Any) -> dict[str, Any]:
    return job(at_us, **{"started_us": -1, "ended_us": -1, "fate": arrays.WAITING, **told})


def cancelled(at_us: int, ended_us: int, **told: Any) -> dict[str, Any]:
    told = {"ended_us": ended_us, "fate": arrays.CANCELLED, **told}
    return waiting(at_us, **told)


def scored(*jobs: dict[str, Any], rows: int = 1, serves: int = 0, **changes: Any) -> Score:
    """Return the score of rows over two days with these jobs and nothing paid for."""
    ordered = sorted(jobs, key=lambda one: one["row"])
    zeros = np.zeros(len(ordered), np.int64)
    columns = dict.fromkeys(Specs._fields, zeros) | {
        name: np.array([one[name] for one in ordered], bool if name == "fails" else np.int64)
        for name in ("at_us", "gpus", "work_us", "started_us", "ended_us", "fate", "fails")
    }
    last = np.array([sum(one["row"] <= row for one in ordered) for row in range(rows)], np.int64)
    rules: Any = dict.fromkeys(Rules._fields, np.zeros(rows)) | {
        "last": last,
        "service": np.full(rows, serves),
    }
    window = Window(
        first_us=np.full(rows, FIRST_US),
        books=np.zeros((3, rows, len(COMPONENTS))),
        counts=np.zeros((3, rows, arrays.COUNTS), np.int64),
        work_done_us=np.array([one["done_us"] for one in ordered], np.int64),
        on_demand=np.full((rows, 49), 3_000_000),
    )
    return score(Rules(**rules), Specs(**columns), replace(window, **changes))


def judged(*jobs: dict[str, Any]) -> tuple[list[int], list[int]]:
    days = scored(*jobs).row(0)
    return days.judged.tolist(), days.violated.tolist()


@pytest.mark.parametrize(
    ("work_us", "wait_us", "violated"),
    [
        (MINUTE_US, 5 * MINUTE_US, 0),
        (MINUTE_US, 5 * MINUTE_US + 1, 1),
        (10 * HOUR_US, HOUR_US, 0),
        (10 * HOUR_US, HOUR_US + 1, 1),
    ],
)
def test_job_may_wait_five_minutes_or_a_tenth_of_its_work(
    work_us: int, wait_us: int, violated: int
) -> None:
    one = job(FIRST_US, work_us=work_us, started_us=FIRST_US + wait_us)
    assert judged(one) == ([1, 0], [violated, 0])


def test_job_belongs_to_the_day_of_its_submission() -> None:
    at_us = FIRST_US + DAY_US - 1
    assert judged(job(at_us, started_us=at_us + HOUR_US)) == ([1, 0], [1, 0])
    assert judged(job(at_us + 1)) == ([0, 1], [0, 0])


def test_refused_job_and_one_from_before_the_window_are_not_judged() -> None:
    refused = waiting(FIRST_US, fate=arrays.REFUSED)
    before = job(FIRST_US - 1, started_us=FIRST_US + HOUR_US)
    running = job(FIRST_US - HOUR_US, started_us=FIRST_US)
    assert judged(refused, before, running) == ([0, 0], [0, 0])


def test_job_that_waits_at_the_end_is_judged_once_it_waited_too_long() -> None:
    assert judged(waiting(END_US - 6 * MINUTE_US)) == ([0, 0], [0, 0])
    assert judged(waiting(END_US - 7 * MINUTE_US)) == ([0, 1], [0, 1])
    assert judged(waiting(END_US - 7 * MINUTE_US, work_us=2 * HOUR_US)) == ([0, 0], [0, 0])
    assert judged(waiting(END_US)) == ([0, 0], [0, 0])


def test_job_that_was_given_up_waited_until_then() -> None:
    assert judged(cancelled(FIRST_US, FIRST_US + 7 * MINUTE_US)) == ([1, 0], [1, 0])
    assert judged(cancelled(FIRST_US, FIRST_US + 5 * MINUTE_US)) == ([1, 0], [0, 0])


def test_interrupted_job_is_judged_by_its_first_start() -> None:
    again = job(FIRST_US, fate=arrays.STARTED, ended_us=-1)
    assert judged(again) == ([1, 0], [0, 0])


def cost(*jobs: dict[str, Any], **changes: Any) -> list[float]:
    return scored(*jobs, **changes).row(0).cost_usd.tolist()


def test_what_remains_at_the_end_is_paid_for_on_the_last_day() -> None:
    open_ = waiting(FIRST_US, gpus=4, work_us=2 * HOUR_US)
    assert cost(open_) == [0.0, 24.0]
    half = job(FIRST_US, fate=arrays.STARTED, ended_us=-1, gpus=4, done_us=HOUR_US // 2)
    assert cost(half) == [0.0, 6.0]


def test_what_would_remain_of_a_job_that_began_at_once_is_nobodys_fault() -> None:
    long = {"fate": arrays.STARTED, "ended_us": -1, "work_us": 100 * HOUR_US}
    at_once = job(FIRST_US, done_us=48 * HOUR_US, **long)
    assert cost(at_once) == [0.0, 0.0]
    late = job(FIRST_US, done_us=45 * HOUR_US, **long)
    assert cost(late) == [0.0, 9.0]
    never = waiting(END_US - HOUR_US, work_us=100 * HOUR_US)
    assert cost(never) == [0.0, 3.0]


def test_jobs_from_before_the_window_are_paid_for_when_they_are_not_done() -> None:
    assert cost(waiting(FIRST_US - DAY_US)) == [0.0, 3.0]
    assert cost(cancelled(FIRST_US - DAY_US, FIRST_US)) == [0.0, 0.0]


def test_work_given_up_is_paid_for_on_the_day_it_was() -> None:
    assert cost(cancelled(FIRST_US, FIRST_US + HOUR_US, gpus=2)) == [6.0, 0.0]
    assert cost(cancelled(FIRST_US, FIRST_US + DAY_US + 1)) == [0.0, 3.0]
    assert cost(cancelled(FIRST_US, END_US)) == [0.0, 3.0]
    often = job(FIRST_US, fate=arrays.FAILED)
    assert cost(often) == [3.0, 0.0]


def test_done_failed_and_refused_jobs_cost_nothing_more() -> None:
    failed = job(FIRST_US, fate=arrays.FAILED, fails=True)
    refused = waiting(FIRST_US, fate=arrays.REFUSED)
    assert cost(job(FIRST_US), failed, refused, waiting(END_US)) == [0.0, 0.0]


def test_undone_work_has_the_price_of_its_moment() -> None:
    prices = 1_000_000 * np.arange(1, 50).reshape(1, 49)
    given_up = cancelled(FIRST_US, FIRST_US + 5 * HOUR_US + 1)
    assert cost(given_up, waiting(FIRST_US), on_demand=prices) == [6.0, 49.0]


def test_cost_is_capacity_and_energy_and_no_other_component() -> None:
    books = np.zeros((3, 1, len(COMPONENTS)))
    books[:, 0] = 1e6 * np.array([[1], [10], [100]]) * 2.0 ** np.arange(len(COMPONENTS))
    assert cost(books=books) == [9 * 6.0, 90 * 6.0]


def test_service_minutes_are_those_of_rows_that_serve() -> None:
    counts = np.zeros((3, 1, arrays.COUNTS), np.int64)
    counts[:, 0, arrays.VIOLATED] = (5, 8, 20)
    days = scored(serves=1, counts=counts).row(0)
    assert (days.minutes.tolist(), days.minutes_violated.tolist()) == ([1440, 1440], [3, 12])
    batch_only = scored(serves=0, counts=counts).row(0)
    assert batch_only.minutes.sum() == batch_only.minutes_violated.sum() == 0


def test_rows_side_by_side_are_scored_as_each_alone() -> None:
    late = {"started_us": FIRST_US + 9 * HOUR_US}
    jobs = [job(FIRST_US), job(FIRST_US, row=2, **late), waiting(FIRST_US + DAY_US, row=2)]
    together = scored(*jobs, rows=3)
    assert together.judged.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert together.violated.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert together.cost_usd.tolist() == [[0.0, 0.0], [0.0, 0.0], [0.0, 3.0]]


@pytest.mark.parametrize(
    "change",
    [
        {"books": np.full((3, 1, len(COMPONENTS)), np.nan)},
        {"books": np.zeros((1, 1, len(COMPONENTS)))},
        {"first_us": np.array([FIRST_US + HOUR_US])},
        {"counts": np.zeros((2, 1, arrays.COUNTS), np.int64)},
        {"work_done_us": np.zeros(7, np.int64)},
        {"on_demand": np.zeros((2, 5), np.int64)},
    ],
)
def test_what_does_not_fit_or_is_no_number_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        scored(job(FIRST_US), **change)


def test_scores_of_worlds_agree_with_what_the_worlds_counted() -> None:
    """Nothing is cut off here: every job that came and was not refused is judged or still waits."""
    config = TwinConfig(seed=11, shape="bursty", gpu_sample_every_us=0)
    worlds = build_pool_worlds([config], hours=48, traces=None, workload="generator:bursty")
    state, specs, rules = worlds.state, worlds.specs, worlds.rules
    books, counts = [state.books.copy()], [state.counts.copy()]
    for _ in range(2):
        worlds.advance(DAY_US)
        books.append(state.books.copy())
        counts.append(state.counts.copy())
    done = work_done_us(state, specs)
    prices = on_demand_prices(
        config, traces=None, start_us=DEFAULT_START_US, first_us=DEFAULT_START_US, hours=49
    )
    window = Window(
        first_us=rules.start_us, books=np.array(books), counts=np.array(counts),
        work_done_us=done, on_demand=prices,
    )  # fmt: skip
    found = score(rules, specs, window)
    came = state.counts[:, arrays.ARRIVED] - state.counts[:, arrays.TURNED_AWAY]
    waits = (specs.fate == arrays.WAITING) & (specs.at_us < DEFAULT_START_US + 2 * DAY_US)
    assert found.judged.sum() <= came.sum() <= found.judged.sum() + waits.sum()
    assert found.minutes.tolist() == [[0, 0], [0, 0], [1440, 1440]]
    assert found.minutes_violated.sum() == state.counts[:, arrays.VIOLATED].sum()
    rented = state.books[:, [arrays.CAPACITY, arrays.ENERGY]].sum() / 1e6
    assert found.cost_usd.sum() > rented
    running = (specs.fate == arrays.STARTED) & (specs.ended_us < 0)
    assert np.all(done[running] <= specs.work_us[running])
    assert done[running].sum() > 0
    assert not done[specs.fate == arrays.FINISHED].any()


def test_spot_only_pool_has_a_price_on_demand() -> None:
    config = TwinConfig()
    prices = on_demand_prices(config, traces=None, start_us=0, first_us=0, hours=3)
    assert prices.shape == (len(config.pools), 3)
    assert np.all(prices > 0)
