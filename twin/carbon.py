"""How much carbon dioxide a kilowatt-hour stands for, by region and hour.

Regions' averages are what Google Cloud published for 2024 of the grids that feed them (repository
GoogleCloudPlatform/region-carbon-info, data/yearly/2024.csv): gross emissions, without what was
bought elsewhere to make up for them. How it moves within a day is an assumption: a cosine around
the average, highest at eight in the evening of the region's winter time, which leaves the day's
mean as published.
"""

from math import cos, pi
from typing import Final, NamedTuple

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import CarbonConfig

PEAK_HOUR: Final = 20


class Grid(NamedTuple):
    """A region's average in grams per kilowatt-hour, and its hours before or after UTC."""

    grams_per_kwh: float
    utc_hours: int


GRIDS: Final[dict[str, Grid]] = {
    "asia-east1": Grid(439.29, 8),
    "asia-northeast1": Grid(452.85, 9),
    "asia-northeast3": Grid(356.57, 9),
    "asia-south1": Grid(678.76, 5),
    "asia-southeast1": Grid(366.85, 8),
    "australia-southeast1": Grid(497.50, 10),
    "europe-central2": Grid(642.88, 1),
    "europe-north1": Grid(39.32, 2),
    "europe-west1": Grid(103.37, 1),
    "europe-west2": Grid(105.94, 0),
    "europe-west3": Grid(275.82, 1),
    "europe-west4": Grid(208.81, 1),
    "europe-west9": Grid(16.30, 1),
    "me-west1": Grid(433.75, 2),
    "northamerica-northeast1": Grid(5.48, -5),
    "southamerica-east1": Grid(67.32, -3),
    "us-central1": Grid(412.72, -6),
    "us-east1": Grid(575.77, -5),
    "us-east4": Grid(323.05, -5),
    "us-south1": Grid(302.95, -6),
    "us-west1": Grid(79.23, -8),
    "us-west2": Grid(169.28, -8),
    "us-west3": Grid(555.17, -7),
    "us-west4": Grid(357.30, -8),
}
"""Grams of CO2 equivalent per kilowatt-hour, 2024; of regions that offer GPUs."""


def milligrams_per_kwh(config: CarbonConfig, region: str, at_us: int) -> int:
    """Return the intensity of the hour at `at_us`; 0 of a region of which nothing is known."""
    grid = GRIDS.get(region, Grid(0.0, 0))
    mean = grid.grams_per_kwh if config.grams_per_kwh is None else config.grams_per_kwh
    hour = (at_us // HOUR_US + grid.utc_hours) % 24
    return round(1000 * mean * (1.0 + config.swing * cos(2 * pi * (hour - PEAK_HOUR) / 24)))


def usd_micros_per_kwh(config: CarbonConfig, milligrams: int) -> int:
    """Return what the carbon of a kilowatt-hour costs at the configured price of a tonne."""
    return round(milligrams * config.usd_per_tonne / 1000)
