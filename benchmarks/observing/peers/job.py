"""What every peer does with a node's sample, and how it says what that took.

Nothing of gpuloop is imported: peers run in an environment of their own.
"""

import json
import sys
import time
from typing import Final

import msgspec

Values = tuple[float | None, ...]

FEATURES: Final = (
    "utilisation", "sm_active", "tensor_active", "memory_used", "temperature_celsius",
    "power_watts", "sm_clock_mhz", "throttle_reasons", "nvlink_bytes_per_second",
    "pcie_bytes_per_second", "ecc_corrected", "ecc_uncorrected",
)  # fmt: skip

Sample = msgspec.defstruct(
    "Sample",
    [
        *((name, str) for name in ("fleet", "node", "pool", "rack", "gpu_model", "billing")),
        *((name, int) for name in ("event_time_us", "boot", "seq")),
        ("gpu_ids", tuple[str, ...]),
        *((name, Values, ()) for name in FEATURES),
    ],
    frozen=True,
)

_decode: Final = msgspec.json.Decoder(Sample).decode
_encode: Final = msgspec.msgpack.Encoder().encode
_known: Final = msgspec.msgpack.Decoder(tuple[int, int, int, list[float]]).decode


def read(value: bytes) -> object:
    """Decode a sample and read its every field."""
    sample = _decode(value)
    return [getattr(sample, name) for name in Sample.__struct_fields__]


def fold(row: bytes | None, value: bytes) -> bytes | None:
    """Return a node's next row, None where the sample is not newer."""
    sample = _decode(value)
    if row is not None and (sample.boot, sample.seq) <= _known(row)[:2]:
        return None
    sums = [sum(one for one in getattr(sample, name) if one is not None) for name in FEATURES]
    return _encode((sample.boot, sample.seq, sample.event_time_us, sums))


KNOWN: Final = 2 * 12_500
"""Records that only make a fleet known, two of each node: nobody is measured by them."""


class Stopwatch:
    """Counts records, and prints what took those behind the first `KNOWN`."""

    def __init__(self, records: int) -> None:
        self._left = records
        self._measured = records - KNOWN
        self._cpu = self._wall = 0.0

    def count(self) -> bool:
        """Count one; return whether it was the last, after having said what they took."""
        self._left -= 1
        if self._left == self._measured:
            self._cpu, self._wall = time.process_time(), time.perf_counter()
        if self._left:
            return False
        took = {
            "records": self._measured,
            "cpu_s": time.process_time() - self._cpu,
            "wall_s": time.perf_counter() - self._wall,
        }
        # Faust has put a logger in the place of sys.stdout.
        print(json.dumps(took), file=sys.__stdout__, flush=True)
        return True
