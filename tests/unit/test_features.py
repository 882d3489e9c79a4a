"""Feature vectors: what they know at their tick, what they say of what they do not know."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from builders import START_US, at, pool_state, received
from gpuloop.ops.cli.features import page
from gpuloop.schemas.codec import BadInput, encode
from gpuloop.schemas.component import Output, load, save
from gpuloop.schemas.messages import FeatureVector, PoolState
from gpuloop.schemas.messages.state import ClassState, Feature, QueueState
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US
from gpuloop.streams.features.compute import temporal
from gpuloop.streams.features.definitions import (
    BY_DIGEST,
    CLASS_FEATURES,
    POOL_FEATURES,
    SETS,
    TEMPORAL,
)
from gpuloop.streams.features.fold import MAX_CLASSES, Features, FeaturesState

MONDAY_US = 1_508_112_000_000_000
"""The 16th of October 2017, at midnight in UTC."""


def state(minute: float, **changes: Any) -> PoolState:
    return pool_state(tick_us=START_US + round(minute * MINUTE_US), **changes)


def tell(
    states: Iterable[PoolState], known: FeaturesState | None = None
) -> tuple[FeaturesState, list[Output]]:
    component = Features()
    now_us, told = START_US, []
    known = component.initial() if known is None else known
    for one in states:
        now_us = max(now_us, one.tick_us)
        known, outputs = component.step(known, received("state.pools", one), at(now_us))
        told += outputs
    return known, told


def vectors(outputs: Iterable[Output], job_class: str = "") -> list[FeatureVector]:
    found = [o.message for o in outputs if isinstance(o.message, FeatureVector)]
    return [vector for vector in found if vector.job_class == job_class]


def feature(vector: FeatureVector, name: str) -> tuple[float | None, int, float]:
    place = BY_DIGEST[vector.definitions].names.index(name)
    return vector.values[place], vector.ages_us[place], vector.quality[place]


def value(vector: FeatureVector, name: str) -> float | None:
    return feature(vector, name)[0]


def bytes_of(outputs: Iterable[Output]) -> list[bytes]:
    return [
        encode(o.topic, o.key, o.message, event_id=o.event_id, source="t", time_us=o.time_us).value
        for o in outputs
        if o.message is not None
    ]


def jobs_of(name: str, arrived: int = 1, running: int = 0) -> ClassState:
    return ClassState(
        job_class=name,
        running_jobs=running,
        running_gpus=8 * running,
        arrived_jobs=arrived,
        arrived_gpus=8 * arrived,
    )


def test_a_vector_holds_a_number_an_age_and_a_quality_for_every_definition() -> None:
    _, told = tell([state(0, classes=(jobs_of("batch"),))])
    for vector in [m for m in (o.message for o in told) if isinstance(m, FeatureVector)]:
        width = len(BY_DIGEST[vector.definitions].definitions)
        assert (len(vector.values), len(vector.ages_us), len(vector.quality)) == (width,) * 3


def test_windows_follow_the_demand_minute_by_minute() -> None:
    _, told = tell(state(m, allocated=100 + m) for m in range(120))
    last = vectors(told)[-1]
    assert value(last, "demand_gpus") == 219.0
    assert value(last, "demand_gpus.mean_5m") == 217.0
    assert value(last, "demand_gpus.min_1h") == 160.0
    assert value(last, "demand_gpus.max_24h") == 219.0
    assert value(last, "demand_gpus.std_5m") == pytest.approx(2**0.5, rel=1e-5)
    assert value(last, "demand_gpus.5m_ago") == 214.0
    assert value(last, "demand_gpus.1h_ago") == 159.0
    assert value(last, "demand_gpus.24h_ago") is None
    assert value(last, "demand_ramp") == pytest.approx(217.0 - 189.5)
    assert value(last, "load_ratio") == pytest.approx(219 / 192, rel=1e-5)


def test_quality_is_the_share_of_a_window_that_is_known() -> None:
    _, told = tell(state(m) for m in range(0, 60, 2))
    last = vectors(told)[-1]
    assert feature(last, "demand_gpus.mean_5m")[2] == 0.6
    assert feature(last, "demand_gpus.mean_1h")[2] == 0.5
    assert feature(last, "demand_gpus.24h_ago") == (None, 24 * HOUR_US, 0.0)


def test_a_sensor_of_little_quality_makes_windows_of_little_quality() -> None:
    weak = {"utilisation": Feature(value=0.5, age_us=MINUTE_US, quality=0.25)}
    _, told = tell(state(m, features=weak) for m in range(60))
    last = vectors(told)[-1]
    assert feature(last, "utilisation") == (0.5, MINUTE_US, 0.25)
    assert feature(last, "utilisation.mean_1h") == (0.5, MINUTE_US, 0.25)


def test_a_sensor_that_falls_silent_ages_and_is_not_taken_for_zero() -> None:
    known = [state(m) for m in range(3)]
    silent = [state(m, features={}) for m in range(3, 10)]
    last = vectors(tell([*known, *silent])[1])[-1]
    assert feature(last, "utilisation") == (None, 7 * MINUTE_US, 0.0)
    assert feature(last, "utilisation.mean_5m") == (None, 7 * MINUTE_US, 0.0)
    assert value(last, "utilisation.mean_1h") == 0.5
    assert value(last, "watts_at_full_use") is None


def test_counters_become_rates_and_one_that_fell_has_none() -> None:
    told = vectors(
        tell([state(0, arrived_gpus=10), state(2, arrived_gpus=30), state(3, arrived_gpus=5)])[1]
    )
    assert [value(v, "arrived_gpus_per_minute") for v in told] == [None, 10.0, None]


def test_the_future_changes_nothing_that_was_told() -> None:
    calm = [state(m, allocated=100) for m in range(90)]
    surge = [state(m, allocated=100 if m < 60 else 190) for m in range(90)]
    before = bytes_of(tell(calm)[1])[:60]
    assert bytes_of(tell(surge)[1])[:60] == before


def test_a_late_state_is_not_told_and_changes_only_what_is_told_after_it() -> None:
    on_time = [state(m, allocated=100) for m in range(60) if m != 30]
    late = state(30, allocated=160)
    after = [state(m, allocated=100) for m in range(60, 63)]
    _, without = tell([*on_time, *after])
    _, told = tell([*on_time, late, *after])
    told_before = len(on_time)
    assert len(told) == len(without)
    assert bytes_of(told)[:told_before] == bytes_of(without)[:told_before]
    assert value(vectors(told)[-1], "demand_gpus.max_1h") == 160.0
    assert value(vectors(without)[-1], "demand_gpus.max_1h") == 100.0


def test_a_state_that_comes_twice_or_too_late_is_counted_and_changes_nothing() -> None:
    states = [state(m, allocated=100 + m) for m in range(100)]
    plain, expected = tell(states)
    known, told = tell([*states[:50], *states[:50], *states[50:], state(2, allocated=999)])
    assert bytes_of(told) == bytes_of(expected)
    assert known.pools == plain.pools
    assert known.dropped == {"duplicate": 50, "late": 1}


def test_a_tick_between_minutes_tells_nothing() -> None:
    assert tell([state(0), state(0.5)])[1] == tell([state(0)])[1]


def test_a_state_from_the_far_future_is_refused() -> None:
    component = Features()
    far = received("state.pools", state(600))
    with pytest.raises(BadInput):
        component.step(component.initial(), far, at(START_US))


def test_an_absurd_number_is_not_known_and_spoils_nothing() -> None:
    absurd = {"utilisation": Feature(value=1e308, age_us=0, quality=1.0)}
    known, told = tell([state(0), state(1, features=absurd), state(2)])
    assert value(vectors(told)[1], "utilisation.max_5m") == 0.5
    assert value(vectors(told)[2], "utilisation.mean_5m") == 0.5
    huge = tuple(ClassState(job_class=f"c{n:02}", running_jobs=0, running_gpus=0,
                 arrived_jobs=0, arrived_gpus=INT64_MAX) for n in range(40))  # fmt: skip
    assert save(tell([state(3, classes=huge)], known)[0])


def test_job_classes_have_features_of_their_own() -> None:
    queue = QueueState(
        job_class="training", jobs=2, gpus=16,
        oldest_submitted_us=START_US - MINUTE_US, submitted_sum_us=0,
    )  # fmt: skip
    told = tell(
        state(m, queues=(queue,), classes=(jobs_of("batch", 3 + m, 2), jobs_of("training", 1)))
        for m in range(5)
    )[1]
    batch, training = vectors(told, "batch")[-1], vectors(told, "training")[-1]
    assert value(batch, "running_gpus") == 16.0
    assert value(batch, "arrived_gpus_per_minute") == 8.0
    assert value(training, "queued_gpus.mean_5m") == 16.0
    assert value(training, "oldest_wait_seconds") == 300.0
    assert value(training, "queue_pressure") == 4800.0


def test_a_class_that_is_gone_goes_on_as_zeros_and_many_share_one() -> None:
    many = tuple(jobs_of(f"c{n:02}", running=1) for n in range(MAX_CLASSES + 4))
    known, told = tell([state(0, classes=many), state(1)])
    assert value(vectors(told, "other")[0], "running_jobs") == 4.0
    assert value(vectors(told, "c00")[1], "running_jobs") == 0.0
    assert len(known.pools["a100"].classes) == MAX_CLASSES + 1


@pytest.mark.parametrize("cut", [1, 17, 61, 89])
def test_a_restart_changes_no_byte(cut: int) -> None:
    states = [state(m, allocated=m, classes=(jobs_of("batch", m),)) for m in range(90)]
    _, whole = tell(states)
    known, first = tell(states[:cut])
    _, rest = tell(states[cut:], load(FeaturesState, save(known)))
    assert bytes_of([*first, *rest]) == bytes_of(whole)


def test_time_features_tell_the_day_and_the_hour() -> None:
    def of(time_us: int) -> dict[str, float]:
        return dict(zip((name for name, _, _ in TEMPORAL), temporal(time_us), strict=True))

    monday, sunday = of(MONDAY_US), of(MONDAY_US + 6 * 24 * HOUR_US + 18 * HOUR_US)
    assert (monday["hour_of_day"], monday["day_of_week"], monday["weekend"]) == (0.0, 0.0, 0.0)
    assert (sunday["hour_of_day"], sunday["day_of_week"], sunday["weekend"]) == (18.0, 6.0, 1.0)
    assert (monday["hour_cosine"], round(sunday["hour_sine"], 9)) == (1.0, -1.0)


def test_every_input_of_a_feature_is_a_field_of_the_state_or_a_feature_before_it() -> None:
    for one in SETS.values():
        assert len(set(one.names)) == len(one.names)
        for place, definition in enumerate(one.definitions):
            for source in definition.inputs:
                assert source.startswith("state.pools: ") or source in one.names[:place], source


def test_the_page_about_features_is_what_the_definitions_say() -> None:
    written = Path(__file__).parents[2] / "docs" / "features.md"
    assert written.read_text() == page(), "gpuloop features list --markdown > docs/features.md"


def test_the_digest_of_a_set_covers_its_definitions() -> None:
    assert POOL_FEATURES.digest != CLASS_FEATURES.digest
    assert set(BY_DIGEST) == {POOL_FEATURES.digest, CLASS_FEATURES.digest}
