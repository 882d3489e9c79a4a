"""The page's section on capacity and price together: what it comes to in words, then in tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from benchmarks.controlling.entrants import POLICY
from benchmarks.priced.results import LEARNED, Together
from benchmarks.priced.tables import headed, line, shown, told_by, verdict
from benchmarks.priced.together import PRICES, RULE

METHOD: Final = """\
Above, capacity is the tuned rule's; `make bench-control` freezes the price and compares capacity.
Here both move at once: the tuned rule with its forecast, or the policy that ships, an offset on it
at the alphas it earned ({alphas}), at each of three prices, on the
same jobs, reservation prices and luck. The policy is the one of the control benchmark, trained and
judged before the first scored date and at a price that stood still; what it says of the price
itself does not count. It was taught what a pool loses in nodes and in late jobs, the latter at a
price in node-hours chosen by hand, which is not the ledger's. The score here is money: net, margin
less charges, as above. At a fixed price as many accept whatever the elasticity, so those worlds are
one there."""

SUMS: Final = {"wins": "is more", "loses": "is less"}


def section(worlds: Sequence[Together], alphas: Mapping[str, float]) -> str:
    """Return the section, without its heading."""
    earned = ", ".join(f"{pool} {alpha:g}" for pool, alpha in alphas.items())
    parts = [METHOD.format(alphas=earned), _worth(worlds), "\n".join(_verdicts(worlds))]
    parts += ["\n".join(_gains(worlds))]
    parts += ["Margin and, after the stroke, net:", "\n".join(_corners(worlds))]
    return "\n\n".join(parts)


def _worth(worlds: Sequence[Together]) -> str:
    """Return in a sentence what the policy's capacity adds."""
    # Where the price is fixed elasticities make no difference: those worlds are one.
    pairs = dict.fromkeys(one for world in worlds for one in world.capacity)
    found = [verdict(one) for one in pairs]
    return (
        f"**In {found.count('wins')} of {len(found)} pairs of a world and a price the policy's "
        f"capacity earns more than the rule's, in {found.count('loses')} less; in "
        f"{found.count('is not told apart')} the two are not told apart.**"
    )


def _verdicts(worlds: Sequence[Together]) -> Iterator[str]:
    for place, price in enumerate(PRICES):
        found = {one.assumption: one.capacity[place] for one in worlds}
        yield f"- The policy's capacity beside the rule's, at {_price(price)}: it {told_by(found)}."
    for place, capacity in enumerate((RULE, POLICY)):
        found = {one.assumption: one.learned[place] for one in worlds}
        yield (
            f"- The learned price beside the rule's, on the {capacity}'s capacity: it "
            f"{told_by(found)}."
        )
    yield f"- Both beside neither: it {told_by({one.assumption: one.both for one in worlds})}."
    beyond = {one.assumption: one.beyond for one in worlds}
    yield (
        "- The gain of both beside the sum of two, the policy's at the rule's price and the "
        f"learned price's on the rule's capacity: it {told_by(beyond, SUMS)}."
    )


def _gains(worlds: Sequence[Together]) -> Iterator[str]:
    yield from headed(
        "assumption",
        *(f"policy less rule, at {_price(price)}" for price in PRICES),
        *(f"learned price less rule's, on the {one}'s capacity" for one in (RULE, POLICY)),
        "both less neither",
        "beyond the sum",
    )
    for one in worlds:
        differences = (*one.capacity, *one.learned, one.both, one.beyond)
        yield line(one.assumption, *map(shown, differences))


def _corners(worlds: Sequence[Together]) -> Iterator[str]:
    yield from headed(
        "assumption",
        *(f"{one.capacity}, {_price(one.price)}" for one in worlds[0].corners),
    )
    for world in worlds:
        yield line(
            world.assumption,
            *(
                f"{one.outcome.margin_usd:,.0f} / {one.outcome.net_usd:,.0f}"
                for one in world.corners
            ),
        )


def _price(name: str) -> str:
    return {RULE: "the rule's price", LEARNED: "the learned price"}.get(name, f"a {name} price")
