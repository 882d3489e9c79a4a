"""Samples packed into columns and summed back."""

import msgspec
import numpy as np
import pytest

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import GpuSample
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.schemas.messages.telemetry import GPU_ARRAYS
from gpuloop.streams.frames import FrameBuilder, pack, unpack
from observed import gpu_sample

UTILISATION, POWER, THROTTLED = (
    FEATURES.index(name) for name in ("utilisation", "power_watts", "throttled")
)


def sample(node: str = "n1", **said: object) -> GpuSample:
    return gpu_sample(node, **{"gpu_ids": ("a", "b", "c")} | said)


def test_null_blank_and_absent_values_are_missing_never_numbers() -> None:
    view = unpack(
        pack(
            "local",
            0,
            [
                sample(power_watts=(300.0, None, 140_737_488_355_329.0)),
                sample("n2", power_watts=(float(0x7FFFFFF2), 9.3e18, 200.0)),
                sample("n3"),
            ],
        )
    )
    assert view.totals[:, POWER].tolist() == [300.0, 200.0, 0.0]
    assert view.present[:, POWER].tolist() == [1, 1, 0]
    assert view.present[:, UTILISATION].tolist() == [0, 0, 0]


def test_only_harmful_throttle_reasons_count_as_throttled() -> None:
    idle, settings, power_cap, thermal, brake = 0x1, 0x2, 0x4, 0x40, 0x80
    view = unpack(
        pack("local", 0, [sample(throttle_reasons=(idle | settings, power_cap, thermal | idle))])
    )
    assert (view.totals[0, THROTTLED], view.present[0, THROTTLED]) == (1.0, 3)
    view = unpack(pack("local", 0, [sample(throttle_reasons=(brake, 0x7FFFFFF0, None))]))
    assert (view.totals[0, THROTTLED], view.present[0, THROTTLED]) == (1.0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"pools": ()},
        {"seqs": (1, 2)},
        {"gpus": (0,)},
        {"gpus": (65,)},
        {"billings": ("gift",)},
        {"columns": {"utilisation": b"123"}},
    ],
)
def test_a_frame_that_does_not_line_up_is_bad_input(change: dict[str, object]) -> None:
    frame = pack("local", 0, [sample(utilisation=(0.5, 0.5, 0.5))])
    with pytest.raises(BadInput, match="inconsistent"):
        unpack(msgspec.structs.replace(frame, **change))


def test_an_infinite_value_in_a_column_is_missing() -> None:
    frame = pack("local", 0, [sample()])
    column = np.array([np.inf, -np.inf, 0.5], dtype="<f4").tobytes()
    view = unpack(msgspec.structs.replace(frame, columns={"utilisation": column}))
    assert (view.totals[0, UTILISATION], view.present[0, UTILISATION]) == (0.5, 1)


def test_what_a_sample_sums_to_does_not_depend_on_who_is_in_the_frame_with_it() -> None:
    rng = np.random.default_rng(3)
    said = {name: tuple(rng.random(8).tolist()) for name in GPU_ARRAYS[:4]}
    for name in GPU_ARRAYS[4:]:
        said[name] = tuple(rng.integers(10, 100, 8).tolist())
    whole = sample(gpu_ids=tuple("abcdefgh"), **said)
    alone = unpack(pack("local", 0, [whole]))
    beside = unpack(pack("local", 0, [sample("n2", power_watts=(None, 3e3, 1.0)), whole]))
    assert alone.present[0].tolist() == [8] * len(FEATURES)
    assert beside.totals[1].tolist() == alone.totals[0].tolist()
    assert beside.present[1].tolist() == alone.present[0].tolist()
    assert (beside.outside[0] > 0, beside.outside[1], alone.outside[0]) == (True, 0, 0)


def test_a_frame_of_words_in_any_script_is_no_larger_than_it_was_taken_for() -> None:
    builder = FrameBuilder("local", 0)
    words = dict.fromkeys(("pool", "rack", "gpu_model"), "😀" * 199)
    for number in range(50):
        builder.add(sample("\u7bc0" * 190 + str(number), **words))
    encoded = msgspec.msgpack.encode(builder.build())
    assert len(encoded) < 1.1 * builder.size
