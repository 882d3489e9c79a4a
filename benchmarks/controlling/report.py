"""From results to `docs/control.md` and the plots beside it: what was measured, against what aims.

The page and the plots are the same bytes for the same results: no date, no duration, no path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.controlling.comparing import Compared, Comparison, Ratio
from benchmarks.controlling.hour import Hour
from benchmarks.controlling.plots import frontier_svg
from benchmarks.controlling.results import (
    RATIOS,
    ClassResult,
    Outcome,
    Point,
    Results,
    Variant,
)

VIOLATIONS_AIM: Final = 0.70
EXCESS_AIM: Final = 1.01
AVOIDABLE_AIM: Final = 0.75
BURSTS: Final = ("bursty", "flash")

HEADS: Final = (
    "violations at equal cost, vs rule",
    "cost at equal service, vs rule",
    "avoidable cost, vs HPA",
    "avoidable cost, vs rule",
)

METHOD: Final = """\
Written by `make bench-control`. Ratios compare the learned policy (the mean of its training seeds,
where more than the one that ships have run) with the rule and with the Kubernetes HPA, each at its
own frontiers of seven settings; 1 is equal, less is better, in brackets the 95 % interval of a
bootstrap that draws the same days for all, and training seeds as well.
Service is equal only where it is in every pool: each pool's frontier is read at the violation rate
(for equal cost, at the cost) that the tuned rule has in that pool, and what is read is summed over
the pools before the ratio is taken. In a pool where the tuned rule let nobody wait the others are
read at their cheapest setting that let nobody wait. A batch job is violated when it waits longer
than five minutes and a tenth of its work, a service minute when its p95 first token exceeds two
seconds; the two are never summed. Cost is capacity, energy, and what is left undone at the
on-demand price; avoidable is what exceeds the clairvoyant bound at the same service, pool by pool.
Where the frontiers of a pool do not overlap nothing is extrapolated and nothing left out: there is
no ratio. Nor is there with fewer than 100 violations of the rule in all pools together."""


HOUR: Final = """\
The hour of the Azure conversation trace drives the inference service in eight worlds, each with its
own jobs beside it and its own luck. Test only, and one sample: no ratio is taken."""


def write(results: Results, folder: Path) -> None:
    """Write `control.md` and one plot per class, and per class that serves, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in results.classes:
        for measure, outcome in _outcomes(one):
            (folder / _plot(one, measure)).write_text(
                frontier_svg(outcome, title=f"{_named(one)}, {measure}"), encoding="utf-8"
            )
    (folder / "control.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: Results) -> str:
    """Return the page."""
    parts = ["# Control benchmark", METHOD, "\n".join(f"- {note}" for note in results.notes)]
    parts += ["## What the policy comes to", "\n".join(_summary(results.classes))]
    parts += ["## Aims", "\n".join(_aims(results.classes))]
    if results.variants:
        parts += ["## Under other assumptions", "\n".join(_variants(results.variants))]
    if results.hour:
        parts += ["## An hour of a language model's requests", HOUR, "\n".join(_hour(results.hour))]
    for one in results.classes:
        parts.append(f"## {_named(one).capitalize()}")
        for measure, outcome in _outcomes(one):
            title = f"Frontiers of {_named(one)} loads, {measure}"
            parts += [f"![{title}]({_plot(one, measure)})", "\n".join(_controllers(outcome))]
            parts.append(_fewest(outcome))
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(comparison: Comparison) -> str:
    """Return a ratio with its interval, or why there is none."""
    if not isinstance(comparison, Ratio):
        return comparison.reason
    return f"{comparison.value:.3f} ({comparison.low:.3f} to {comparison.high:.3f})"


def alphas_told(alphas: dict[str, float]) -> str:
    """Tell what each pool lets the policy do; nothing where none does."""
    return ", ".join(f"{pool} {alpha:g}" for pool, alpha in alphas.items() if alpha) or "0"


def verdict(comparison: Comparison, *, most: float, bound: bool) -> str:
    """Return whether a ratio, or its upper bound, is at most what it may be, or is not shown."""
    if not isinstance(comparison, Ratio):
        return "not shown"
    return "met" if (comparison.high if bound else comparison.value) <= most else "**missed**"


def _summary(classes: tuple[ClassResult, ...]) -> Iterator[str]:
    yield from _headed("class", "measure", "days", "events", *HEADS, "alpha", "decisions differing")
    for one in classes:
        for measure, outcome in _outcomes(one):
            compared = outcome.compared
            yield _line(
                _named(one), measure, str(outcome.days), str(compared.events), *_shown(compared),
                alphas_told(one.alphas), f"{one.share_of_decisions_differing:.1%}",
            )  # fmt: skip


def _aims(classes: tuple[ClassResult, ...]) -> Iterator[str]:
    yield from _headed("aim", "class", "measured", "")
    for one in classes:
        compared = one.batch.compared
        aims = [
            ("upper bound of cost at most 1 % above the rule's", RATIOS[1], EXCESS_AIM),
            ("avoidable cost 25 % below that of tuned HPA", RATIOS[2], AVOIDABLE_AIM),
        ]
        if one.load in BURSTS:
            fewer = "30 % fewer violations than the rule at equal cost"
            aims.insert(0, (fewer, RATIOS[0], VIOLATIONS_AIM))
        for aim, name, most in aims:
            comparison: Comparison = getattr(compared, name)
            told = verdict(comparison, most=most, bound=name == RATIOS[1])
            yield _line(aim, _named(one), shown(comparison), told)


def _variants(variants: tuple[Variant, ...]) -> Iterator[str]:
    """Tell how the policy and HPA compare with the rule, each under the same assumption."""
    yield from _headed("assumption", "class", "controller", "events", *HEADS[:2])
    for variant in variants:
        for one in variant.classes:
            for controller in one.batch.controllers:
                compared = controller.compared
                if compared is not None and controller.name in (one.batch.policy, "hpa"):
                    told = (controller.name, str(compared.events), *_shown(compared)[:2])
                    yield _line(variant.assumption, _named(one), *told)


def _hour(hour: tuple[Hour, ...]) -> Iterator[str]:
    yield from _headed("controller", "setting", "minutes violated", "rate", "USD an hour")
    for one in hour:
        violated = f"{one.violated} of {one.minutes}"
        rate, usd = f"{one.violated / one.minutes:.2%}", f"{one.usd_per_hour:,.0f}"
        yield _line(one.name, f"{one.setting:g}", violated, rate, usd)


def _controllers(outcome: Outcome) -> Iterator[str]:
    """Each pool at the tuned setting; what was not tuned is told from end to end."""
    told = [f"{pool}: {what}" for pool in outcome.pools for what in ("violated", "USD a day")]
    yield from _headed("controller", "setting", *told, "USD a day", *HEADS[:2])
    for one in outcome.controllers:
        tuned = [point for point in one.points if point.tuned]
        name = f"**{one.name}**" if one.name == outcome.policy else one.name
        setting = f"{tuned[0].setting:g}" if tuned else ""
        total = f"{sum(point.cost_usd_per_day for point in tuned):,.0f}" if tuned else ""
        pools = [cell for pool in outcome.pools for cell in _pool(one.of(pool))]
        compared = ("", "") if one.compared is None else _shown(one.compared)[:2]
        yield _line(name, setting, *pools, total, *compared)


def _fewest(outcome: Outcome) -> str:
    """Tell how few violations anyone came to at whatever cost: what no controller could spare."""
    played = [one for one in outcome.controllers if any(point.tuned for point in one.points)]
    fewest = {
        pool: min(point.violated for one in played for point in one.of(pool))
        for pool in outcome.pools
        if any(one.of(pool) for one in played)
    }
    by_pool = ", ".join(f"{pool} {violated:,.0f}" for pool, violated in fewest.items())
    total = f"{sum(fewest.values()):,.0f}"
    return (
        f"The fewest violations that anyone came to at any setting and cost: {total} ({by_pool})."
    )


def _pool(points: tuple[Point, ...]) -> tuple[str, str]:
    """Return violations and cost of a controller in a pool."""
    if not points:
        return "", ""
    for point in points:
        if point.tuned:
            violated = f"{point.violated:.0f} of {point.judged:.0f} ({point.violation_rate:.2%})"
            return violated, f"{point.cost_usd_per_day:,.0f}"
    rates = [point.violation_rate for point in points]
    costs = [point.cost_usd_per_day for point in points]
    return f"{min(rates):.2%} to {max(rates):.2%}", f"{min(costs):,.0f} to {max(costs):,.0f}"


def _shown(compared: Compared) -> tuple[str, ...]:
    return tuple(shown(getattr(compared, name)) for name in RATIOS)


def _outcomes(one: ClassResult) -> list[tuple[str, Outcome]]:
    found = [("batch", one.batch)]
    return found if one.service is None else [*found, ("service", one.service)]


def _named(one: ClassResult) -> str:
    return f"{one.load} (synthetic)" if one.synthetic else one.load


def _plot(one: ClassResult, measure: str) -> str:
    return f"control-{one.load}.svg" if measure == "batch" else f"control-{one.load}-{measure}.svg"


def _headed(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|---" * len(names) + "|"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
