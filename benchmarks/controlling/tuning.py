"""Every controller tuned alike: the same number of Optuna trials on the same weeks for tuning.

A trial is a configuration at three settings of its knob; what it is judged by is what its pools
lose (`loop.learn.passed`: idle capacity, penalties, late jobs at their price) at the best of these.
Policies are taught by the same figure, so that nobody is tuned to another end. One week of a trace
holds few late jobs, so generated weeks stand beside it. The seven settings that a controller is
then run at are frozen with it. What came out is kept in `tuned.json` beside this file and is what
the benchmark runs with.
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
"""So few that the sampler draws them at random: it would model what it saw only after ten."""
AT_ONCE: Final = 4
"""Trials of a controller that live side by side."""

KEPT: Final = Path(__file__).with_name("tuned.json")

Tell = Callable[[str, float], None]


class Tuned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One controller as it is run: its configuration, settings and best setting."""

    config: dict[str, Any]
    settings: tuple[int | float, ...]
    best: int | float
    node_hours_per_day: float
    """What was lost at the best setting, in node-hours, on a day of the fleet for tuning."""

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
    return _rule(trial) | {
        "forecast_weight": trial.suggest_float("forecast_weight", 0.0, 1.5, step=0.05)
    }


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
    names: Sequence[str],
    stage: Stage,
    *,
    given: Mapping[str, Mapping[str, Any]],
    seed: int,
    trials: int = TRIALS,
    tell: Tell,
) -> dict[str, Tuned]:
    """Tune controllers side by side; `given` are fields of their configurations not to be tuned."""
    studies = {name: _study(seed) for name in names}
    tried: dict[str, dict[int, msgspec.Struct]] = {name: {} for name in names}
    for first in range(0, trials, AT_ONCE):
        count = min(AT_ONCE, trials - first)
        asked = {name: [study.ask() for _ in range(count)] for name, study in studies.items()}
        for name, trial in _each(asked):
            config = CONTROLLERS[name].config(**given.get(name, {}), **SPACES[name](trial))
            tried[name][trial.number] = config
        losses = _losses(
            stage,
            [
                (name, tried[name][trial.number], CONTROLLERS[name].settings[1::2])
                for name, trial in _each(asked)
            ],
        )
        for (name, trial), loss in zip(_each(asked), losses, strict=True):
            studies[name].tell(trial, float(loss.min()))
        so_far = ", ".join(f"{name} {study.best_value:,.1f}" for name, study in studies.items())
        tell(f"tuning, node-hours lost a day: {so_far}", (first + count) / trials)
    best = {name: tried[name][study.best_trial.number] for name, study in studies.items()}
    final = _losses(stage, [(name, best[name], CONTROLLERS[name].settings) for name in names])
    return {
        name: _kept(best[name], CONTROLLERS[name].settings, loss, given.get(name, {}))
        for name, loss in zip(names, final, strict=True)
    }


def _study(seed: int) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))


def _each(
    asked: Mapping[str, Sequence[optuna.Trial]],
) -> list[tuple[str, optuna.Trial]]:
    return [(name, trial) for name, trials in asked.items() for trial in trials]


def _kept(
    best: msgspec.Struct,
    settings: tuple[float, ...],
    losses: Floats,
    given: Mapping[str, Any],
) -> Tuned:
    config = {name: value for name, value in msgspec.to_builtins(best).items() if name not in given}
    return Tuned(
        config=config,
        settings=settings,
        best=settings[int(losses.argmin())],
        node_hours_per_day=round(float(losses.min()), 2),
    )


def _losses(
    stage: Stage, wanted: Sequence[tuple[str, msgspec.Struct, Sequence[float]]]
) -> list[Floats]:
    """Return what each configuration of a controller loses a day at each of its settings.

    Node-hours of a fleet. All play at once: their worlds cost little more together than one alone.
    """
    entrants = [
        Entrant(
            name=name,
            setting=setting,
            controller=CONTROLLERS[name].make(CONTROLLERS[name].turned(config, setting)),
        )
        for name, config, settings in wanted
        for setting in settings
    ]
    lost = np.array([one.sum() for one in play(stage, entrants).lost_node_hours])
    by_day = lost / stage.days / len(stage.configs)
    ends = np.cumsum([len(settings) for _, _, settings in wanted])[:-1]
    return np.split(by_day, ends)
