"""`gpuloop train`: make a policy in the twin and let it earn its alpha."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpuloop.ops.cli.context import print_json
from gpuloop.ops.stack.preflight import refuse_no_traces
from gpuloop.schemas.units import SECOND_US

TRAIN_FROM = "2017-09-25"
CHECK_FROM = "2017-10-09"


def train(
    algorithm: Annotated[str, typer.Option(help="sac or td3.")] = "sac",
    output: Annotated[
        Path | None, typer.Option(help="Folder for policy.json and actor.safetensors.")
    ] = None,
    train_from: Annotated[
        str, typer.Option(help="First day to train on (YYYY-MM-DD).")
    ] = TRAIN_FROM,
    train_days: Annotated[int, typer.Option(min=1, help="Days to train on.")] = 14,
    check_from: Annotated[
        str, typer.Option(help="First held-out day of the check (YYYY-MM-DD).")
    ] = CHECK_FROM,
    check_days: Annotated[int, typer.Option(min=1, help="Held-out days of the check.")] = 7,
    updates_per_transition: Annotated[
        float, typer.Option(min=0.0, help="Gradient steps per transition.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of world, networks and check.")] = 0,
    traces: Annotated[
        Path | None, typer.Option(envvar="GPULOOP_TRACES", help="Folder of public traces.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that run the check's days.")
    ] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is one.")] = "cpu",
) -> None:
    """Train a policy in the twin, check it on held-out days, and write it with its verdict.

    Prints what each alpha earned against the rule on the same draws, with 90 % intervals over
    days; a policy with no lower bound above zero gets alpha 0.
    """
    from gpuloop.loop.learn import registry
    from gpuloop.loop.learn.teach import Curriculum, check, teach
    from gpuloop.loop.learn.trainer import TrainerConfig
    from gpuloop.twin.config import TwinConfig

    if algorithm not in ("sac", "td3"):
        raise typer.BadParameter(f"{algorithm} is neither sac nor td3", param_hint="--algorithm")
    if traces is not None:
        refuse_no_traces(traces)
    last_trained = _day(train_from) + timedelta(days=train_days)
    if _day(train_from) <= _day(check_from) < last_trained:
        raise typer.BadParameter("the check's days must be held out", param_hint="--check-from")
    config = TrainerConfig(algorithm="td3" if algorithm == "td3" else "sac")
    curriculum = Curriculum(
        train_from_us=_us(_day(train_from)),
        train_days=train_days,
        check_from_us=_us(_day(check_from)),
        check_days=check_days,
        updates_per_transition=updates_per_transition,
    )
    twin = TwinConfig()
    with _progress() as bar:
        task = bar.add_task("starting", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        lesson = teach(
            config, curriculum, twin, traces=traces, seed=seed, progress=progress, device=device
        )
        gate = check(
            lesson, curriculum, twin, traces=traces, seed=seed, workers=workers, progress=progress
        )
    version = registry.describe(
        fleet=twin.fleet,
        algorithm=config.algorithm,
        version=0,
        parent="",
        created_wall_us=0,
        actor=lesson.actor,
        normaliser=lesson.normaliser,
        weights=lesson.weights,
        seed=seed,
        config={
            "train_from": train_from,
            "train_days": train_days,
            "check_from": check_from,
            "check_days": check_days,
            "updates": lesson.updates,
            "transitions": lesson.transitions,
            "workload": "trace" if traces is not None else "generator",
        },
        alpha=gate.alpha,
        gate=gate.figures(),
        summary=f"{lesson.transitions} transitions in the twin from {train_from}",
    )
    print_json(version)
    for one in gate.checks:
        print(
            f"alpha {one.alpha:.2f}: {one.mean_usd_per_day:+,.2f} USD/day against the rule, "
            f"90 % interval {one.low_usd_per_day:+,.2f} to {one.high_usd_per_day:+,.2f}, "
            f"{one.days} days",
            file=sys.stderr,
        )
    print(f"earned alpha {gate.alpha:.2f}", file=sys.stderr)
    if output is not None:
        registry.store(output, version, lesson.weights)


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a day like {TRAIN_FROM}") from None


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_US


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
