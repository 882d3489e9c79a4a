"""Sensors that cannot be right: what is noticed of a node, and what it does to its pool."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from gpuloop.schemas.messages import GpuSample, NodeState
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.streams import node_ticks, nodes, quality
from gpuloop.streams.frames import pack, unpack
from gpuloop.streams.nodes import NodeShard
from observed import gpu_sample

SECOND = 1_000_000
MINUTE = 60 * SECOND
T0 = 24_000_000 * MINUTE
GPUS = 4


def readings(step: int) -> dict[str, tuple[float, ...]]:
    """Return what a working H100 node says, never twice the same."""
    jitter = 0.001 * (step % 7) + 0.0001 * (step % 11)
    return {
        "utilisation": (0.8 + jitter,) * GPUS,
        "sm_active": (0.6 + jitter,) * GPUS,
        "tensor_active": (0.2 + jitter,) * GPUS,
        "memory_used": (0.7,) * GPUS,
        "temperature_celsius": (60.0 + 10 * jitter,) * GPUS,
        "power_watts": (450.0 + 100 * jitter,) * GPUS,
        "sm_clock_mhz": (1980.0,) * GPUS,
        "nvlink_bytes_per_second": (1e9 + 1e9 * jitter,) * GPUS,
    }


def idle(step: int) -> dict[str, tuple[float, ...]]:
    """Return what a node without work says: the same again and again, but for its heat."""
    return {
        "utilisation": (0.0,) * GPUS,
        "sm_active": (0.0,) * GPUS,
        "tensor_active": (0.0,) * GPUS,
        "temperature_celsius": (30.0,) * GPUS,
        "power_watts": (70.0,) * GPUS,
        "sm_clock_mhz": (345.0,) * GPUS,
    }


def sample(step: int, *, node: str = "n1", boot: int = 1, **said: tuple[float, ...]) -> GpuSample:
    named = {"gpu_ids": tuple("abcd"), "gpu_model": "h100-80gb", "boot": boot}
    return gpu_sample(node, seq=step, at=T0 + step * 10 * SECOND, **named | said)


def watch(samples: Iterator[GpuSample]) -> tuple[NodeShard, NodeState]:
    """Return a shard that was told each sample on its own, and the last state of its node."""
    shard, told = NodeShard(), None
    for one in samples:
        nodes.absorb(shard, unpack(pack("local", 0, [one])))
        for output in node_ticks.at_tick(shard, "local", one.event_time_us).states:
            told = output.message
    assert isinstance(told, NodeState)
    return shard, told


def minutes(count: int, base=readings, **stuck: tuple[float, ...]) -> Iterator[GpuSample]:  # type: ignore[no-untyped-def]
    """Yield a sample every ten seconds, in which some readings stand still."""
    for step in range(6 * count + 1):
        yield sample(step, **(base(step) | stuck))


def test_a_working_node_whose_readings_move_is_not_doubted() -> None:
    _, state = watch(minutes(60))
    assert state.doubts == {}
    assert all(state.features[name].quality == 1.0 for name in readings(0))


def test_an_idle_node_may_say_the_same_for_hours() -> None:
    _, state = watch(minutes(120, idle))
    assert state.doubts == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("utilisation", 0.77),
        ("sm_active", 0.61),
        ("tensor_active", 0.21),
        ("power_watts", 431.5),
        ("nvlink_bytes_per_second", 2e9),
    ],
)
def test_a_reading_that_stands_still_for_ten_minutes_of_work_is_frozen(
    name: str, value: float
) -> None:
    _, before = watch(minutes(9, **{name: (value,) * GPUS}))
    assert before.doubts == {}
    _, after = watch(minutes(12, **{name: (value,) * GPUS}))
    assert after.doubts == {name: "frozen"}
    assert (after.features[name].quality, round(after.features[name].value or 0)) == (
        0.0,
        round(value),
    )


def test_a_temperature_is_frozen_only_after_half_an_hour() -> None:
    assert watch(minutes(28, temperature_celsius=(61.0,) * GPUS))[1].doubts == {}
    _, state = watch(minutes(33, temperature_celsius=(61.0,) * GPUS))
    assert state.doubts == {"temperature_celsius": "frozen"}


def test_a_fully_used_gpu_may_say_so_for_long() -> None:
    _, state = watch(minutes(30, utilisation=(1.0,) * GPUS, tensor_active=(0.0,) * GPUS))
    assert state.doubts == {}


def test_a_sensor_that_moves_again_is_believed_again() -> None:
    stuck = list(minutes(15, power_watts=(431.5,) * GPUS))
    again = [sample(len(stuck) + step, **readings(step)) for step in range(7)]
    _, state = watch(iter(stuck + again))
    assert state.doubts == {}
    assert state.features["power_watts"].quality == 1.0


def test_a_collector_that_starts_anew_starts_a_new_stillness() -> None:
    stuck = {"power_watts": (431.5,) * GPUS}
    first = [sample(step, **(readings(step) | stuck)) for step in range(54)]
    second = [sample(step, boot=2, **(readings(step) | stuck)) for step in range(54, 84)]
    assert watch(iter(first + second))[1].doubts == {}


@pytest.mark.parametrize(
    ("said", "doubted"),
    [
        ({"power_watts": 72.0}, {"power_watts"}),
        ({"sm_clock_mhz": 0.0}, {"sm_clock_mhz"}),
        ({"tensor_active": 0.9, "sm_active": 0.6}, {"tensor_active", "sm_active"}),
    ],
)
def test_readings_that_cannot_both_be_true_are_contradictory(
    said: dict[str, float], doubted: set[str]
) -> None:
    wrong = {name: (value,) * GPUS for name, value in said.items()}
    _, state = watch(minutes(1, **wrong))
    assert state.doubts == dict.fromkeys(doubted, "contradictory")
    assert {name for name, one in state.features.items() if one.quality == 0} >= doubted


def test_little_power_is_no_contradiction_of_a_throttled_or_unknown_board() -> None:
    slow = {"power_watts": (72.0,) * GPUS, "throttle_reasons": (0x40,) * GPUS}
    assert watch(minutes(1, **slow))[1].doubts == {}
    assert quality.idle_watts("some other board") is None
    assert quality.idle_watts("NVIDIA L4") == 16.0


def test_an_impossible_value_of_one_gpu_is_left_out_and_lowers_the_quality() -> None:
    wrong = {"power_watts": (400.0, 400.0, 99_999.0, 400.0)}
    _, state = watch(minutes(1, **wrong))
    power = state.features["power_watts"]
    assert state.doubts == {"power_watts": "out_of_range"}
    assert (power.value, power.quality) == (400.0, 0.75)


def test_a_blank_is_missing_and_not_impossible() -> None:
    _, state = watch(minutes(1, power_watts=(float(0x7FFF_FFF0),) * GPUS))
    assert state.doubts == {}
    assert state.features["power_watts"].value is None


def test_a_doubted_reading_leaves_the_mean_of_its_pool_and_stays_expected() -> None:
    shard = NodeShard()
    for step in range(80):
        stuck = {"power_watts": (123.0,) * GPUS}
        ill = sample(step, node="ill", **(readings(step) | stuck))
        well = sample(step, node="well", **readings(step))
        nodes.absorb(shard, unpack(pack("local", 0, [ill, well])))
    pool = node_ticks.at_tick(shard, "local", ill.event_time_us).pools["h100"]
    power, load = pool.features["power_watts"], pool.features["utilisation"]
    assert (power.present, power.expected) == (GPUS, 2 * GPUS)
    assert power.total / power.present > 440
    assert load.present == 2 * GPUS


def test_a_stillness_lasts_across_the_turn_of_the_short_clock_of_records() -> None:
    turn_us = (T0 // (quality.CLOCK_US << 16) + 1) * (quality.CLOCK_US << 16)
    stuck = minutes(12, power_watts=(431.5,) * GPUS)
    moved_us = turn_us - T0 - 5 * MINUTE
    _, state = watch(replace(s, event_time_us=s.event_time_us + moved_us) for s in stuck)
    assert state.doubts == {"power_watts": "frozen"}


def test_a_bit_per_feature_fits_the_record() -> None:
    assert len(FEATURES) <= 16
