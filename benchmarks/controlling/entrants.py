"""Everyone who runs: all controllers as they were tuned, and the shipped policy.

The policy is an offset on the rule with its forecast, at the alpha that it has earned, turned by
the rule's own knob.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.controlling import tuning
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.evaluate import Plan, only, plan, scheduled
from benchmarks.controlling.play import Entrant, Residual, Stage
from benchmarks.controlling.splits import TRAIN, Split

from gpuloop.loop.learn.registry import shipped
from gpuloop.reasoning.actor import Actor
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats
from gpuloop.twin.config import TwinConfig

RULE: Final = "rule+forecast"
"""What policies are offsets on, and what they are compared with."""
POLICY: Final = "policy"
EVERYONE: Final = (*CONTROLLERS, POLICY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Entrants, and by name their settings, places among the entrants and tuned setting."""

    entrants: tuple[Entrant, ...]
    places: dict[str, tuple[int, ...]]
    settings: dict[str, tuple[float, ...]]
    tuned: dict[str, float]
    alpha: float

    @property
    def usual(self) -> tuple[Entrant, ...]:
        """Return everyone at the tuned setting."""
        return tuple(one for one in self.entrants if one.setting == self.tuned[one.name])


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

    def __call__(self) -> tuple[Stage, tuple[Entrant, ...]]:
        """Return the same in whichever process this is called."""
        return self.plan().stage, self.field().entrants

    def plan(self) -> Plan:
        """Return the worlds, and which class each pool's day is of."""
        whole = plan(self.parts, self.config, traces=self.traces, rule=rule_of(tuning.load()))
        return whole if self.load is None else only(whole, self.load)

    def field(self) -> Field:
        """Return who plays."""
        return field_of(self.parts, self.config, self.traces, self.names)


def field_of(
    parts: Split,
    config: TwinConfig,
    traces: Path | None,
    names: Sequence[str] = EVERYONE,
) -> Field:
    """Return everyone of these names, as they run on a folder of traces."""
    kept = tuning.load()
    found = shipped()
    if found is None:
        raise ValueError("no policy ships")
    version, weights = found
    if version.actor is None or version.normaliser is None:
        raise ValueError("the policy that ships has no actor")
    offsets = _offsets(Actor.from_safetensors(weights, version.actor, version.normaliser))
    entrants: list[Entrant] = []
    places: dict[str, tuple[int, ...]] = {}

    def enter(name: str, base: str, alpha: float) -> None:
        one, baseline = kept[base], CONTROLLERS[base]
        configured = one.configured(base, untuned(base, parts, config, traces))
        places[name] = tuple(range(len(entrants), len(entrants) + len(one.settings)))
        for setting in one.settings:
            controller = baseline.make(baseline.turned(configured, setting))
            if alpha > 0.0:
                controller = Residual(controller, offsets, alpha)
            entrants.append(Entrant(name=name, setting=setting, controller=controller))

    for name in names:
        enter(name, RULE if name == POLICY else name, version.alpha if name == POLICY else 0.0)
    return Field(
        entrants=tuple(entrants),
        places=places,
        settings={name: kept[RULE if name == POLICY else name].settings for name in places},
        tuned={name: kept[RULE if name == POLICY else name].best for name in places},
        alpha=version.alpha,
    )


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


def _offsets(actor: Actor) -> Callable[[Floats], Floats]:
    """Return an actor's offsets, none where it is out of its range, as live."""

    def offsets(observation: Floats) -> Floats:
        known = actor.in_range(observation)[:, None]
        return np.where(known, actor(observation), 0.0)

    return offsets
