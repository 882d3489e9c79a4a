"""What the benchmark found, as plain structs: they make the table, the plots and the last line."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.comparing import Compared, Comparison, Ratio, compare
from benchmarks.controlling.frontier import DRAWS, Draws, Runs, pareto
from benchmarks.controlling.hour import Hour

RATIOS: Final = (
    "violations_at_equal_cost_vs_rule",
    "cost_at_equal_service_vs_rule",
    "avoidable_cost_vs_hpa",
    "avoidable_cost_vs_rule",
)

Json = dict[str, object]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the structs of a result."""


class Point(_Part, frozen=True, kw_only=True):
    """One setting of a controller in one pool over all days; of several seeds, their mean.

    `violated` and `judged` are jobs of the batch, minutes of a service. `on_frontier` is False
    where another setting is cheaper in this pool and serves no worse.
    """

    pool: str
    setting: float
    tuned: bool
    violation_rate: float
    cost_usd_per_day: float
    violated: float
    judged: float
    on_frontier: bool


class Controller(_Part, frozen=True, kw_only=True):
    """A controller's settings, and how it compares, where it does.

    The points come pool by pool, and by rising violation rate in each.
    """

    name: str
    seeds: int
    points: tuple[Point, ...]
    compared: Compared | None

    def of(self, pool: str) -> tuple[Point, ...]:
        """Return the points of one pool."""
        return tuple(point for point in self.points if point.pool == pool)


class Outcome(_Part, frozen=True, kw_only=True):
    """All controllers on one class, by one measure of service; `policy` is the learned one."""

    policy: str
    days: int
    pools: tuple[str, ...]
    controllers: tuple[Controller, ...]

    @property
    def compared(self) -> Compared:
        """Return how the policy compares."""
        return next(c.compared for c in self.controllers if c.name == self.policy and c.compared)


class ClassResult(_Part, frozen=True, kw_only=True):
    """One class of loads.

    Attributes:
        load: the class.
        synthetic: whether its days were generated, for want of real ones.
        alphas: how much of the learned offset the policy that ships has earned, by pool.
        share_of_decisions_differing: of the policy's decisions, those that are not the rule's.
        batch: by jobs that waited too long.
        service: by minutes with a slow first token, None where no pool of the class serves.

    """

    load: LoadClass
    synthetic: bool
    alphas: dict[str, float]
    share_of_decisions_differing: float
    batch: Outcome
    service: Outcome | None


class Variant(_Part, frozen=True, kw_only=True):
    """The same benchmark under another assumption, such as an elasticity of -2."""

    assumption: str
    classes: tuple[ClassResult, ...]


class Results(_Part, frozen=True, kw_only=True):
    """Everything that was found; `notes` say in a sentence each what was run on what."""

    notes: tuple[str, ...]
    classes: tuple[ClassResult, ...]
    variants: tuple[Variant, ...] = ()
    hour: tuple[Hour, ...] = ()


def outcome(
    runs: Sequence[Runs],
    *,
    policy: str,
    tuned: Mapping[str, float],
    seed: int,
    rule: str = "rule",
    hpa: str = "hpa",
    clairvoyant: str = "clairvoyant",
    draws: int = DRAWS,
) -> Outcome:
    """Compare everyone on a class with the rule and HPA.

    Args:
        runs: what each controller came to; only the clairvoyant may be absent.
        policy: the controller that ships.
        tuned: by controller, the setting that its tuning chose.
        seed: of the draws.
        rule: name of the rule.
        hpa: name of the autoscaler.
        clairvoyant: name of the bound, which is compared with nobody.
        draws: how many.

    Raises:
        KeyError: a controller has no tuned setting.
        ValueError: one that is needed is absent, they ran on different days, or the rule not at
            its tuned setting.

    """
    by_name = {one.name: one for one in runs}
    for needed in (policy, rule, hpa):
        if needed not in by_name:
            raise ValueError(f"{needed} was not run")
    controllers = []
    for one in sorted(runs, key=lambda one: one.name):
        bound = one.name == clairvoyant
        compared = None if bound else compare(
            one, rule=by_name[rule], tuned=tuned[rule], hpa=by_name[hpa],
            clairvoyant=by_name.get(clairvoyant), seed=seed, draws=draws,
        )  # fmt: skip
        points = _points(one, None if bound else tuned[one.name])
        controllers.append(
            Controller(
                name=one.name, seeds=len(one.violated), points=points, compared=compared
            )
        )  # fmt: skip
    return Outcome(
        policy=policy,
        days=len(by_name[rule].days),
        pools=by_name[rule].pools,
        controllers=tuple(controllers),
    )


def _points(runs: Runs, tuned: float | None) -> tuple[Point, ...]:
    found = Draws(runs.days, seed=0, draws=0).points(runs)
    seeds = len(runs.violated)
    points: list[Point] = []
    for column, (pool, mine) in enumerate(zip(runs.pools, found, strict=True)):
        kept = pareto(mine)
        told = [
            Point(
                pool=pool,
                setting=setting,
                tuned=setting == tuned,
                violation_rate=float(mine.rate[0, place]),
                cost_usd_per_day=float(mine.cost[0, place]),
                violated=float(runs.violated[:, place, column].sum() / seeds),
                judged=float(mine.judged[0, place]),
                on_frontier=bool(kept[0, place]),
            )
            for place, setting in enumerate(runs.settings)
            if mine.known[0, place]
        ]
        points += sorted(told, key=lambda p: (p.violation_rate, p.cost_usd_per_day, p.setting))
    return tuple(points)


def ratios(compared: Compared) -> Json:
    """Return the four ratios, null where there is none, and the reasons why."""
    found: dict[str, Comparison] = {name: getattr(compared, name) for name in RATIOS}
    told: Json = {
        name: {"value": one.value, "low": one.low, "high": one.high}
        if isinstance(one, Ratio)
        else None
        for name, one in found.items()
    }
    reasons = {n: one.reason for n, one in found.items() if not isinstance(one, Ratio)}
    return {**told, "reasons": reasons}


def as_json(results: Results) -> Json:
    """Return what the last line of the benchmark says: one object by class."""
    return {one.load: _class_json(one, results.variants) for one in results.classes}


def _class_json(one: ClassResult, variants: Sequence[Variant]) -> Json:
    varied = {
        variant.assumption: ratios(other.batch.compared)
        for variant in variants
        for other in variant.classes
        if other.load == one.load
    }
    return {
        **ratios(one.batch.compared),
        "alpha": max(one.alphas.values(), default=0.0),
        "alphas": one.alphas,
        "share_of_decisions_differing": one.share_of_decisions_differing,
        "events": one.batch.compared.events,
        "days": one.batch.days,
        "pools": one.batch.pools,
        "synthetic": one.synthetic,
        "raw": _raw(one.batch),
        "variants": varied,
        "service": None if one.service is None else _service_json(one.service),
    }


def _service_json(outcome: Outcome) -> Json:
    compared = outcome.compared
    told: Json = {"events": compared.events, "raw": _raw(outcome)}
    return {**ratios(compared), **told}


def _raw(outcome: Outcome) -> Json:
    return {
        one.name: {"seeds": one.seeds, "points": msgspec.to_builtins(one.points)}
        for one in outcome.controllers
    }


def write_json(results: Results) -> str:
    """Return one line of JSON, the same for the same results."""
    return msgspec.json.encode(as_json(results), order="sorted").decode()
