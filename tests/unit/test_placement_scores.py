"""Which node each classic strategy prefers, on cases that can be checked by hand."""

import numpy as np

from gpuloop.twin import scores
from gpuloop.twin.strategies import random
from placement_builders import no_gpu, nodes_with, share, whole


def test_best_fit_weighs_what_would_be_left_of_cpu_and_gpus() -> None:
    """One of 8 GPUs and 32 of 128 CPUs left: (1/8 + 1/4) / 2 = 0.1875, so 81 points."""
    nodes = nodes_with([1000, 1000], [1000] * 4, cpu=[44_000, 44_000])
    assert scores.best_fit(nodes, whole(1, cpu=12_000)).tolist() == [81.0, 68.0]


def test_spread_prefers_what_best_fit_avoids() -> None:
    nodes = nodes_with([1000] * 8, [1000, 1000], [1000] * 4)
    assert np.argsort(-scores.spread(nodes, whole(1))).tolist() == [0, 2, 1]
    assert np.argsort(-scores.best_fit(nodes, whole(1))).tolist() == [1, 2, 0]


def test_dot_product_looks_at_the_resource_that_is_asked_for() -> None:
    little_cpu, few_gpus = nodes_with([1000] * 8, cpu=16_000), nodes_with([1000], cpu=128_000)
    assert scores.dot_product(little_cpu, no_gpu(64_000)) > scores.dot_product(
        few_gpus, no_gpu(64_000)
    )
    assert scores.dot_product(few_gpus, whole(1)) > scores.dot_product(little_cpu, whole(1))


def test_clustering_prefers_its_kind_then_mixed_then_empty_then_others() -> None:
    kinds = [[3, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 2]]
    nodes = nodes_with(*[[1000] * 8] * 4, running=kinds)
    assert scores.clustering(nodes, share(500)).tolist() == [75.0, 50.0, 25.0, 0.0]


def test_clustering_takes_the_fuller_of_alike_nodes() -> None:
    nodes = nodes_with([1000] * 8, [1000] * 4 + [0] * 4, running=[[1], [1]])
    assert scores.clustering(nodes, share(500)).tolist() == [75.0, 87.0]


def test_packing_prefers_devices_in_use_then_nodes_in_use() -> None:
    nodes = nodes_with([1000, 700], [1000, 300], [1000, 1000], [1000, 500])
    assert scores.packing(nodes, share(500)).tolist() == [93.0, 49.0, 31.0, 95.0]


def test_packing_opens_few_devices_and_small_nodes_first() -> None:
    nodes = nodes_with([1000] * 8, [1000, 1000], [0, 1000, 1000])
    assert scores.packing(nodes, whole(2)).tolist() == [25.0, 31.0, 48.0]


def test_packing_and_clustering_do_not_care_for_tasks_without_gpus() -> None:
    nodes = nodes_with([1000], [0], running=[[1], [0]])
    assert not scores.packing(nodes, no_gpu(1)).any()
    assert not scores.clustering(nodes, no_gpu(1)).any()


def test_random_takes_every_device_that_holds_the_task() -> None:
    nodes, rng, strategy = nodes_with([1000, 200, 600, 500]), np.random.default_rng(1), random()
    taken = {strategy.devices(nodes, 0, share(500), rng) for _ in range(60)}
    assert taken == {(0,), (2,), (3,)}
    assert strategy.by_lot
