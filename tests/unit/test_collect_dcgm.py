"""What is made of a DCGM exporter's text: both generations of names, blanks, MIG, XIDs."""

import pytest

from gpuloop.schemas.messages import GpuSample
from gpuloop.streams.collect import dcgm
from gpuloop.streams.collect.dcgm import Node, Told
from gpuloop.streams.collect.exposition import MAX_LINE, parse

OLD = """\
# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{LABELS} 1755
DCGM_FI_DEV_GPU_TEMP{LABELS} 54
DCGM_FI_DEV_MEMORY_TEMP{LABELS} 61
DCGM_FI_DEV_POWER_USAGE{LABELS} 350.25
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{LABELS} 5000000000000
DCGM_FI_DEV_GPU_UTIL{LABELS} 93
DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{LABELS} 4
DCGM_FI_DEV_FB_FREE{LABELS} 60000
DCGM_FI_DEV_FB_USED{LABELS} 20000
DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{LABELS} 0
DCGM_FI_DEV_ROW_REMAP_FAILURE{LABELS} 1
DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{LABELS} 2
DCGM_FI_PROF_SM_ACTIVE{LABELS} 0.88
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{LABELS} 0.61
DCGM_FI_PROF_PCIE_TX_BYTES{LABELS} 100
DCGM_FI_PROF_PCIE_RX_BYTES{LABELS} 50
DCGM_FI_PROF_NVLINK_TX_BYTES{LABELS} 1000
DCGM_FI_PROF_NVLINK_RX_BYTES{LABELS} 500
"""
RENAMED = {
    "DEV_GPU_TEMP": "DEV_GPU_TEMP_CELSIUS",
    "DEV_MEMORY_TEMP": "DEV_MEMORY_TEMP_CELSIUS",
    "DEV_POWER_USAGE": "DEV_BOARD_POWER_WATTS",
    "DEV_GPU_UTIL": "DEV_GPU_UTIL_RATIO",
    "DEV_CLOCK_THROTTLE_REASONS": "DEV_CLOCKS_EVENT_REASONS",
    "DEV_ROW_REMAP_FAILURE": "DEV_ROW_REMAP_FAILED",
    "DEV_UNCORRECTABLE_REMAPPED_ROWS": "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL",
    "PROF_SM_ACTIVE": "PROF_SM_UTIL_RATIO",
    "PROF_PIPE_TENSOR_ACTIVE": "PROF_TENSOR_UTIL_RATIO",
}
LABELS = '{gpu="0",UUID="GPU-8f",modelName="NVIDIA H100 80GB HBM3",Hostname="n1"}'
OLD = OLD.replace("{LABELS}", LABELS)
NEW = OLD
for before, after in RENAMED.items():
    NEW = NEW.replace(f"DCGM_FI_{before}{{", f"DCGM_FI_{after}{{")


def line(name: str, value: float | str, *, gpu: int = 0, more: str = "", at: str = "") -> str:
    return f'DCGM_{name}{{gpu="{gpu}",UUID="GPU-{gpu}",Hostname="n1"{more}}} {value}{at}\n'


class Exporter:
    """A node whose exporter says one text after another."""

    def __init__(self) -> None:
        self.node = Node("f", 7)
        self.now_us = 0

    def says(self, text: str) -> Told:
        self.now_us += 30_000_000
        scrapes, _ = dcgm.read(text)
        return self.node.hear(
            "n1", scrapes["n1"], self.now_us, pool="h100", rack="r1", billing="on_demand"
        )

    def sampled(self, text: str) -> GpuSample:
        told = self.says(text)
        assert told.sample is not None
        return told.sample


@pytest.mark.parametrize("text", [OLD, NEW], ids=["old names", "new names"])
def test_a_scrape_is_a_sample_under_either_generation_of_names(text: str) -> None:
    sample = Exporter().sampled(text)
    assert (sample.node, sample.pool, sample.gpu_ids) == ("n1", "h100", ("GPU-8f",))
    assert sample.gpu_model == "NVIDIA H100 80GB HBM3"
    assert sample.utilisation == (0.93,)
    assert sample.sm_active == (0.88,)
    assert sample.tensor_active == (0.61,)
    assert sample.memory_used == (0.25,)
    assert sample.temperature_celsius == (54.0,)
    assert sample.power_watts == (350.25,)
    assert sample.sm_clock_mhz == (1755.0,)
    assert sample.throttle_reasons == (4,)
    assert sample.nvlink_bytes_per_second == (1500.0,)
    assert sample.pcie_bytes_per_second == (150.0,)
    assert sample.ecc_uncorrected == (0,)
    assert sample.detail is not None
    assert sample.detail.row_remap_failed == (1,)
    assert sample.detail.rows_remapped_uncorrected == (2,)
    assert sample.detail.memory_temperature_celsius == (61.0,)
    assert sample.detail.energy_millijoules == (5_000_000_000_000,)


def test_the_two_texts_do_differ_in_every_name_that_was_changed() -> None:
    names = [{one.name for one in parse(text, prefix="DCGM_").lines} for text in (OLD, NEW)]
    assert len(names[0] - names[1]) == len(RENAMED)


@pytest.mark.parametrize("blank", ["2147483632", "9223372036854775794", "140737488355329", "NaN"])
def test_a_blank_code_is_null_and_counted(blank: str) -> None:
    told = Exporter().says(
        line("FI_DEV_GPU_TEMP", blank) + line("FI_DEV_GPU_TEMP", 50, gpu=1)
        + line("FI_DEV_FB_USED", blank) + line("FI_DEV_FB_FREE", 10)
    )  # fmt: skip
    assert told.sample is not None
    assert told.sample.temperature_celsius == (None, 50.0)
    assert told.sample.memory_used == ()
    assert told.refused == ["blank", "blank"]


def test_a_field_that_is_left_out_is_null_for_that_device_only() -> None:
    sample = Exporter().sampled(
        line("FI_DEV_POWER_USAGE", 300, gpu=1) + line("FI_DEV_GPU_TEMP", 40)
    )
    assert sample.gpu_ids == ("GPU-0", "GPU-1")
    assert sample.power_watts == (None, 300.0)


def test_the_time_of_a_sample_is_the_exporters_where_it_says_so() -> None:
    exporter = Exporter()
    assert exporter.sampled(line("FI_DEV_GPU_TEMP", 1, at=" 1763750000123")).event_time_us == (
        1_763_750_000_123_000
    )
    assert exporter.sampled(line("FI_DEV_GPU_TEMP", 2)).event_time_us == exporter.now_us


def test_a_scrape_that_repeats_the_last_one_is_no_new_sample() -> None:
    exporter = Exporter()
    assert exporter.sampled(OLD).seq == 1
    again = exporter.says(OLD)
    assert again.repeated
    assert again.sample is None
    assert exporter.sampled(OLD.replace("350.25", "351")).seq == 2


def test_bad_lines_are_counted_and_the_rest_is_read() -> None:
    text = (
        line("FI_DEV_GPU_TEMP", 50)
        + "DCGM_FI_DEV_POWER_USAGE{gpu=0} 300\n"
        + 'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="x} 300\n'
        + line("FI_DEV_POWER_USAGE", "many")
        + "DCGM_FI_DEV_POWER_USAGE\n"
        + line("FI_DEV_POWER_USAGE", 1, more=f',pod="{"x" * MAX_LINE}"')
        + 'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 300\n'  # Nobody's.
        + "process_cpu_seconds_total 7\n"
    )
    scrapes, bad = dcgm.read(text)
    assert bad == 6
    assert [one.values for one in scrapes["n1"].readings] == [{"temperature_celsius": 50.0}]


def test_labels_may_hold_quotes_braces_and_commas() -> None:
    (found,) = parse('DCGM_X{a="x\\"},y",b="\\\\n",} 1\n', prefix="DCGM_").lines
    assert found.labels == {"a": 'x"},y', "b": "\\n"}


def test_a_name_given_to_the_target_wins_over_the_exporters_own() -> None:
    assert set(dcgm.read(OLD, node="rack1-node7")[0]) == {"rack1-node7"}


def test_one_scrape_may_hold_several_nodes() -> None:
    text = line("FI_DEV_GPU_TEMP", 1) + line("FI_DEV_GPU_TEMP", 2).replace("n1", "n2")
    assert set(dcgm.read(text)[0]) == {"n1", "n2"}


def test_an_xid_that_was_there_at_the_first_scrape_is_no_news() -> None:
    assert Exporter().says(line("FI_DEV_XID_ERRORS", 79)).faults == []


def test_a_changed_last_xid_is_one_fault_though_it_never_clears() -> None:
    exporter = Exporter()
    exporter.says(line("FI_DEV_XID_ERRORS", 0))
    faults = exporter.says(
        line("FI_DEV_XID_ERROR", 48) + line("FI_DEV_GET_GPU_RECOVERY_ACTION", 1)
    ).faults
    assert [(one.xid, one.gpu_index, one.recovery_action) for one in faults] == [(48, 0, 1)]
    assert exporter.says(line("FI_DEV_XID_ERROR", 48)).faults == []
    assert exporter.says(line("FI_DEV_XID_ERROR", 0)).faults == []


def test_the_exporters_counts_tell_a_repeat_that_the_last_xid_hides() -> None:
    exporter = Exporter()
    counted = 'DCGM_EXP_XID_ERRORS_COUNT{gpu="0",UUID="GPU-0",Hostname="n1",xid="13"} '
    exporter.says(line("FI_DEV_XID_ERRORS", 13) + counted + "1\n")
    again = exporter.says(line("FI_DEV_XID_ERRORS", 13) + counted + "2\n")
    assert [fault.xid for fault in again.faults] == [13]
    assert exporter.says(line("FI_DEV_XID_ERRORS", 13) + counted + "2\n").faults == []
    assert exporter.says(line("FI_DEV_XID_ERRORS", 13) + counted + "1\n").faults == []


def test_mig_instances_stand_for_themselves_and_share_their_gpu() -> None:
    big = ',GPU_I_ID="1",GPU_I_PROFILE="4g.40gb"'
    small = ',GPU_I_ID="2",GPU_I_PROFILE="3g.20gb"'
    sample = Exporter().sampled(
        "".join(
            line("FI_DEV_POWER_USAGE", 350, more=labels) + line("FI_DEV_GPU_TEMP", 54, more=labels)
            + line("FI_DEV_ECC_SBE_VOL_TOTAL", 9, more=labels)
            for labels in (big, small)
        )
        + line("FI_PROF_SM_ACTIVE", 0.7, more=big) + line("FI_PROF_SM_ACTIVE", 0.3, more=small)
    )  # fmt: skip
    assert sample.gpu_ids == ("GPU-0/1", "GPU-0/2")
    assert sample.power_watts == pytest.approx((200.0, 150.0))
    assert sample.temperature_celsius == (54.0, 54.0)
    assert sample.ecc_corrected == (9, None)
    assert sample.sm_active == (0.7, 0.3)


@pytest.mark.parametrize("number", ["-Inf", "+Inf", "1e300", "-7"])
def test_a_number_that_no_xid_can_be_is_none(number: str) -> None:
    exporter = Exporter()
    exporter.says(line("FI_DEV_XID_ERRORS", 0) + line("FI_DEV_GET_GPU_RECOVERY_ACTION", 0))
    told = exporter.says(
        line("FI_DEV_XID_ERRORS", number) + line("FI_DEV_GET_GPU_RECOVERY_ACTION", number)
    )
    assert told.faults == []


@pytest.mark.parametrize(
    ("name", "value"), [("gpu", "9" * 5_000), ("gpu", "-1"), ("Hostname", "h" * 201)]
)
def test_a_label_that_can_name_nothing_makes_a_bad_line(name: str, value: str) -> None:
    labels = {"gpu": "0", "Hostname": "n1"} | {name: value}
    text = ",".join(f'{key}="{one}"' for key, one in labels.items())
    assert dcgm.read(f"DCGM_FI_DEV_GPU_TEMP{{{text}}} 5") == ({}, 1)


@pytest.mark.parametrize("stamp", ["9" * 5_000, "253402300799001", "-5"])
def test_a_time_that_cannot_be_makes_a_bad_line(stamp: str) -> None:
    assert dcgm.read(line("FI_DEV_GPU_TEMP", 5, at=f" {stamp}")) == ({}, 1)
