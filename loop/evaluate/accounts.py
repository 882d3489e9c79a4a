"""Exact money: flows that change in steps, summed in whole micros without losing a fraction.

An amount is an integer in a unit fine enough to hold any rate times any number of microseconds;
what does not make a whole micro stays behind and is part of the next sum, so the sums over any
cutting of time into windows add up to one total. Amounts here are positive; `SIGNS` tells costs.
"""

from typing import Final

import msgspec

from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US, MINUTE_US

UNITS_PER_MICRO: Final[dict[str, int]] = {
    "revenue": HOUR_US,
    "capacity_cost": HOUR_US,
    "energy_cost": 1_000_000 * HOUR_US,
    "waiting_penalty": 2 * HOUR_US,
    "service_penalty": MINUTE_US,
    "disruption_penalty": HOUR_US,
    "energy_milliwatt_hours": HOUR_US,
    "carbon_milligrams": 1_000_000 * HOUR_US,
}
"""Rates are per hour: GPUs x price, nodes x price, milliwatts x price per kWh, GPUs x price at
half; a violated service costs per minute. Lost work is GPU-microseconds x price per GPU-hour.
`QUANTITIES` are no money: milliwatts, and milliwatts x milligrams per kWh."""

QUANTITIES: Final = ("energy_milliwatt_hours", "carbon_milligrams")

SIGNS: Final[dict[str, int]] = {name: 1 if name == "revenue" else -1 for name in COMPONENTS}


class Account(msgspec.Struct, array_like=True):
    """One component of one pool: whole micros and a rest not yet taken, and the rate since when."""

    micros: int = 0
    rest: int = 0
    rate: int = 0
    since_us: int = 0

    def add(self, component: str, units: int) -> None:
        """Book an amount; a negative one takes back what was booked too much."""
        whole, self.rest = divmod(self.rest + units, UNITS_PER_MICRO[component])
        self.micros += whole

    def accrue(self, component: str, until_us: int) -> None:
        """Let the rate flow up to a time; never back."""
        if until_us > self.since_us:
            self.add(component, self.rate * (until_us - self.since_us))
            self.since_us = until_us

    def change(self, component: str, by: int, at_us: int) -> None:
        """Change the rate at a time; for a time already passed, correct what has flowed since."""
        self.accrue(component, at_us)
        self.add(component, by * (self.since_us - at_us))
        self.rate += by

    def take(self, component: str, until_us: int) -> int:
        """Return the signed micros since the last time, up to `until_us`."""
        self.accrue(component, until_us)
        taken, self.micros = self.micros, 0
        return SIGNS[component] * taken

    def take_above_zero(self, component: str, until_us: int) -> int:
        """Return the quantity since the last time; what is owed of earlier windows stays."""
        self.accrue(component, until_us)
        taken = max(self.micros, 0)
        self.micros -= taken
        return taken
