"""What capacity costs upstream: the recorded price history, replayed on the fleet clock.

Prices are list prices of whole 8-GPU instances in one region, divided by their GPUs. They move
every few weeks, so a fleet sees steps, and nothing is interpolated between snapshots. The history
is laid beside the fleet clock by two dates that coincide: the fleet's start and `market_start`.
"""

import gzip
from bisect import bisect_right
from collections.abc import Mapping
from csv import DictReader
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import SECOND_US, USD_MICROS

HISTORY: Final = "market/gcp_gpu_prices.csv.gz"
GPUS_PER_INSTANCE: Final = 8

Key = tuple[str, Billing]
Steps = tuple[tuple[int, int], ...]
"""(market time in microseconds, USD micros per GPU-hour), oldest first."""

BUILT_IN: Final[dict[Key, int]] = {
    ("h100-80gb", "on_demand"): 11_061_250,
    ("h100-80gb", "spot"): 2_552_879,
    ("a100", "on_demand"): 3_673_385,
    ("a100", "spot"): 1_442_955,
    ("l4", "on_demand"): 1_000_416,
    ("l4", "spot"): 399_308,
}
"""List prices of a3-highgpu-8g, a2-highgpu-8g and g2-standard-96, us-central1, March 2025."""

BUILT_IN_SOURCE: Final = "built-in list prices of us-central1, March 2025"


@dataclass(frozen=True, slots=True)
class Market:
    """Prices by GPU model and billing; `offset_us` takes fleet time to market time."""

    steps: Mapping[Key, Steps]
    offset_us: int
    source: str

    def price(self, gpu_model: str, billing: Billing, at_us: int) -> int:
        """Return USD micros per GPU-hour in force at fleet time `at_us`.

        Before the first snapshot the first price holds.

        Raises:
            KeyError: nobody offers that GPU under that billing.

        """
        steps = self.steps[gpu_model, billing]
        index = bisect_right(steps, (at_us + self.offset_us, 1 << 62)) - 1
        return steps[max(index, 0)][1]


def build_market(
    traces: Path | None, *, region: str, fleet_start_us: int, market_start: str
) -> Market:
    """Return the market of a region, from the history under `traces` or the built-in prices."""
    begin = datetime.fromisoformat(market_start)
    begin_us = int(begin.timestamp()) * SECOND_US
    steps: dict[Key, Steps] = {key: ((0, price),) for key, price in BUILT_IN.items()}
    source = BUILT_IN_SOURCE
    path = None if traces is None else traces / HISTORY
    if path is not None and path.is_file():
        history = _history(path, region)
        steps |= history
        if history:
            source = f"price history of {region}, from {begin:%Y-%m-%d}"
    return Market(steps, begin_us - fleet_start_us, source)


@cache
def _history(path: Path, region: str) -> dict[Key, Steps]:
    prices: dict[Key, dict[int, int]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for row in DictReader(lines):
            if row["region"] != region or row["accelerator_count"] != str(GPUS_PER_INSTANCE):
                continue
            day = datetime.fromisoformat(row["snapshot_date"]).replace(tzinfo=UTC)
            at_us = int(day.timestamp()) * SECOND_US
            billed: tuple[tuple[Billing, str], ...] = (
                ("on_demand", row["hour_usd"]),
                ("spot", row["hour_spot_usd"]),
            )
            for billing, usd in billed:
                if usd and float(usd) > 0:
                    per_gpu = round(float(usd) * USD_MICROS / GPUS_PER_INSTANCE)
                    prices.setdefault((row["accelerator"], billing), {})[at_us] = per_gpu
    return {key: _changes(sorted(by_day.items())) for key, by_day in sorted(prices.items())}


def _changes(series: list[tuple[int, int]]) -> Steps:
    """Keep the snapshots at which the price moved."""
    kept = series[:1]
    for at_us, price in series[1:]:
        if price != kept[-1][1]:
            kept.append((at_us, price))
    return tuple(kept)
