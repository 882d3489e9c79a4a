"""`gpuloop train`: make a policy in the twin and let it earn its alpha."""

import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct, to_builtins

from gpuloop.ops.cli.context import print_json
from gpuloop.ops.cli.progress import shown
from gpuloop.ops.stack.preflight import refuse_no_traces
from gpuloop.schemas.units import SECOND_US

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuloop.loop.learn.gate import Gate
    from gpuloop.loop.learn.teach import Curriculum, Lesson
    from gpuloop.loop.learn.trainer import TrainerConfig
    from gpuloop.schemas.messages import PolicyVersion

TRAIN_FROM = "2017-09-25"
CHECK_FROM = "2017-10-09"
KEPT = "training.pt"
"""Where an unfinished run stands, in the folder for the policy."""


def train(
    algorithm: Annotated[str, typer.Option(help="sac, td3 or td3+bc.")] = "td3",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for policy.json and actor.safetensors; a killed run goes on."),
    ] = None,
    train_from: Annotated[
        str, typer.Option(help="First day to train on (YYYY-MM-DD).")
    ] = TRAIN_FROM,
    train_days: Annotated[int, typer.Option(min=1, help="Days to train on.")] = 14,
    check_from: Annotated[
        str, typer.Option(help="First held-out day of the check (YYYY-MM-DD).")
    ] = CHECK_FROM,
    check_days: Annotated[int, typer.Option(min=1, help="Held-out days of the check.")] = 7,
    episodes: Annotated[
        int, typer.Option(min=1, help="Days of fleet time that 64 worlds live side by side.")
    ] = 4,
    updates_per_transition: Annotated[
        float, typer.Option(min=0.0, help="Gradient steps per transition.")
    ] = 0.03,
    seed: Annotated[int, typer.Option(min=0, help="Seed of world, networks and check.")] = 0,
    traces: Annotated[
        Path | None, typer.Option(envvar="GPULOOP_TRACES", help="Folder of public traces.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is one.")] = "cpu",
) -> None:
    """Train a policy in the twin, check it on held-out days, and write it with its verdict.

    Prints what each alpha gained in each pool against the rule on the same draws: idle capacity,
    penalties and late jobs, each at its price. Intervals over days hold for all of them at once
    with 90 %; a pool in which no alpha has a lower bound above zero gets alpha 0.
    """
    from gpuloop.loop.learn import registry
    from gpuloop.loop.learn.judge import judge
    from gpuloop.loop.learn.teach import RECIPES, teach
    from gpuloop.twin.config import TwinConfig

    if algorithm not in RECIPES:
        known = ", ".join(RECIPES)
        raise typer.BadParameter(f"{algorithm} is none of {known}", param_hint="--algorithm")
    if traces is not None:
        refuse_no_traces(traces)
    days = Days(train_from, train_days, check_from, check_days)
    curriculum = days.curriculum(episodes, updates_per_transition)
    config = RECIPES[algorithm]
    twin = TwinConfig()
    with shown() as tell:
        lesson = teach(
            config,
            curriculum,
            twin,
            traces=traces,
            seed=seed,
            progress=tell,
            device=device,
            kept=None if output is None else output / KEPT,
        )
        gates = judge(lesson, curriculum, twin, traces=traces, seed=seed, progress=tell)
    workload = "trace" if traces is not None else "generator"
    made = _described(lesson, gates, (config, curriculum), days, seed=seed, workload=workload)
    print_json(made)
    _print_verdict(gates)
    if output is not None:
        registry.store(output, made, lesson.weights)
        (output / KEPT).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Days:
    """Which days train and which judge, as they were asked for."""

    train_from: str
    train_days: int
    check_from: str
    check_days: int

    def curriculum(self, episodes: int, updates_per_transition: float) -> "Curriculum":
        """Return these days as a curriculum; the days that judge must not be trained on."""
        from gpuloop.loop.learn.teach import Curriculum

        train_from, check_from = _day(self.train_from), _day(self.check_from)
        last_checked = check_from + timedelta(days=self.check_days)
        if check_from < train_from + timedelta(days=self.train_days) and train_from < last_checked:
            raise typer.BadParameter("the check's days must be held out", param_hint="--check-from")
        return Curriculum(
            train_from_us=_us(train_from),
            train_days=self.train_days,
            check_from_us=_us(check_from),
            check_days=self.check_days,
            episodes=episodes,
            updates_per_transition=updates_per_transition,
        )


def _described(
    lesson: "Lesson",
    gates: "Mapping[str, Gate]",
    recipe: "tuple[TrainerConfig, Curriculum]",
    days: Days,
    *,
    seed: int,
    workload: str,
) -> "PolicyVersion":
    """Return the version of what was trained and checked, and what made it."""
    from gpuloop.loop.learn import registry
    from gpuloop.loop.learn.judge import earned, figures
    from gpuloop.reasoning.rule import RuleConfig
    from gpuloop.twin.config import TwinConfig

    return registry.describe(
        fleet=TwinConfig().fleet,
        algorithm=recipe[0].algorithm,
        version=0,
        parent="",
        created_wall_us=0,
        actor=lesson.actor,
        normaliser=lesson.normaliser,
        weights=lesson.weights,
        seed=seed,
        config={
            **told(recipe),
            **{f"rule_{name}": value for name, value in told([RuleConfig()]).items()},
            **asdict(days),
            "updates": lesson.updates,
            "transitions": lesson.transitions,
            "workload": workload,
            "gpuloop": version("gpuloop"),
        },
        alphas=earned(gates),
        gate=figures(gates),
        summary=f"{lesson.transitions} transitions in the twin from {days.train_from}",
    )


def told(recipe: "Iterable[Struct]") -> dict[str, float | int | str | bool]:
    """Return the plain fields of structs by name, and those of their mappings by name and key."""
    found: dict[str, float | int | str | bool] = {}
    for name, value in ((n, v) for one in recipe for n, v in to_builtins(one).items()):
        if isinstance(value, dict):
            found |= {f"{name}_{key}": each for key, each in value.items()}
        elif not isinstance(value, list | tuple):
            found[name] = value
    return found


def _print_verdict(gates: "Mapping[str, Gate]") -> None:
    for pool, gate in gates.items():
        for one in gate.checks:
            interval = f"90 % interval {one.low_usd_per_day:+,.2f} to {one.high_usd_per_day:+,.2f}"
            print(
                f"{pool} at alpha {one.alpha:.2f}: {one.mean_usd_per_day:+,.2f} USD/day against "
                f"the rule, {interval if one.days > 1 else 'no interval'}, {one.days} days",
                file=sys.stderr,
            )
        print(f"{pool} earned alpha {gate.alpha:.2f}", file=sys.stderr)


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a day like {TRAIN_FROM}") from None


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_US
