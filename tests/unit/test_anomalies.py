import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.reasoning.anomalies import (
    QUIET_MINUTES,
    SILENT_MINUTES,
    OpenAnomaly,
    onset,
    opens,
    still_open,
)
from gpuloop.reasoning.series import WINDOW_MINUTES, Ring, median, minute_of, spread
from gpuloop.schemas.component import load, save
from gpuloop.schemas.units import MINUTE_US


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def anomaly(heard: int = 100) -> OpenAnomaly:
    return OpenAnomaly(
        subject="n0",
        pool="a100",
        metric="temperature_celsius",
        onset=90,
        heard=heard,
        value=80.0,
        expected=50.0,
        score=30.0,
    )


@given(
    st.lists(st.tuples(st.integers(1_000, 1_400), st.integers(0, 100)), min_size=1, max_size=60),
    st.integers(1_000, 1_500),
)
def test_ring_equals_a_dictionary_of_the_last_minutes(
    puts: list[tuple[int, int]], end: int
) -> None:
    ring, kept, newest = Ring.empty(1), {}, 0
    for minute, value in puts:
        ring.put(minute, minute, row(value))
        newest = max(newest, minute)
        if minute > newest - WINDOW_MINUTES:
            kept[minute] = value
    window = ring.until(end, 1)[:, 0]
    for index, minute in enumerate(range(end - WINDOW_MINUTES + 1, end + 1)):
        known = kept.get(minute) if newest - WINDOW_MINUTES < minute <= newest else None
        assert (np.isnan(window[index]) and known is None) or window[index] == known


def test_ring_spans_minutes_and_survives_saving() -> None:
    ring = Ring.empty(2)
    ring.put(500, 504, row(1.5, 7.0))
    ring = load(Ring, save(ring))
    ring.put(506, 506, row(2.5, 8.0))
    assert ring.until(506, 2)[-7:, 0].tolist()[:5] == [1.5] * 5
    assert np.isnan(ring.until(506, 2)[-2]).all()


def test_minute_owns_the_moment_it_ends() -> None:
    assert minute_of(60 * MINUTE_US) == 59
    assert minute_of(60 * MINUTE_US + 1) == 60


@given(st.lists(st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6, width=32)), min_size=1))
def test_median_ignores_what_is_missing(values: list[float]) -> None:
    known = [value for value in values if value == value]
    found = median(row(*values))
    assert np.isnan(found) if not known else np.isclose(found, np.median(row(*known)))


def test_spread_of_normal_draws_is_their_deviation_despite_outliers() -> None:
    draws = np.random.default_rng(1).normal(5.0, 2.0, 20_000).astype(np.float32)
    draws[:1000] = 1e6
    assert abs(float(spread(draws)) - 2.0) < 0.2


def test_level_opens_on_two_of_three_minutes_and_a_count_on_one() -> None:
    assert not opens(row(0, 0, 9), at_once=False)
    assert opens(row(9, 0, 9), at_once=False)
    assert opens(row(0, 0, 9), at_once=True)
    assert not opens(row(9, 9, 0, 0, 0), at_once=True)
    assert not opens(row(np.nan, np.nan, np.nan), at_once=True)


def test_onset_is_where_the_present_run_of_bad_minutes_began() -> None:
    assert onset(row(0, 9, 0, 0, 0, 4, 8, 9)) == 2
    assert onset(row(0, 4, np.nan, 8, 9)) == 3
    assert onset(row(0, 0, 0)) == 0


def test_anomaly_closes_after_unbroken_quiet_only() -> None:
    subject = anomaly()
    quiet = row(*[1.0] * (QUIET_MINUTES - 1))
    assert still_open(subject, np.append(quiet, np.float32(9.0)), 100 + QUIET_MINUTES)
    assert still_open(subject, quiet, 104 + QUIET_MINUTES)
    assert not still_open(subject, row(1.0), 105 + QUIET_MINUTES)


def test_minutes_that_were_folded_do_not_count_again() -> None:
    subject = anomaly()
    for _ in range(10):
        assert still_open(subject, row(1.0), 101)
    assert subject.quiet == 1


def test_anomaly_of_a_silent_subject_closes() -> None:
    subject = anomaly()
    silence = np.full(200, np.nan, dtype=np.float32)
    assert still_open(subject, silence, 100 + SILENT_MINUTES - 1)
    assert not still_open(subject, silence, 100 + SILENT_MINUTES)
