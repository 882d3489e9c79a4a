"""What a collector believes of a reading, and what it tells as an edge."""

import msgspec
import pytest

from gpuloop.schemas.messages import GpuSample
from gpuloop.streams.collect.edges import REPEAT_US, Edges, XidEvent
from gpuloop.streams.collect.readings import (
    DETAIL_ARRAYS,
    GpuReading,
    Place,
    Stamp,
    clean,
    is_blank,
    sample_of,
)

PLACE = Place(fleet="f", node="n1", pool="h100", rack="r1", billing="spot")
STAMP = Stamp(time_us=1_000, boot=7, seq=3)


def reading(index: int = 0, *, lost: bool = False, **values: float) -> GpuReading:
    return GpuReading(index=index, id=f"GPU-{index}", model="H100", values=values, lost=lost)


def sampled(*readings: GpuReading) -> GpuSample:
    cleaned, _ = clean(readings)
    sample = sample_of(cleaned, PLACE, STAMP, detail=True)
    return msgspec.json.decode(msgspec.json.encode(sample), type=GpuSample)


@pytest.mark.parametrize(
    "code",
    [0x7FFF_FFF0, 0x7FFF_FFF3, 0xFFFF_FFFF, 140_737_488_355_328.0, 0x7FFF_FFFF_FFFF_FFF2,
     0xFFFF_FFFF_FFFF_FFFF, float("nan")],
)  # fmt: skip
def test_a_blank_code_is_a_missing_value_and_counted(code: float) -> None:
    cleaned, refused = clean([reading(power_watts=code, sm_clock_mhz=1755)])
    assert cleaned[0].values == {"sm_clock_mhz": 1755.0}
    assert refused == ["blank"]


def test_a_counter_that_outgrew_a_narrow_blank_code_is_still_a_number() -> None:
    assert not is_blank("energy_millijoules", 0x7FFF_FFF1)
    assert not is_blank("power_violation_ns", 200_000_000_000_000)
    assert is_blank("power_violation_ns", 0x7FFF_FFFF_FFFF_FFF1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("utilisation", 1.02), ("utilisation", -0.1), ("temperature_celsius", 250),
     ("power_watts", -1), ("ecc_corrected", -1), ("power_watts", float("-inf"))],
)  # fmt: skip
def test_a_value_outside_its_field_is_missing_and_counted(name: str, value: float) -> None:
    cleaned, refused = clean([reading(**{name: value})])
    assert cleaned[0].values == {}
    assert refused == ["out of range"]


def test_a_ratio_a_little_above_one_by_rounding_is_one() -> None:
    assert sampled(reading(sm_active=1.0001)).sm_active == (1.0,)


def test_values_stand_in_the_order_of_the_devices_and_are_null_where_missing() -> None:
    sample = sampled(reading(0, power_watts=300.0), reading(1), reading(2, power_watts=310.0))
    assert sample.gpu_ids == ("GPU-0", "GPU-1", "GPU-2")
    assert sample.power_watts == (300.0, None, 310.0)
    assert sample.temperature_celsius == ()
    assert (sample.boot, sample.seq, sample.event_time_us) == (7, 3, 1_000)
    assert (sample.node, sample.pool, sample.rack, sample.billing) == ("n1", "h100", "r1", "spot")


def test_every_field_of_the_detail_survives_the_wire() -> None:
    detail = sampled(reading(**dict.fromkeys(DETAIL_ARRAYS, 1))).detail
    assert detail is not None
    assert all(getattr(detail, name) == (1,) for name in DETAIL_ARRAYS)


def test_devices_beyond_what_a_sample_holds_are_left_out_and_counted() -> None:
    cleaned, refused = clean([reading(index, power_watts=1.0) for index in range(66)])
    assert len(cleaned) == 64
    assert refused == ["too many GPUs"] * 2


def test_an_xid_is_an_edge_with_the_action_that_the_driver_asks_for() -> None:
    (fault,) = Edges(PLACE, 7).raised(XidEvent(index=2, xid=79, recovery_action=2), 5_000)
    assert (fault.kind, fault.gpu_index, fault.xid, fault.recovery_action) == ("xid", 2, 79, 2)
    assert (fault.node, fault.event_time_us, fault.boot, fault.seq) == ("n1", 5_000, 7, 1)


def test_a_recovery_action_without_a_settled_meaning_is_not_passed_on() -> None:
    (fault,) = Edges(PLACE, 7).raised(XidEvent(index=0, xid=95, recovery_action=5), 0)
    assert fault.recovery_action is None


def test_a_storm_of_one_xid_is_one_fault_until_it_has_been_quiet() -> None:
    edges = Edges(PLACE, 7)
    faults = [edges.raised(XidEvent(index=0, xid=13), at) for at in range(100)]
    assert sum(map(len, faults)) == 1
    assert edges.repeats == 99
    assert edges.raised(XidEvent(index=1, xid=13), 100)
    assert edges.raised(XidEvent(index=0, xid=31), 100)
    assert edges.raised(XidEvent(index=0, xid=13), REPEAT_US)


def test_a_lost_device_is_told_once_and_the_node_recovers_when_all_are_back() -> None:
    edges = Edges(PLACE, 7)
    assert edges.read([reading(0), reading(1)], 0) == []
    (lost,) = edges.read([reading(0), reading(1, lost=True)], 1)
    assert (lost.kind, lost.gpu_index, lost.detail) == ("lost", 1, "GPU-1")
    assert edges.read([reading(0, lost=True), reading(1, lost=True)], 2)[0].gpu_index == 0
    assert edges.read([reading(0), reading(1, lost=True)], 3) == []
    (back,) = edges.read([reading(0), reading(1)], 4)
    assert (back.kind, back.gpu_index) == ("recovered", None)
    assert [lost.seq, back.seq] == [1, 3]


def test_uncorrectable_errors_are_an_edge_only_where_they_rise() -> None:
    edges = Edges(PLACE, 7)
    assert edges.read([reading(ecc_uncorrected=4)], 0) == []
    assert [fault.kind for fault in edges.read([reading(ecc_uncorrected=5)], 1)] == ["ecc"]
    assert edges.read([reading(ecc_uncorrected=5)], 2) == []
    assert edges.read([reading()], 3) == []
    assert edges.read([reading(ecc_uncorrected=0)], 4) == []
