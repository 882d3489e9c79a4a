"""Windows kept minute by minute equal the same windows computed from all that is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.schemas.component import load, save
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.features.definitions import LAGS, STATISTICS, WINDOWS
from gpuloop.streams.features.windows import LATE_MINUTES, Windows, lagged, put, rolling

WIDTH = 3
START = 25_000_000
Kept = dict[int, tuple[list[float], list[float]]]

values = st.one_of(
    st.none(), st.floats(-1e6, 1e6, width=32), st.integers(0, 3).map(float), st.just(400.5)
)
rows = st.tuples(
    st.lists(values, min_size=WIDTH, max_size=WIDTH),
    st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=WIDTH, max_size=WIDTH),
)
steps = st.one_of(st.integers(1, 3), st.integers(-70, 0), st.sampled_from([45, 300, 2000, 11_000]))
histories = st.lists(st.tuples(steps, rows), min_size=1, max_size=60)


def arrivals(history: list) -> list[tuple[int, list[float], list[float]]]:  # type: ignore[type-arg]
    """Return minutes in the order of arrival: forward, back, and the same again."""
    found, newest = [], START
    for step, (said, quality) in history:
        minute = newest + step
        newest = max(newest, minute)
        found.append((minute, [math.nan if v is None else v for v in said], quality))
    return found


def spans(minute: int) -> list[tuple[int, int]]:
    """Return what each window is about: first and last minute, by its definition."""
    found = []
    for window in WINDOWS:
        pane, span = window.pane_us // MINUTE_US, window.span_us // MINUTE_US
        found.append(((minute // pane - span // pane + 1) * pane, minute))
    return found


def brute_force(kept: Kept, minute: int) -> tuple[np.ndarray, np.ndarray]:
    told = np.full((len(WINDOWS), len(STATISTICS), WIDTH), np.nan)
    share = np.zeros((len(WINDOWS), WIDTH))
    for index, (first, last) in enumerate(spans(minute)):
        for series in range(WIDTH):
            inside = [
                (said[series], quality[series])
                for at, (said, quality) in kept.items()
                if first <= at <= last and not math.isnan(said[series])
            ]
            share[index, series] = math.fsum(q for _, q in inside) / (last - first + 1)
            if inside:
                found = [value for value, _ in inside]
                mean = math.fsum(found) / len(found)
                spread = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / len(found))
                told[index, :, series] = (mean, spread, min(found), max(found))
    return told, share


def accept(kept: Kept, newest: int, minute: int) -> bool:
    return minute not in kept and (not kept or minute > newest - LATE_MINUTES)


@given(histories, st.data())
def test_incremental_windows_equal_brute_force_in_any_order_and_across_saves(
    history: list,
    data: st.DataObject,  # type: ignore[type-arg]
) -> None:
    past, kept, newest = Windows.empty(WIDTH), {}, -1
    saves = data.draw(st.sets(st.integers(0, len(history) - 1), max_size=3))
    for index, (minute, said, quality) in enumerate(arrivals(history)):
        expected = accept(kept, newest, minute)
        assert (put(past, minute, np.array(said), np.array(quality)) == "taken") == expected
        if expected:
            kept[minute] = (said, quality)
            newest = max(newest, minute)
        if index in saves:
            past = load(Windows, save(past))
    told, share = rolling(past, newest)
    truth, truth_share = brute_force(kept, newest)
    scale = np.nanmax(np.abs(truth), initial=1.0)
    np.testing.assert_allclose(told, truth, rtol=1e-6, atol=1e-9 * scale)
    np.testing.assert_allclose(share, truth_share, rtol=1e-6, atol=1e-9)


@given(histories)
def test_lags_are_what_was_known_of_that_minute_or_its_pane(history: list) -> None:  # type: ignore[type-arg]
    past, kept, newest = Windows.empty(WIDTH), {}, -1
    for minute, said, quality in arrivals(history):
        if put(past, minute, np.array(said), np.array(quality)) == "taken":
            kept[minute] = (said, quality)
            newest = max(newest, minute)
    told, _ = lagged(past, newest)
    for index, lag in enumerate(LAGS):
        size = lag.pane_us // MINUTE_US
        pane = (newest - lag.span_us // MINUTE_US) // size
        for series in range(WIDTH):
            inside = [said[series] for at, (said, _) in kept.items() if at // size == pane]
            inside = [value for value in inside if not math.isnan(value)]
            expected = math.fsum(inside) / len(inside) if inside else math.nan
            assert told[index, series] == pytest.approx(expected, rel=1e-6, abs=1e-3, nan_ok=True)


@given(histories, st.data())
def test_saving_and_loading_at_any_moment_changes_no_byte(
    history: list,
    data: st.DataObject,  # type: ignore[type-arg]
) -> None:
    straight, resumed = Windows.empty(WIDTH), Windows.empty(WIDTH)
    at = data.draw(st.integers(0, len(history) - 1))
    for index, (minute, said, quality) in enumerate(arrivals(history)):
        put(straight, minute, np.array(said), np.array(quality))
        put(resumed, minute, np.array(said), np.array(quality))
        if index == at:
            resumed = load(Windows, save(resumed))
    assert save(straight) == save(resumed)


def test_a_series_that_stands_still_deviates_by_nothing_at_all() -> None:
    past = Windows.empty(1)
    for minute in range(START, START + 3_000):
        put(past, minute, np.array([0.1]), np.array([1.0]))
    told, share = rolling(past, START + 2_999)
    assert told[:, STATISTICS.index("std"), 0].tolist() == [0.0] * len(WINDOWS)
    assert share[:4, 0].tolist() == [1.0] * 4


def test_memory_does_not_grow_with_time() -> None:
    past = Windows.empty(WIDTH)
    sizes = set()
    for minute in range(START, START + 20_000, 97):
        put(past, minute, np.ones(WIDTH), np.ones(WIDTH))
        sizes.add(len(past.minutes) + sum(len(tier) for tier in past.tiers))
    assert len(sizes) == 1
