"""Capacity and price at once: what each gains alone, what both do, and whether that is the sum.

A comparison of capacity freezes the price, and one of prices leaves capacity to the rule. Here the
rule and the policy that ships, as it stands in the control benchmark, meet each way of pricing in
the same worlds, and what counts is net: margin less what refused and priced-out demand is charged.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Final

from benchmarks.controlling.entrants import POLICY
from benchmarks.priced.play import Days, Seller, Sold
from benchmarks.priced.results import LEARNED, Corner, Together, difference, net, outcome, scored

from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.schemas.policy import Floats

RULE: Final = "rule"
"""Both of the capacity, where it is what the policy is an offset on, and of the price."""
PRICES: Final = ("fixed", RULE, LEARNED)


def name_of(capacity: str, price: str) -> str:
    """Return who sells at this price on this capacity; on the rule's it is called by the price."""
    return price if capacity == RULE else f"{capacity}, {price}"


def on_policy(sellers: Sequence[Seller], policy: Controller) -> tuple[Seller, ...]:
    """Return the sellers whose prices are compared once more, on capacity by a policy."""
    return tuple(
        replace(one, name=name_of(POLICY, one.name), capacity=deepcopy(policy))
        for one in sellers
        if one.name in PRICES
    )


def together_of(assumption: str, place: int, sold: Sold, lead: int, law: PricingConfig) -> Together:
    """Return what a world came to on the days after the first `lead`."""
    days: dict[tuple[str, str], Days] = {
        (capacity, price): scored(sold.days[name_of(capacity, price)], place, lead)
        for capacity in (RULE, POLICY)
        for price in PRICES
    }
    usd: dict[tuple[str, str], Floats] = {
        corner: net(one, law, 1.0) for corner, one in days.items()
    }
    neither, both = usd[RULE, RULE], usd[POLICY, LEARNED]
    return Together(
        assumption=assumption,
        corners=tuple(
            Corner(
                capacity=capacity,
                price=price,
                outcome=outcome(name_of(capacity, price), one, sold.ceiling[place], law),
            )
            for (capacity, price), one in days.items()
        ),
        capacity=tuple(difference(one, usd[POLICY, one] - usd[RULE, one]) for one in PRICES),
        learned=tuple(
            difference(one, usd[one, LEARNED] - usd[one, RULE]) for one in (RULE, POLICY)
        ),
        both=difference("neither", both - neither),
        beyond=difference("the sum", both - usd[POLICY, RULE] - usd[RULE, LEARNED] + neither),
    )
