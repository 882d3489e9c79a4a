"""Sensors of nodes go wrong one by one: each is noticed, and a healthy fleet is silent."""

import pytest

pytest.importorskip("river", reason="river is not installed: make setup EXTRAS=causes")


from gpuloop.loop.evaluate.cause_trials import quiet_config
from gpuloop.loop.evaluate.detector_trials import Defect, Ward, run_trial

SEED = 3
SENSOR_DEFECTS: tuple[tuple[Defect, str, int], ...] = (
    ("frozen", "sensor", 16),
    ("contradictory", "sensor", 3),
    ("impossible", "sensor", 3),
    ("silent", "level", 6),
)


@pytest.fixture(scope="module")
def fleet() -> Ward:
    ward = Ward(quiet_config(SEED))
    ward.go(90)
    return ward


def test_a_healthy_fleet_at_work_is_silent(fleet: Ward) -> None:
    assert len(fleet.busy) > 40
    assert fleet.world.state.counters.started > 20
    assert fleet.alarms == []


@pytest.mark.parametrize(("defect", "kind", "within"), SENSOR_DEFECTS)
def test_a_sensor_defect_is_noticed_in_time_and_of_its_node_only(
    fleet: Ward, defect: Defect, kind: str, within: int
) -> None:
    verdict = run_trial(fleet, defect, SEED, minutes=within)
    print(verdict)
    assert verdict.first is not None
    assert verdict.first.anomaly.kind == kind
    assert verdict.wrong == ()
