"""What leftovers of devices are worth, and placement that keeps that worth."""

import itertools

import numpy as np
import pytest

from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.fragmentation import typical
from gpuloop.twin.strategies import gradient_descent, worth_keeping
from gpuloop.twin.worth import leftover_worth
from placement_builders import nodes_with, share, whole


def test_half_a_device_is_worth_half_where_halves_are_expected() -> None:
    worth = leftover_worth([share(500)] * 10)
    assert worth[[0, 499, 500, 999, 1000]].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]


def test_leftover_that_only_rare_shares_can_use_is_worth_nothing() -> None:
    worth = leftover_worth([share(810)] * 100 + [share(160)] * 5)
    assert worth[190] == 0.0
    assert worth[810] == worth[1000] == 1.0


def test_device_is_worth_nothing_broken_where_no_shares_are_expected() -> None:
    worth = leftover_worth([whole(1)])
    assert worth[WHOLE_GPU] == 1.0
    assert not worth[:WHOLE_GPU].any()


@pytest.mark.parametrize(
    "counts",
    [
        {650: 30, 320: 40, 470: 50, 810: 20, 160: 9},
        {333: 7, 501: 11, 250: 2},
        {90: 3, 910: 5, 450: 8, 550: 1},
    ],
)
def test_total_worth_equals_the_fluid_bound_of_bin_packing(counts: dict[int, int]) -> None:
    """The prices' total equals the linear programme over every maximal filling, solved apart."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    sizes, demand = list(counts), [float(count) for count in counts.values()]
    ranges = [range(WHOLE_GPU // size + 1) for size in sizes]
    fillings = [
        filling
        for filling in itertools.product(*ranges)
        if sum(n * size for n, size in zip(filling, sizes, strict=True)) <= WHOLE_GPU
    ]
    bound = linprog(
        np.ones(len(fillings)), A_ub=-np.array(fillings).T, b_ub=-np.array(demand), method="highs"
    ).fun
    tasks = [share(size) for size, count in counts.items() for _ in range(count)]
    worth = leftover_worth(tasks)
    assert worth[WHOLE_GPU] == pytest.approx(1.0)
    assert worth[sizes] @ np.array(demand) >= bound - 1e-9
    for filling in fillings:
        held = sum(n * worth[size] for n, size in zip(filling, sizes, strict=True))
        assert held <= 1.0 + 1e-9


def test_share_goes_where_the_leftover_loses_least_worth() -> None:
    """0.05 of 1 costs a quarter, of 0.74 nothing; fragments grow on neither, so FGD cannot tell."""
    expected = [share(500)] * 6 + [share(250)] * 4
    mix = typical(expected)
    strategy = worth_keeping(mix, leftover_worth(expected))
    nodes = nodes_with([1000, 0], [0, 740])
    assert gradient_descent(mix).score(nodes, share(50)).argmax() == 0
    assert strategy.score(nodes, share(50)).argmax() == 1
    one_node, rng = nodes_with([1000, 740]), np.random.default_rng(0)
    assert strategy.devices(one_node, 0, share(50), rng) == (1,)


def test_whole_gpus_go_by_gradient_descent() -> None:
    expected = [share(500), whole(2), whole(2)]
    strategy = worth_keeping(typical(expected), leftover_worth(expected))
    nodes = nodes_with([1000, 1000], [1000])
    assert strategy.score(nodes, whole(1)).argmax() == 1
