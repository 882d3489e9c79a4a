"""The twin's own money: flows that are constant between events, summed in whole micros.

A flow is an integer rate in units whose denominator is fixed per component, so sums are exact and
do not depend on how often they were settled: what does not make a whole micro is carried over.
Anyone who reads telemetry can reach the same sums; that nobody writes them there is the point.
"""

from typing import Final

import msgspec

from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US

SERVICE_PENALTY_USD_MICROS: Final = 2_000_000

DENOMINATORS: Final[dict[str, int]] = {
    "revenue": HOUR_US,
    "capacity_cost": HOUR_US,
    "energy_cost": 1000 * HOUR_US,
    "waiting_penalty": 2 * HOUR_US,
    "service_penalty": 1,
    "disruption_penalty": HOUR_US,
}
"""Revenue flows in GPUs x USD micros per GPU-hour, capacity in USD micros per hour, energy in
watts x USD micros per kWh, waiting in GPUs x USD micros per GPU-hour at half rate; each times
microseconds. Disruption is booked in GPU-microseconds x USD micros per GPU-hour."""

CARBON_DENOMINATOR: Final = 1000 * HOUR_US
INCOME: Final = frozenset({"revenue"})


class Account(msgspec.Struct, array_like=True):
    """One component of one pool: the amount so far and the flow since `since_us`.

    `micros` are USD micros, or milligrams where it is of carbon.
    """

    micros: int = 0
    rest: int = 0
    rate: int = 0
    since_us: int = 0


class Books(msgspec.Struct):
    """Accounts by pool and component; amounts are positive, `totals` gives them their signs."""

    accounts: dict[str, dict[str, Account]]
    carbon: dict[str, Account] = {}
    """By pool, in milligrams: no money, and in no total."""

    @classmethod
    def open(cls, pools: tuple[str, ...], now_us: int) -> "Books":
        """Return empty books of some pools."""
        return cls(
            {pool: {name: Account(since_us=now_us) for name in COMPONENTS} for pool in pools}
        )

    def flow(self, pool: str, component: str, rate: int, now_us: int) -> None:
        """Let a component flow at `rate` from now on."""
        account = self.accounts[pool][component]
        _settle(account, DENOMINATORS[component], now_us)
        account.rate = rate

    def change(self, pool: str, component: str, by: int, now_us: int) -> None:
        """Raise or lower a component's flow."""
        self.flow(pool, component, self.accounts[pool][component].rate + by, now_us)

    def book(self, pool: str, component: str, amount: int) -> None:
        """Add an amount, in the component's own unit, at once."""
        _add(self.accounts[pool][component], DENOMINATORS[component], amount)

    def emit(self, pool: str, rate: int, now_us: int) -> None:
        """Let carbon flow at `rate`, in watts times milligrams per kWh, from now on."""
        account = self.carbon.setdefault(pool, Account(since_us=now_us))
        _settle(account, CARBON_DENOMINATOR, now_us)
        account.rate = rate

    def carbon_milligrams(self, now_us: int) -> dict[str, int]:
        """Return the carbon emitted so far by pool."""
        for account in self.carbon.values():
            _settle(account, CARBON_DENOMINATOR, now_us)
        return {pool: account.micros for pool, account in self.carbon.items()}

    def totals(self, now_us: int) -> dict[str, dict[str, int]]:
        """Return USD micros by pool and component up to now, costs and penalties negative."""
        signed: dict[str, dict[str, int]] = {}
        for pool, components in self.accounts.items():
            signed[pool] = {}
            for name, account in components.items():
                _settle(account, DENOMINATORS[name], now_us)
                signed[pool][name] = account.micros if name in INCOME else -account.micros
        return signed


def _settle(account: Account, denominator: int, now_us: int) -> None:
    if account.rate and now_us > account.since_us:
        _add(account, denominator, account.rate * (now_us - account.since_us))
    account.since_us = now_us


def _add(account: Account, denominator: int, amount: int) -> None:
    whole, account.rest = divmod(account.rest + amount, denominator)
    account.micros += whole
