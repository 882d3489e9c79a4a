"""Everyone who runs: all controllers as they were tuned, and the policy, as five seeds made it.

A policy is an offset on the rule with its forecast, at the alphas that it has earned, turned by the
rule's own knob. The first is the one that ships; the others differ from it by their seed alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.controlling import tuning
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.evaluate import Plan, only, plan, scheduled
from benchmarks.controlling.play import Entrant, Residual, Stage
from benchmarks.controlling.splits import TRAIN, Split

from gpuloop.loop.learn import registry
from gpuloop.reasoning.actor import Actor
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats
from gpuloop.twin.config import TwinConfig

RULE: Final = "rule+forecast"
"""What policies are offsets on, and what they are compared with."""
POLICY: Final = "policy"
SEEDS: Final = Path(__file__).resolve().parent / "seeds"
"""Of the policies that do not ship, a folder each."""
EVERYONE: Final = (*CONTROLLERS, POLICY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Entrants, and by name their settings, places among the entrants and tuned setting.

    Places are those of each training seed, one of the untrained, and of each setting in it.
    """

    entrants: tuple[Entrant, ...]
    places: dict[str, tuple[tuple[int, ...], ...]]
    settings: dict[str, tuple[float, ...]]
    tuned: dict[str, float]
    alphas: tuple[dict[str, float], ...]
    """What each policy has earned by pool, the one that ships first."""

    def at_tuned(self, name: str) -> tuple[int, ...]:
        """Return the place of each seed at the tuned setting."""
        setting = self.settings[name].index(self.tuned[name])
        return tuple(places[setting] for places in self.places[name])

    @property
    def usual(self) -> tuple[Entrant, ...]:
        """Return everyone at the tuned setting, of the policies the one that ships."""
        return tuple(self.entrants[self.at_tuned(name)[0]] for name in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Makes the worlds of a folder's scored days, and everyone or those of some names in them.

    Where a class is named only the worlds that have days of it are made.
    """

    parts: Split
    config: TwinConfig
    traces: Path | None
    names: tuple[str, ...] = EVERYONE
    load: LoadClass | None = None
    seeds: bool = True
    """Whether the policies of all seeds run, or the one that ships alone."""

    def __call__(self) -> tuple[Stage, tuple[Entrant, ...]]:
        """Return the same in whichever process this is called."""
        return self.plan().stage, self.field().entrants

    def plan(self) -> Plan:
        """Return the worlds, and which class each pool's day is of."""
        whole = plan(self.parts, self.config, traces=self.traces, rule=rule_of(tuning.load()))
        return whole if self.load is None else only(whole, self.load)

    def field(self) -> Field:
        """Return who plays."""
        return field_of(self.parts, self.config, self.traces, self.names, seeds=self.seeds)


def field_of(
    parts: Split,
    config: TwinConfig,
    traces: Path | None,
    names: Sequence[str] = EVERYONE,
    *,
    seeds: bool = True,
) -> Field:
    """Return everyone of these names, as they run on a folder of traces."""
    kept = tuning.load()
    learned = policies() if seeds else policies()[:1]
    entrants: list[Entrant] = []
    places: dict[str, list[tuple[int, ...]]] = {}

    def enter(name: str, base: str, policy: Policy | None = None) -> None:
        one, baseline = kept[base], CONTROLLERS[base]
        configured = one.configured(base, untuned(base, parts, config, traces))
        first = len(entrants)
        for setting in one.settings:
            controller = baseline.make(baseline.turned(configured, setting))
            if policy is not None and any(policy.alphas.values()):
                controller = Residual(controller, policy.offsets, policy.alphas)
            entrants.append(Entrant(name=name, setting=setting, controller=controller))
        places.setdefault(name, []).append(tuple(range(first, len(entrants))))

    for name in names:
        if name == POLICY:
            for policy in learned:
                enter(name, RULE, policy)
        else:
            enter(name, name)
    return Field(
        entrants=tuple(entrants),
        places={name: tuple(seeds) for name, seeds in places.items()},
        settings={name: kept[RULE if name == POLICY else name].settings for name in places},
        tuned={name: kept[RULE if name == POLICY else name].best for name in places},
        alphas=tuple(policy.alphas for policy in learned),
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """What one seed made."""

    offsets: Callable[[Floats], Floats]
    alphas: dict[str, float]


def policies() -> tuple[Policy, ...]:
    """Return the policy that ships and those of the other seeds.

    Raises:
        ValueError: no policy ships, or one has no actor.

    """
    found = [registry.shipped(), *map(registry.load, sorted(SEEDS.glob("*/")))]
    made = []
    for one in found:
        if one is None:
            raise ValueError("a policy is missing")
        version, weights = one
        if version.actor is None or version.normaliser is None:
            raise ValueError(f"{version.policy_id} has no actor")
        actor = Actor.from_safetensors(weights, version.actor, version.normaliser)
        made.append(Policy(actor.offsets, dict(version.alphas)))
    return tuple(made)


def untuned(name: str, parts: Split, config: TwinConfig, traces: Path | None) -> Mapping[str, Any]:
    """Return what of a configuration comes from the traces: the weeks of a schedule."""
    span = TRAIN if parts.known else parts.bounds
    if name != "schedule" or span is None:
        return {}
    return {"demand_by_hour": scheduled(config, traces, span)}


def rule_of(kept: Mapping[str, tuning.Tuned]) -> RuleConfig:
    """Return the rule that policies are offsets on, as it was tuned."""
    found = kept[RULE].configured(RULE, {})
    assert isinstance(found, RuleConfig)
    return found
