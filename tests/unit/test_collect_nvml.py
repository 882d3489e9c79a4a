"""NVML through its C interface: pynvml and a driver's library that answers from a file."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fake_nvml
from fake_nvml import Machine
from gpuloop.loop.collect import machine as collecting
from gpuloop.loop.collect.machine import DriverMissing
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import Fault, GpuSample
from gpuloop.streams.collect.readings import Place

PLACE = Place(fleet="f", node="n1", pool="h100", rack="r1", billing="on_demand")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> None:
    fake_nvml.load(fake_nvml.build(tmp_path_factory.mktemp("nvml")))


@pytest.fixture
def gpus(library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path, devices=2)
    monkeypatch.setenv("FAKE_NVML", str(found.path))
    return found


class Clock:
    """Microseconds that a test sets; waiting for nothing lets them pass."""

    def __init__(self) -> None:
        self.now_us = 1_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(gpus: Machine, clock: Clock) -> Iterator[Any]:
    from gpuloop.loop.collect.nvml import Nvml

    found = Nvml(clock)
    found.open()
    found.read(detail=False)  # What is counted between two readings is there from now on.
    yield found
    found.close()


class Heard:
    """Keeps what a source says, and may end it after so many samples."""

    def __init__(self, *, samples: int = 0) -> None:
        self.stop = threading.Event()
        self.outputs: list[Output] = []
        self.failures: list[tuple[str, int]] = []
        self._left = samples

    def said(self, outputs: list[Output]) -> None:
        self.outputs += outputs
        self._left -= sum(isinstance(one.message, GpuSample) for one in outputs)
        if self._left <= 0:
            self.stop.set()

    def failed(self, source: str, reason: str, count: int = 1) -> None:
        self.failures.append((reason, count))

    def of(self, kind: type) -> list[Any]:
        return [one.message for one in self.outputs if isinstance(one.message, kind)]


def observed(nvml: Any, clock: Clock) -> collecting.Machine:
    return collecting.Machine(
        nvml, PLACE, boot=7, every_us=1_000_000, wall_us=lambda: 5_000, monotonic_us=clock
    )


def values(nvml: Any, index: int = 0, *, detail: bool = True) -> dict[str, float]:
    return dict(nvml.read(detail=detail)[index].values)


def test_a_reading_has_what_the_driver_says_in_our_units(nvml: Any) -> None:
    first, second = nvml.read(detail=False)
    assert (first.index, first.id, first.model) == (0, "GPU-0", "Fake H100")
    assert second.id == "GPU-1"
    assert first.values == {
        "temperature_celsius": 54,
        "power_watts": 350.0,
        "sm_clock_mhz": 1755,
        "throttle_reasons": 4,
        "utilisation": 0.93,
        "memory_used": 0.25,
        "ecc_corrected": 7,
        "ecc_uncorrected": 0,
        "sm_active": 0.88,
        "tensor_active": 0.61,
        "sm_occupancy": 0.4,
        "dram_active": 0.35,
        "gr_engine_active": 0.95,
    }


def test_every_numbered_field_is_read_into_the_detail(gpus: Machine, nvml: Any) -> None:
    from gpuloop.loop.collect.nvml_fields import DETAIL

    gpus.set(0, **{f"field.{asked.id}": 1 for asked in DETAIL})
    found = values(nvml)
    assert {asked.name for asked in DETAIL} <= set(found)
    assert found["power_limit_watts"] == 700.0
    assert found["memory_clock_mhz"] == 2619
    assert found["memory_total_bytes"] == 80 << 30
    assert found["memory_copy_utilisation"] == 0.4


def test_what_a_device_does_not_support_is_missing_and_the_rest_is_read(
    gpus: Machine, nvml: Any
) -> None:
    gpus.without(0, "power", "utilisation", "field.3", "memory_total", "profiled", "mig")
    nvml.open()
    nvml.read(detail=False)
    found = values(nvml)
    assert not {"power_watts", "utilisation", "ecc_corrected", "memory_used"} & set(found)
    assert "sm_active" not in found
    assert found["temperature_celsius"] == 54


def test_a_driver_without_a_function_lacks_its_value_only(nvml: Any) -> None:
    assert "fabric_state" not in values(nvml)  # The fake library has no such function.


def test_traffic_is_the_rate_between_two_readings(gpus: Machine, nvml: Any, clock: Clock) -> None:
    gpus.set(0, **{"field.138": 1_000, "field.139": 500, "field.197": 0, "field.198": 0})
    assert "nvlink_bytes_per_second" not in values(nvml)
    gpus.set(0, **{"field.138": 3_000, "field.139": 500, "field.197": 9_000, "field.198": 1_000})
    clock.now_us += 2_000_000
    found = values(nvml)
    assert found["nvlink_bytes_per_second"] == 1_024_000.0
    assert found["pcie_bytes_per_second"] == 5_000.0


def test_traffic_that_ran_backwards_is_no_rate(gpus: Machine, nvml: Any, clock: Clock) -> None:
    gpus.set(0, **{"field.138": 1_000, "field.139": 500})
    nvml.read(detail=False)
    gpus.set(0, **{"field.138": 1, "field.139": 1})
    clock.now_us += 1_000_000
    assert "nvlink_bytes_per_second" not in values(nvml)


def test_a_lost_device_has_no_values_and_the_others_go_on(gpus: Machine, nvml: Any) -> None:
    gpus.set(1, lost=1)
    first, second = nvml.read(detail=True)
    assert first.values
    assert second.lost
    assert second.values == {}


def test_a_device_that_is_gone_at_a_new_opening_stays_lost_and_comes_back(
    gpus: Machine, nvml: Any
) -> None:
    gpus.set(0, lost=1)
    nvml.open()
    assert [one.lost for one in nvml.read(detail=False)] == [True, False]
    gpus.set(0, lost=0)
    nvml.open()
    assert [one.lost for one in nvml.read(detail=False)] == [False, False]


def test_instances_stand_for_themselves_and_sums_over_the_node_stay_true(
    gpus: Machine, nvml: Any
) -> None:
    gpus.set(0, mig=2, **{"field.3": 9})
    gpus.without(0, "utilisation")
    gpus.set("0/0", memory_total=40 << 30, memory_used=10 << 30, slices=4, **{"gpm.2": 70})
    gpus.set("0/1", memory_total=20 << 30, memory_used=20 << 30, slices=3, **{"gpm.2": 30})
    assert "sm_active" not in nvml.read(detail=False)[0].values  # Nothing was counted yet.
    big, small, whole = nvml.read(detail=False)
    assert [one.id for one in (big, small, whole)] == ["MIG-0-0", "MIG-0-1", "GPU-1"]
    assert [one.index for one in (big, small, whole)] == [0, 0, 1]
    assert (big.values["memory_used"], small.values["memory_used"]) == (0.25, 1.0)
    assert (big.values["sm_active"], small.values["sm_active"]) == (0.7, 0.3)
    assert big.values["power_watts"] + small.values["power_watts"] == pytest.approx(350.0)
    assert big.values["power_watts"] == pytest.approx(200.0)
    assert (big.values["ecc_corrected"], "ecc_corrected" in small.values) == (9, False)
    assert small.values["temperature_celsius"] == 54
    assert "utilisation" not in big.values


def test_an_instance_that_is_taken_apart_is_left_out_and_the_others_stay_true(
    gpus: Machine, nvml: Any
) -> None:
    gpus.set(0, mig=2)
    gpus.set("0/0", memory_total=40 << 30, memory_used=10 << 30, slices=4, gone=1)
    gpus.set("0/1", memory_total=20 << 30, memory_used=20 << 30, slices=3)
    left, whole = nvml.read(detail=False)
    assert (left.id, whole.id) == ("MIG-0-1", "GPU-1")
    assert left.values["power_watts"] == pytest.approx(350.0)


def test_waiting_for_an_event_ends_without_one(nvml: Any) -> None:
    assert nvml.wait(20_000) is None


def test_an_xid_names_its_device_and_the_action_that_the_driver_asks_for(
    gpus: Machine, nvml: Any
) -> None:
    gpus.set(1, **{"field.230": 2})
    gpus.raise_xid(1, 79)
    event = nvml.wait(2_000_000)
    assert (event.index, event.xid, event.recovery_action) == (1, 79, 2)
    gpus.raise_xid(1, 31, instance=3)
    assert nvml.wait(2_000_000).detail == "GPU instance 3"


def test_an_xid_of_a_device_that_fell_off_the_bus_is_told_all_the_same(
    gpus: Machine, nvml: Any
) -> None:
    gpus.set(1, lost=1)
    gpus.raise_xid(1, 79)
    event = nvml.wait(2_000_000)
    assert (event.index, event.xid, event.recovery_action) == (1, 79, None)


def test_a_machine_without_events_is_read_all_the_same(gpus: Machine, clock: Clock) -> None:
    from gpuloop.loop.collect.nvml import Nvml

    gpus.set(0, no_events=1)
    gpus.set(1, no_events=1)
    nvml = Nvml(clock)
    nvml.open()
    with pytest.raises(collecting.NoEvents):
        nvml.wait(10)
    assert len(nvml.read(detail=False)) == 2
    nvml.close()


def test_no_driver_is_one_clear_line(
    library: None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuloop.loop.collect.nvml import Nvml

    monkeypatch.delenv("FAKE_NVML", raising=False)
    with pytest.raises(DriverMissing, match="no NVIDIA driver on this machine") as error:
        Nvml(clock).open()
    assert "\n" not in str(error.value)


def test_a_driver_without_devices_is_refused(
    library: None, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuloop.loop.collect.nvml import Nvml

    monkeypatch.setenv("FAKE_NVML", str(Machine(tmp_path, devices=0).path))
    with pytest.raises(DriverMissing, match="knows no GPU"):
        Nvml(clock).open()


def test_a_machine_samples_with_rising_seq_and_detail_now_and_then(nvml: Any, clock: Clock) -> None:
    machine, heard = observed(nvml, clock), Heard()
    for _ in range(3):
        heard.said(machine.sample(heard))
        clock.now_us += 20_000_000
    samples = heard.of(GpuSample)
    assert [(one.boot, one.seq) for one in samples] == [(7, 1), (7, 2), (7, 3)]
    assert [one.detail is not None for one in samples] == [True, False, True]
    assert [one.event_id for one in heard.outputs] == ["f/n1/7/1", "f/n1/7/2", "f/n1/7/3"]


def test_a_device_lost_in_mid_run_is_a_fault_and_nulls_and_recovers(
    gpus: Machine, nvml: Any, clock: Clock
) -> None:
    machine, heard = observed(nvml, clock), Heard()
    heard.said(machine.sample(heard))
    gpus.set(1, lost=1)
    for _ in range(3):
        clock.now_us += 30_000_000
        heard.said(machine.sample(heard))
    gpus.set(1, lost=0)
    for _ in range(3):
        clock.now_us += 30_000_000
        heard.said(machine.sample(heard))
    assert [(fault.kind, fault.gpu_index) for fault in heard.of(Fault)] == [
        ("lost", 1), ("recovered", None),
    ]  # fmt: skip
    samples = heard.of(GpuSample)
    assert samples[1].power_watts == (350.0, None)
    assert samples[-1].power_watts == (350.0, 350.0)


def test_blank_values_are_null_and_counted(gpus: Machine, nvml: Any, clock: Clock) -> None:
    gpus.set(0, **{"field.3": 0x7FFF_FFF0}, temperature=0xFFFF_FFFF)
    machine, heard = observed(nvml, clock), Heard()
    heard.said(machine.sample(heard))
    (sample,) = heard.of(GpuSample)
    assert sample.ecc_corrected == (None, 7)
    assert sample.temperature_celsius == (None, 54)
    assert heard.failures == [("blank", 2)]


def test_an_xid_is_told_at_once_and_not_with_the_next_sample(gpus: Machine, clock: Clock) -> None:
    from gpuloop.loop.collect.nvml import Nvml
    from gpuloop.loop.shells.clock import monotonic_us

    class RaisesOne(Heard):
        def said(self, outputs: list[Output]) -> None:
            if not self.outputs:
                gpus.raise_xid(0, 48)
            self.outputs += outputs
            if self.of(Fault):
                self.stop.set()

    machine = collecting.Machine(
        Nvml(clock),
        PLACE,
        boot=7,
        every_us=60_000_000,
        wall_us=lambda: 5_000,
        monotonic_us=monotonic_us,
    )
    heard = RaisesOne()
    machine.run(heard.stop, heard)
    assert heard.of(Fault)[0].xid == 48
    assert len(heard.of(GpuSample)) == 1


def test_one_look_at_a_machine_is_printed_as_json(
    gpus: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpuloop.ops.cli import main as cli

    monkeypatch.setenv("GPULOOP_NODE", "n1")
    monkeypatch.setenv("GPULOOP_COLLECT_SECONDS", "0.1")
    monkeypatch.setattr("sys.argv", ["gpuloop", "collect", "--once"])
    assert cli.main() == 0
    sample = msgspec.json.decode(capsys.readouterr().out, type=GpuSample)
    assert (sample.node, sample.gpu_ids) == ("n1", ("GPU-0", "GPU-1"))
    assert sample.sm_active == (0.88, 0.88)
    assert sample.detail is not None
