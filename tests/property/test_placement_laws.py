"""Whatever comes and however it is placed: nothing is given twice, and nothing gets lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.twin.filling import fill
from gpuloop.twin.fit import Ask, Nodes, fits, take
from gpuloop.twin.fragmentation import fragmentation, typical
from gpuloop.twin.strategies import studied
from placement_builders import no_gpu, nodes_with, share, whole

shapes = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([8000, 32_000, 96_000]), st.integers(0, 1)),
    min_size=1,
    max_size=5,
)
tasks_of_all_kinds = st.one_of(
    st.builds(share, st.integers(1, 999), st.integers(0, 20_000)),
    st.builds(whole, st.integers(1, 4), st.integers(0, 20_000)),
    st.builds(no_gpu, st.integers(1, 40_000)),
    st.builds(whole, st.just(1), st.just(100), models=st.just((1,))),
)
names = st.sampled_from(sorted(studied([whole(1)])))


def free_nodes(shape: list[tuple[int, int, int]]) -> Nodes:
    return nodes_with(
        *[[1000] * gpus for gpus, _, _ in shape],
        cpu=[cpu for _, cpu, _ in shape],
        model=[model for _, _, model in shape],
    )


@given(shapes, st.lists(tasks_of_all_kinds, min_size=1, max_size=40), names, st.integers(0, 99))
def test_no_device_or_cpu_is_given_twice_and_what_is_free_and_taken_is_all(
    shape: list[tuple[int, int, int]], tasks: list[Ask], name: str, seed: int
) -> None:
    nodes, rng, strategy = free_nodes(shape), np.random.default_rng(seed), studied(tasks)[name]
    gpu, cpu, taken = int(nodes.gpu_milli.sum()), int(nodes.cpu_milli.sum()), [Ask()]
    for task in tasks:
        holding = np.flatnonzero(fits(nodes, task))
        if not len(holding):
            continue
        row = int(holding[strategy.score(nodes.rows(holding), task).argmax()])
        take(nodes, row, task, strategy.devices(nodes, row, task, rng))
        taken.append(task)
        assert nodes.gpu_milli.min() >= 0
        assert nodes.cpu_milli.min() >= 0
    assert int(nodes.gpu_milli.sum()) + sum(task.total_milli for task in taken) == gpu
    assert int(nodes.cpu_milli.sum()) + sum(task.cpu_milli for task in taken) == cpu


@given(shapes, st.lists(tasks_of_all_kinds, min_size=1, max_size=40), names, st.integers(0, 99))
def test_scores_kept_between_arrivals_place_as_fresh_ones_do(
    shape: list[tuple[int, int, int]], tasks: list[Ask], name: str, seed: int
) -> None:
    nodes, mix, strategy = free_nodes(shape), typical(tasks), studied(tasks)[name]
    filled = fill(nodes, tasks, strategy, mix, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    fresh, used = nodes.rows(rng.permutation(len(nodes.gpus))), [0]
    for task in tasks:
        holding = np.flatnonzero(fits(fresh, task))
        used.append(used[-1])
        if not len(holding):
            continue
        scores = strategy.score(fresh.rows(holding), task)
        equals = holding[scores == scores.max()]
        row = int(equals[rng.integers(len(equals)) if strategy.by_lot else 0])
        take(fresh, row, task, strategy.devices(fresh, row, task, rng))
        used[-1] += task.total_milli
    capacity = 1000 * int(nodes.gpus.sum())
    np.testing.assert_allclose(filled.used, np.array(used[1:]) / capacity * 100)


@given(shapes, st.lists(tasks_of_all_kinds, min_size=1, max_size=20))
def test_fragments_are_never_more_than_what_is_free(
    shape: list[tuple[int, int, int]], tasks: list[Ask]
) -> None:
    nodes = free_nodes(shape)
    found = fragmentation(nodes, typical(tasks))
    assert (found >= -1e-6).all()
    assert (found <= nodes.gpu_milli.sum(axis=1) + 1e-6).all()
