"""From results to `docs/pricing.md`: the same bytes for the same results, losses said first."""

from collections.abc import Iterator
from typing import Final

from benchmarks.priced import joint
from benchmarks.priced.results import LEARNED, Results, World
from benchmarks.priced.tables import headed, line, shown, told_by

METHOD: Final = """\
Written by `make bench-pricing`. The learned price (`reasoning/pricing.py` on the curves of
`reasoning/elasticity.py`) beside four others, on the pool level of the twin, all with the capacity
of the tuned rule (but for one section), on the same jobs, reservation prices and luck, each through
the same envelope. The worlds begin {lead} days before the first scored date, with the jobs that run
then, and what is learned goes on from there; nothing of the scored dates was tuned on. *Fixed*
keeps the first quote, *market* follows the market's price at the first markup, *rule* moves that by
scarcity, *ceiling* stands at the top of the learned price's band ({ceiling:.0%} of the market's)
from the first day.

Money is US dollars a day, means of {dates} dates ({first} to {last}). Margin is the ledger's:
revenue less capacity, energy and the penalties for waiting, service and disruption. Net is margin
less charges: {refused:.0%} of the first quote for each GPU-hour refused, and {priced_out:.0%} more
where the first quote would have been accepted (priced out). These rates, the elasticities and the
reclaim rates are assumptions. In brackets are 95 % intervals of a bootstrap over paired dates;
dates that share long jobs are not independent, so they are rather too narrow."""

CAVEATS: Final = """\
- An elasticity is that of every segment at the first quote; the share that accepts it (77 to 88 %)
  stays what it is. The curves are logistic and the twin's tenants lognormal, so they are a little
  wrong on purpose.
- The market's list prices on demand stood still through these dates, so the market's price is the
  first quote in all pools but the one of spot nodes. In *a market that falls* the pool h100 rents
  spot nodes alone, whose price fell by 42 % on the 43rd day: there every price but the fixed one
  follows it down, though the tenants, who know no market, would have paid on.
- Tenants answer each quote by itself: none leaves for good or comes for a low price, and patrons
  mind a price as others do. So a discount for them brings nothing of its own here: the law quotes
  more by as much. Philly names 14 virtual clusters and no users, so nearly every job is a patron's.
- *Ceiling* knows nothing and is right where demand is inelastic; where it is not, it empties the
  fleet. What learning is worth is what it keeps of the one without the other."""


def markdown(results: Results, *, refused: float, priced_out: float, ceiling: float) -> str:
    """Return the page."""
    method = METHOD.format(
        lead=results.lead_days,
        dates=len(results.dates),
        first=results.dates[0],
        last=results.dates[-1],
        refused=refused,
        priced_out=priced_out,
        ceiling=ceiling,
    )
    parts = ["# Pricing benchmark", method, CAVEATS]
    parts += [
        "## Where the learned price loses, and where it does not",
        "\n".join(_losses(results)),
    ]
    parts += ["## Learned less the others, net of charges", "\n".join(_differences(results))]
    parts += ["\n".join(_held(results))]
    if results.worlds[0].before:
        parts += ["## What prices by default", "\n".join(_before(results))]
    parts += ["## If refusals cost nothing, or three times as much", "\n".join(_charges(results))]
    if results.together:
        told = joint.section(results.together, results.alphas)
        parts += ["## Capacity and price together", told]
    parts += ["## Terms", "\n".join(_terms(results))]
    for world in results.worlds:
        parts += [f"## {world.assumption.capitalize()}", "\n".join(_outcomes(results, world))]
        parts += ["\n".join(_estimates(world))]
    return "\n\n".join(parts) + "\n"


def _losses(results: Results) -> Iterator[str]:
    for rival in results.rivals:
        found = {
            world.assumption: next(one for one in world.differences if one.against == rival)
            for world in results.worlds
        }
        yield f"- Against *{rival}* it {told_by(found)}."


def _differences(results: Results) -> Iterator[str]:
    yield from headed("assumption", *results.rivals)
    for world in results.worlds:
        yield line(world.assumption, *map(shown, world.differences))


def _held(results: Results) -> Iterator[str]:
    """Yield how many intervals of the estimates below hold what is true."""
    told = [one for world in results.worlds for one in world.estimates]
    held = sum(one.low <= one.true <= one.high for one in told)
    trusted = [one for one in told if one.trusted]
    right = sum(one.low <= one.true <= one.high for one in trusted)
    yield (
        f"Of {len(told)} elasticities estimated at the last quotes, {held} lie within their 95 % "
        f"intervals; of the {len(trusted)} that are trusted, {right}."
    )


def _before(results: Results) -> Iterator[str]:
    """Yield the choice of the default, on dates before the scored ones."""
    rule = {
        world.assumption: next(one for one in world.before if one.against == "rule")
        for world in results.worlds
    }
    worse = [f"{name} ({one.value:+,.0f})" for name, one in rule.items() if one.value <= 0.0]
    yield (
        "On the two weeks before the scored dates the law's numbers were chosen, while prices "
        "could move every half hour; they move at each quarter now, and nothing was chosen anew. "
        "There the learned price less the others was:"
    )
    yield ""
    yield from headed("assumption", *results.rivals)
    for world in results.worlds:
        yield line(world.assumption, *map(shown, world.before))
    yield ""
    if worse:
        yield (
            f"There it was no better in {', '.join(worse)}. What is not better over the whole "
            "range before it is scored does not ship as the default, so a decider prices by the "
            "rule unless it is told `GPULOOP_PRICING=learned`."
        )
    else:
        yield "There it was better under every assumption."


def _charges(results: Results) -> Iterator[str]:
    yield from headed("assumption", "charges", *results.rivals)
    for world in results.worlds:
        for factor, found in world.by_charge.items():
            if factor != "1":
                yield line(world.assumption, f"x {factor}", *map(shown, found))


def _terms(results: Results) -> Iterator[str]:
    yield "The learned price less itself with one term changed, net, in the first of the worlds."
    yield ""
    yield from headed("changed", "learned less that", "margin", "occupancy", "refused")
    by_name = {one.seller: one for one in results.terms_outcomes}
    for one in results.terms:
        found = by_name[one.against]
        yield line(
            one.against, shown(one), f"{found.margin_usd:,.0f}", f"{found.occupancy:.1%}",
            f"{found.refused:.1%}",
        )  # fmt: skip


def _outcomes(results: Results, world: World) -> Iterator[str]:
    pools = [f"margin of {pool}" for pool in results.pools]
    yield from headed(
        "price", "margin", "net", "sold of rented", "sold of ceiling", "refused", "priced out",
        "quote", *pools,
    )  # fmt: skip
    for one in world.outcomes:
        yield line(
            f"**{one.seller}**" if one.seller == LEARNED else one.seller,
            f"{one.margin_usd:,.0f}", f"{one.net_usd:,.0f}", f"{one.occupancy:.1%}",
            f"{one.occupancy_of_ceiling:.1%}", f"{one.refused:.1%}", f"{one.priced_out:.1%}",
            f"{one.price:.2f}", *(f"{usd:,.0f}" for usd in one.pools_usd),
        )  # fmt: skip


def _estimates(world: World) -> Iterator[str]:
    yield "What was learned, at the last quote:"
    yield ""
    yield from headed("pool", "segment", "GPUs", "elasticity", "estimate", "trusted")
    for one in world.estimates:
        yield line(
            one.pool, one.segment, f"{one.gpus:.0f}", f"{one.true:.2f}",
            f"{one.middle:.2f} ({one.low:.2f} to {one.high:.2f})", "yes" if one.trusted else "no",
        )  # fmt: skip
