"""Tasks that arrive until a cluster is full, and the openb trace that they come from."""

import os
from pathlib import Path

import numpy as np
import pytest

from gpuloop.twin import openb
from gpuloop.twin.filling import Filled, arrivals, fill
from gpuloop.twin.fit import Ask
from gpuloop.twin.fragmentation import typical
from gpuloop.twin.scores import best_fit
from gpuloop.twin.strategies import classic, studied
from placement_builders import no_gpu, nodes_with, share, whole

TRACES = os.environ.get("GPULOOP_TRACES")
needs_traces = pytest.mark.skipif(not TRACES, reason="GPULOOP_TRACES is not set")
LUCK = 7


def rng() -> np.random.Generator:
    return np.random.default_rng(LUCK)


def test_every_task_arrives_before_any_comes_twice() -> None:
    workload = [whole(1, cpu=index) for index in range(20)]
    coming = arrivals(workload, 40_000, 1.0, rng())
    assert sorted(coming[:20]) == sorted(workload)
    assert coming[:20] != workload
    assert set(coming[20:]) <= set(workload)


def test_tasks_arrive_until_they_ask_for_the_load() -> None:
    coming = arrivals([whole(1), no_gpu(1)], 10_000, 1.3, rng())
    assert sum(task.total_milli for task in coming) == 13_000


def test_larger_workload_is_cut_to_the_load() -> None:
    workload = [whole(1, cpu=index) for index in range(20)]
    coming = arrivals(workload, 10_000, 1.3, rng())
    assert len(coming) == len(set(coming)) == 13


def test_task_that_finds_no_node_is_lost_and_later_ones_still_come() -> None:
    nodes, tasks = nodes_with([1000]), [share(600), share(600), share(400)]
    filled = fill(nodes, tasks, classic(best_fit), typical(tasks), rng())
    assert filled.lost == 1
    assert filled.arrived.tolist() == pytest.approx([60.0, 120.0, 160.0])
    assert filled.used.tolist() == pytest.approx([60.0, 60.0, 100.0])


def test_filling_leaves_the_given_nodes_free() -> None:
    nodes, tasks = nodes_with([1000], [1000]), [whole(1), whole(1)]
    fill(nodes, tasks, classic(best_fit), typical(tasks), rng())
    assert nodes.gpu_milli.tolist() == [[1000], [1000]]
    assert not nodes.running.any()


def test_fragments_are_told_as_they_are_after_each_arrival() -> None:
    """Whole GPUs are expected: a device of which 0.3 is taken leaves 0.7 of two to nobody."""
    nodes, mix = nodes_with([1000, 1000]), typical([whole(1)])
    filled = fill(nodes, [share(300), share(700)], classic(best_fit), mix, rng())
    assert filled.fragment.tolist() == pytest.approx([35.0, 0.0])


def test_series_is_read_where_arrivals_round_to_a_load() -> None:
    arrived = np.array([99.4, 99.6, 100.4, 100.6])
    filled = Filled(arrived, used=np.array([1.0, 2.0, 4.0, 8.0]), fragment=arrived, lost=0)
    assert filled.at(filled.used, 100) == 3.0


def test_same_luck_fills_the_same_way() -> None:
    nodes = nodes_with(*[[1000] * 4] * 6, cpu=[40_000, 64_000] * 3)
    tasks = [share(470, 8000), whole(1, 11_000), share(310, 4000), no_gpu(16_000)] * 15
    for name, strategy in studied(tasks).items():
        once, again = (fill(nodes, tasks, strategy, typical(tasks), rng()) for _ in range(2))
        np.testing.assert_array_equal(once.used, again.used, err_msg=name)


def test_pods_are_read_as_what_they_ask_for(tmp_path: Path) -> None:
    (tmp_path / "openb").mkdir()
    (tmp_path / openb.NODES).write_text(
        "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,96000,393216,1,T4\n"
    )
    (tmp_path / openb.PODS).write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
        "p0,6000,12288,1,460,\np1,8000,30517,0,,\np2,88000,1,8,1000,T4|A100\n"
    )
    inventory = openb.read_inventory(tmp_path)
    assert inventory.models == ("P100", "T4")
    assert inventory.nodes.gpu_milli.tolist() == [[1000, 1000], [1000, 0]]
    assert inventory.capacity_milli == 3000
    assert openb.read_tasks(tmp_path / openb.PODS, inventory.models) == [
        Ask(6000, 12288, gpus=1, gpu_milli=460, kind=openb.SHARE_KIND),
        Ask(8000, 30517),
        Ask(88000, 1, gpus=8, gpu_milli=1000, models=(1, 2), kind=8),
    ]


@needs_traces
def test_openb_is_what_was_published() -> None:
    folder = Path(str(TRACES))
    inventory = openb.read_inventory(folder)
    tasks = openb.read_tasks(folder / openb.PODS, inventory.models)
    assert (len(inventory.nodes.gpus), inventory.nodes.gpus.sum()) == (1213, 6212)
    assert (len(tasks), len(typical(tasks).gpus)) == (8152, 35)
    used = openb.read_published(folder, "used")
    assert {name: round(float(seeds[:, 100].mean()), 1) for name, seeds in used.items()} == {
        "Random": 86.3, "DotProd": 90.6, "GpuClustering": 91.7, "GpuPacking": 91.8,
        "BestFit": 92.9, "FGD": 95.2,
    }  # fmt: skip


@needs_traces
def test_a_tenth_of_openb_is_filled_in_the_published_order() -> None:
    folder = Path(str(TRACES))
    inventory = openb.read_inventory(folder)
    nodes = inventory.nodes.rows(np.arange(0, len(inventory.nodes.gpus), 10))
    tasks = openb.read_tasks(folder / openb.PODS, inventory.models)
    mix, strategies = typical(tasks), studied(tasks)
    coming = arrivals(tasks[::10], 1000 * int(nodes.gpus.sum()), 1.3, rng())
    filled = {name: fill(nodes, coming, one, mix, rng()) for name, one in strategies.items()}
    used = {name: one.at(one.used, 100) for name, one in filled.items()}
    fragments = {name: one.at(one.fragment, 100) for name, one in filled.items()}
    assert used["Random"] < used["BestFit"] < used["FGD"] < used["Worth"]
    assert fragments["Random"] > fragments["BestFit"] > fragments["FGD"] > fragments["Worth"]
