"""Days of a class become days of a controller, those of one date together, each pool apart."""

import numpy as np
import pytest
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.gather import cells_of, gather
from benchmarks.controlling.service import Score

POOLS = ("h100", "a100", "l4")
DATES = (("mon", "tue"), ("mon", "tue"), ("mon", "tue"))
CLASSES: tuple[tuple[LoadClass | None, ...], ...] = (
    ("bursty", "steady"),
    ("bursty", "bursty"),
    (None, "flash"),
)


def score(factor: float = 1.0) -> Score:
    """Return three pools on two days; only the second serves."""
    numbers = np.array([[1, 2], [10, 20], [100, 200]])
    serves = np.array([[0, 0], [1, 1], [0, 0]])
    return Score(
        cost_usd=factor * numbers,
        judged=10 * numbers,
        violated=numbers,
        minutes=1440 * serves,
        minutes_violated=5 * serves,
    )


def test_pools_of_one_date_and_class_are_one_day_and_stay_apart() -> None:
    found = gather(
        "rule", (2.0, 1.0), [[score(), score(3.0)]], chosen=cells_of("bursty", CLASSES),
        dates=DATES, pools=POOLS, measure="batch",
    )  # fmt: skip
    assert found is not None
    assert (found.days, found.settings) == (("mon", "tue"), (2.0, 1.0))
    assert found.pools == ("h100", "a100"), "no day of the third is of the class"
    assert found.violated.tolist() == [[[[1, 0], [10, 20]], [[1, 0], [10, 20]]]]
    assert found.judged.tolist() == [[[[10, 0], [100, 200]], [[10, 0], [100, 200]]]]
    assert found.cost_usd.tolist() == [[[[1, 0], [10, 20]], [[3, 0], [30, 60]]]]


def test_a_pool_of_two_worlds_is_one_pool_in_the_order_of_the_rows() -> None:
    """The first is of the class in the second world only."""
    worlds = Score(**{n: np.tile(getattr(score(), n), (2, 1)) for n in Score.__dataclass_fields__})
    chosen = np.array([[0, 0], [1, 0], [0, 0], [1, 0], [1, 0], [0, 0]], bool)
    found = gather(
        "rule", (1.0,), [[worlds]], chosen=chosen, dates=2 * DATES, pools=2 * POOLS,
        measure="batch",
    )  # fmt: skip
    assert found is not None
    assert found.pools == ("h100", "a100")
    assert found.violated.tolist() == [[[[1], [20]]]]


def test_service_counts_the_pools_that_serve_and_their_cost_only() -> None:
    found = gather(
        "rule", (1.0,), [[score()]], chosen=cells_of("bursty", CLASSES), dates=DATES, pools=POOLS,
        measure="service",
    )  # fmt: skip
    assert found is not None
    assert found.pools == ("a100",)
    assert found.judged.tolist() == [[[[1440, 1440]]]]
    assert found.violated.tolist() == [[[[5, 5]]]]
    assert found.cost_usd.tolist() == [[[[10, 20]]]]


def test_class_without_days_has_no_runs() -> None:
    for load, measure in (("cyclical", "batch"), ("flash", "service")):
        chosen = cells_of(load, CLASSES)  # type: ignore[arg-type]
        assert gather("rule", (1.0,), [[score()]], chosen=chosen, dates=DATES, pools=POOLS,
                      measure=measure) is None  # type: ignore[arg-type]  # fmt: skip


def test_seeds_stay_apart() -> None:
    found = gather(
        "td3", (1.0,), [[score()], [score(2.0)]], chosen=cells_of("flash", CLASSES), dates=DATES,
        pools=POOLS, measure="batch",
    )  # fmt: skip
    assert found is not None
    assert found.cost_usd.tolist() == [[[[200]]], [[[400]]]]
    assert found.days == ("tue",)


def test_days_or_pools_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="chosen"):
        gather("rule", (1.0,), [[score()]], chosen=cells_of("flash", CLASSES[:2]), pools=POOLS[:2],
               dates=DATES[:2], measure="batch")  # fmt: skip
    with pytest.raises(ValueError, match="2 pools are named of 3"):
        gather("rule", (1.0,), [[score()]], chosen=cells_of("flash", CLASSES), pools=POOLS[:2],
               dates=DATES, measure="batch")  # fmt: skip
