"""What fits on a node, and what a task takes of it."""

import numpy as np
import pytest

from gpuloop.twin.fit import Ask, fits, left_after, take, tightest_devices
from placement_builders import no_gpu, nodes_with, share, whole


def test_share_needs_its_part_on_one_device() -> None:
    nodes = nodes_with([400, 400], [500, 0], [1000, 1000])
    assert fits(nodes, share(500)).tolist() == [False, True, True]


def test_whole_gpus_need_devices_of_which_nothing_is_taken() -> None:
    nodes = nodes_with([999, 1000], [1000, 1000], [1000, 1000])
    assert fits(nodes, whole(2)).tolist() == [False, True, True]
    assert fits(nodes, whole(1)).tolist() == [True, True, True]
    assert not fits(nodes, whole(3)).any()


def test_cpu_and_memory_bound_a_node_as_gpus_do() -> None:
    nodes = nodes_with([1000], [1000], [1000], cpu=[8000, 7999, 8000], memory=[64, 64, 63])
    assert fits(nodes, whole(1, cpu=8000, memory_mib=64)).tolist() == [True, False, False]


def test_task_goes_to_no_other_model_than_it_names() -> None:
    nodes = nodes_with([1000], [1000], [1000], model=[0, 1, 2])
    assert fits(nodes, whole(1, models=(0, 2))).tolist() == [True, False, True]
    assert fits(nodes, whole(1)).all()


def test_task_without_gpus_fits_where_no_device_is_free() -> None:
    nodes = nodes_with([0], [])
    assert fits(nodes, no_gpu(96_000)).all()
    assert not fits(nodes, no_gpu(96_001)).any()
    assert fits(nodes, Ask(cpu_milli=1, models=(7,))).all()


def test_share_takes_the_tightest_device_that_holds_it() -> None:
    nodes = nodes_with([1000, 300, 450, 400])
    assert tightest_devices(nodes, 0, share(400)) == (3,)
    assert tightest_devices(nodes, 0, share(500)) == (0,)


def test_taking_changes_one_node_by_what_was_asked() -> None:
    nodes = nodes_with([1000, 300], [1000, 300])
    take(nodes, 1, share(200, cpu=6000, memory_mib=10), (1,))
    assert nodes.gpu_milli.tolist() == [[1000, 300], [1000, 100]]
    assert nodes.cpu_milli.tolist() == [96_000, 90_000]
    assert nodes.memory_mib.tolist() == [1 << 20, (1 << 20) - 10]
    assert nodes.running[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("task", "devices"),
    [
        (share(400), (1,)),
        (whole(2), (0, 0)),
        (whole(2), (0,)),
        (whole(1), (1,)),
        (whole(1, cpu=96_001), (0,)),
        (whole(1, memory_mib=(1 << 20) + 1), (0,)),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(task: Ask, devices: tuple[int]) -> None:
    nodes = nodes_with([1000, 300, 1000])
    before = [column.copy() for column in nodes]
    with pytest.raises(ValueError, match="does not fit"):
        take(nodes, 0, task, devices)
    for column, was in zip(nodes, before, strict=True):
        np.testing.assert_array_equal(column, was)


def test_share_has_a_way_for_each_device_that_holds_it() -> None:
    left, open_ways = left_after(nodes_with([1000, 300, 500]), share(400))
    assert open_ways.tolist() == [[True, False, True]]
    assert left[0, 0].tolist() == [600, 300, 500]
    assert left[0, 2].tolist() == [1000, 300, 100]


@pytest.mark.parametrize("task", [whole(1), whole(2), Ask(gpus=2, gpu_milli=400), no_gpu(1)])
def test_the_one_way_of_other_tasks_is_what_they_would_take(task: Ask) -> None:
    nodes = nodes_with([1000, 300, 500, 1000])
    left, open_ways = left_after(nodes, task)
    take(nodes, 0, task, tightest_devices(nodes, 0, task))
    assert open_ways.tolist() == [[True]]
    assert left[0, 0].tolist() == nodes.gpu_milli[0].tolist()
