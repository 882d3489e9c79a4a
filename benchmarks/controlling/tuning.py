"""Every controller tuned alike: the same number of Optuna trials on the weeks for tuning.

A trial is a configuration at three settings of its knob; what it is judged by is the fleet's ledger
(capacity, energy, waiting, service and disruption) at the best of these, which is what a house that
could choose would pay. The seven settings that a controller is then run at are frozen with it. What
came out is kept in `tuned.json` beside this file and is what the benchmark runs with.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import optuna
from benchmarks.controlling.play import Entrant, Stage, play

from gpuloop.reasoning.baselines.behaviour import Behaviour, ScalingPolicy, ScalingRules
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.schemas.policy import Floats
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

TRIALS: Final = 12
AT_ONCE: Final = 4
"""Trials that live side by side; the sampler learns from them together."""

KEPT: Final = Path(__file__).with_name("tuned.json")

Tell = Callable[[str, float], None]


class Tuned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One controller as it is run: its configuration, settings and best setting."""

    config: dict[str, Any]
    settings: tuple[int | float, ...]
    best: int | float
    usd_per_day: float
    """What its ledger lost, less what it sold, at the best setting on the weeks for tuning."""

    def configured(self, name: str, given: Mapping[str, Any]) -> msgspec.Struct:
        """Return the configuration of a controller of this name, with what is not tuned."""
        return msgspec.convert({**self.config, **given}, CONTROLLERS[name].config)


def load(path: Path = KEPT) -> dict[str, Tuned]:
    """Return what was tuned and kept."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Tuned])


def store(tuned: Mapping[str, Tuned], path: Path = KEPT) -> None:
    """Keep what was tuned."""
    text = msgspec.json.format(msgspec.json.encode(tuned, order="deterministic"), indent=2)
    path.write_bytes(text + b"\n")


Space = Callable[[optuna.Trial], dict[str, Any]]


def _none(_: optuna.Trial) -> dict[str, Any]:
    return {}


def _behaviour(trial: optuna.Trial) -> Behaviour:
    """Return windows, pace and tolerance of an autoscaler; no tolerance at all is among them."""
    tolerance = trial.suggest_categorical("tolerance", [0.0, 0.02, 0.05, 0.1])
    down_us = trial.suggest_int("down_window_minutes", 0, 30, step=5) * MINUTE_US
    percent = trial.suggest_categorical("down_percent", [10.0, 25.0, 50.0, 100.0])
    slow = ScalingPolicy(kind="percent", value=percent, period_us=MINUTE_US)
    usual = Behaviour()
    return Behaviour(
        up=ScalingRules(window_us=0, policies=usual.up.policies, tolerance=tolerance),
        down=ScalingRules(window_us=down_us, policies=(slow,), tolerance=tolerance),
        sync_us=15 * SECOND_US,
    )


def _keda(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "behaviour": _behaviour(trial),
        "in_flight": trial.suggest_categorical("in_flight", [True, False]),
    }


def _autopilot(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "half_life_us": round(trial.suggest_float("half_life_h", 0.5, 48.0, log=True) * HOUR_US),
        "margin": trial.suggest_float("margin", 0.0, 0.3),
        "load_weighted": trial.suggest_categorical("load_weighted", [True, False]),
        "down_after_us": trial.suggest_int("down_after_minutes", 5, 120, step=5) * MINUTE_US,
    }


def _karpenter(trial: optuna.Trial) -> dict[str, Any]:
    return {"budget_share": trial.suggest_categorical("budget_share", [0.1, 0.25, 0.5, 1.0])}


def _schedule(trial: optuna.Trial) -> dict[str, Any]:
    return {"lead_us": trial.suggest_int("lead_minutes", 0, 60, step=5) * MINUTE_US}


def _rule(trial: optuna.Trial) -> dict[str, Any]:
    return {"stuck_us": trial.suggest_int("stuck_minutes", 1, 30) * MINUTE_US}


def _rule_with_forecast(trial: optuna.Trial) -> dict[str, Any]:
    return _rule(trial) | {"forecast_weight": trial.suggest_float("forecast_weight", 0.0, 1.5)}


SPACES: Final[Mapping[str, Space]] = {
    "static": _none,
    "hpa": lambda trial: {"behaviour": _behaviour(trial)},
    "keda": _keda,
    "autopilot": _autopilot,
    "schedule": _schedule,
    "karpenter": _karpenter,
    "rule": _rule,
    "rule+forecast": _rule_with_forecast,
}


def tune(
    name: str,
    stage: Stage,
    *,
    given: Mapping[str, Any],
    seed: int,
    trials: int = TRIALS,
    tell: Tell,
) -> Tuned:
    """Tune one controller; `given` are fields of its configuration that are not tuned."""
    baseline, space = CONTROLLERS[name], SPACES[name]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))
    some = baseline.settings[1::2]
    tried: dict[int, msgspec.Struct] = {}
    for first in range(0, trials, AT_ONCE):
        asked = [study.ask() for _ in range(min(AT_ONCE, trials - first))]
        for trial in asked:
            tried[trial.number] = baseline.config(**given, **space(trial))
        losses = _losses(name, stage, [tried[trial.number] for trial in asked], some)
        for trial, loss in zip(asked, losses, strict=True):
            study.tell(trial, float(loss.min()))
        tell(f"tuning {name}: {study.best_value:,.0f} USD a day", (first + len(asked)) / trials)
    best = tried[study.best_trial.number]
    final = _losses(name, stage, [best], baseline.settings)[0]
    return Tuned(
        config={
            field: value for field, value in msgspec.to_builtins(best).items() if field not in given
        },
        settings=baseline.settings,
        best=baseline.settings[int(final.argmin())],
        usd_per_day=round(float(final.min()), 2),
    )


def _losses(
    name: str, stage: Stage, configs: Sequence[msgspec.Struct], settings: Sequence[float]
) -> list[Floats]:
    """Return what each configuration loses a day at each setting, US dollars."""
    baseline = CONTROLLERS[name]
    entrants = [
        Entrant(
            name=name,
            setting=setting,
            controller=baseline.make(baseline.turned(config, setting)),
        )
        for config in configs
        for setting in settings
    ]
    earned = np.array([one.sum() for one in play(stage, entrants).earned_usd]) / stage.days
    return list(-earned.reshape(len(configs), len(settings)))
