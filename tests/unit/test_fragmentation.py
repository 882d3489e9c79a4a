"""Fragmentation as Weng et al. define it, and placement that lets it grow least.

The figures of the first two tests are those that the authors' simulator is tested with.
"""

import numpy as np
import pytest

from gpuloop.twin.fit import Ask
from gpuloop.twin.fragmentation import descent_points, fragmentation, growth, typical
from gpuloop.twin.strategies import gradient_descent
from placement_builders import no_gpu, nodes_with, share, whole


def test_all_that_is_free_is_a_fragment_to_a_task_that_lacks_cpu() -> None:
    """2.7 GPUs free and a task of 6 CPUs that is 9.33 % of the workload: 251.91 of 2,700."""
    nodes = nodes_with([200, 1000, 1000, 500], cpu=1000)
    one = typical([share(465, cpu=6000)])
    assert fragmentation(nodes, one)[0] == 2700.0
    assert 0.0933 * fragmentation(nodes, one)[0] == pytest.approx(251.91)


def test_only_devices_too_small_for_it_are_fragments_to_a_task_that_runs() -> None:
    nodes = nodes_with([200, 1000, 1000, 500], [1000] * 4, [1000] * 8)
    assert fragmentation(nodes, typical([whole(2)])).tolist() == [700.0, 0.0, 0.0]
    two_shares = Ask(cpu_milli=100, gpus=2, gpu_milli=200)
    assert fragmentation(nodes, typical([two_shares]))[0] == 0.0


def test_all_that_is_free_is_a_fragment_to_a_task_without_gpus() -> None:
    nodes = nodes_with([500, 1000])
    assert fragmentation(nodes, typical([no_gpu(1000)])).tolist() == [1500.0]


def test_task_that_may_not_run_on_a_model_counts_its_gpus_as_fragments() -> None:
    nodes = nodes_with([1000], [1000], [1000], model=[0, 1, 7])
    named = [whole(1, models=(1,)), whole(1, cpu=1)]
    assert fragmentation(nodes, typical(named, share=1.0)).tolist() == [500.0, 0.0, 500.0]


def test_fragmentation_is_the_mean_over_the_expected_workload() -> None:
    """Free: 0.3 and 1. A whole GPU (3 of 4) cannot use 0.3; a share of 0.2 (1 of 4) can."""
    nodes = nodes_with([300, 1000])
    mix = typical([whole(1)] * 3 + [share(200)], share=1.0)
    assert fragmentation(nodes, mix)[0] == pytest.approx(0.75 * 300)


def test_rarest_types_are_left_out_of_the_expected_workload() -> None:
    mix = typical([whole(1)] * 90 + [share(500)] * 6 + [whole(8)] * 4)
    assert mix.gpus.tolist() == [1, 1]
    assert mix.sizes[mix.size_of].tolist() == [1000, 500]
    np.testing.assert_allclose(mix.likelihood, [90 / 96, 6 / 96])


def test_workload_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        typical([])


def test_growth_is_told_for_each_device_of_a_share() -> None:
    """With whole GPUs expected, a new device breaks and loses 0.4 more; the used one gains 0.6."""
    nodes = nodes_with([600, 1000])
    found = growth(nodes, share(600), typical([whole(1)]))
    assert found[0].tolist() == pytest.approx([-0.6, 0.4])


def test_descent_puts_a_share_where_fragments_are_used_up() -> None:
    nodes = nodes_with([1000, 1000], [600, 1000])
    strategy, rng = gradient_descent(typical([whole(1)])), np.random.default_rng(0)
    assert strategy.score(nodes, share(600)).argmax() == 1
    assert strategy.devices(nodes, 1, share(600), rng) == (0,)
    assert strategy.devices(nodes, 0, whole(2), rng) == (0, 1)


def test_descent_scores_are_whole_points_of_the_logistic_curve() -> None:
    """100 / (1 + exp(-0.6)) = 64.57 and 100 / (1 + exp(0.4)) = 40.13."""
    nodes, mix = nodes_with([600, 1000, 300]), typical([whole(1)])
    assert descent_points(nodes, share(600), mix)[0].tolist() == [64.0, 40.0, -np.inf]
    exact = descent_points(nodes, share(600), mix, rounded=False)[0]
    assert exact[:2].tolist() == pytest.approx([64.565, 40.131], abs=1e-3)
