"""All controllers by name, each with its one service knob and seven settings of it.

The settings run from the leanest to the most generous and are defaults: a benchmark freezes its own
on weeks that it does not score.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gpuloop.reasoning.baselines.autopilot import Autopilot, AutopilotConfig
from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.reasoning.baselines.hpa import Hpa, HpaConfig
from gpuloop.reasoning.baselines.karpenter import Karpenter, KarpenterConfig
from gpuloop.reasoning.baselines.keda import Keda, KedaConfig
from gpuloop.reasoning.baselines.schedule import Schedule, ScheduleConfig
from gpuloop.reasoning.baselines.static import Static, StaticConfig
from gpuloop.reasoning.baselines.tracking import BlindTracking, Tracking
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.units import HOUR_US, MINUTE_US

MIX: Final = RuleConfig()
"""The purchase mix that all controllers share where a benchmark states no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How a controller is made and turned. Its configuration is a frozen struct of `config`."""

    config: type[msgspec.Struct]
    build: Callable[[Any, RuleConfig], Controller]
    knob: str
    """The field that trades service for money."""
    settings: tuple[float, ...]
    """Seven values of the knob, from the leanest to the most generous."""

    def turned(self, config: msgspec.Struct, setting: float) -> msgspec.Struct:
        """Return the configuration with its knob at a setting; ValueError where it cannot be."""
        return msgspec.structs.replace(config, **{self.knob: setting})

    def make(self, config: msgspec.Struct | None = None, mix: RuleConfig = MIX) -> Controller:
        """Return a controller, with the default configuration if none is given."""
        given = self.config() if config is None else config
        if not isinstance(given, self.config):
            raise TypeError(f"{self.config.__name__} expected, not {type(given).__name__}")
        return self.build(given, mix)


SPARE_NODES: Final = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""As many on either side of none: whoever is compared with the rule at its best can be dearer, or
serve better, and still be found between two of them."""

CONTROLLERS: Final[Mapping[str, Baseline]] = MappingProxyType(
    {
        "static": Baseline(
            config=StaticConfig,
            build=Static,
            knob="share",
            settings=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        ),
        "hpa": Baseline(
            config=HpaConfig,
            build=Hpa,
            knob="target",
            settings=(1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6),
        ),
        "keda": Baseline(
            config=KedaConfig,
            build=Keda,
            knob="queue_per_gpu",
            settings=(1.5, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7),
        ),
        "autopilot": Baseline(
            config=AutopilotConfig,
            build=Autopilot,
            knob="percentile",
            settings=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0),
        ),
        "schedule": Baseline(
            config=ScheduleConfig,
            build=Schedule,
            knob="quantile",
            settings=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0),
        ),
        "karpenter": Baseline(
            config=KarpenterConfig,
            build=Karpenter,
            knob="consolidate_after_us",
            settings=(0, MINUTE_US, 5 * MINUTE_US, 15 * MINUTE_US, 30 * MINUTE_US, HOUR_US,
                      2 * HOUR_US),
        ),
        "rule": Baseline(
            config=RuleConfig, build=BlindTracking, knob="spare_nodes", settings=SPARE_NODES
        ),
        "rule+forecast": Baseline(
            config=RuleConfig, build=Tracking, knob="spare_nodes", settings=SPARE_NODES
        ),
    }
)  # fmt: skip
