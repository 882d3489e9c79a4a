"""How the policy that ships compares with everyone else, on weeks that nobody was tuned on.

    python benchmarks/control.py [--quick] [--tune] [--traces FOLDER] [--output FOLDER]

Eight controllers and the shipped policy, each at seven settings of its service knob, meet the same
jobs, prices and luck on the twin's pool level. Tuning and training are frozen files; `--tune` makes
the first anew. The page, its plots and the last line, one JSON object, come from this command.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Final

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.controlling import report, tuning
from benchmarks.controlling.apart import PROCESSES, play_apart, say, workers
from benchmarks.controlling.bounds import bounds_apart
from benchmarks.controlling.classes import CLASSES
from benchmarks.controlling.entrants import POLICY, RULE, Cast, Field, untuned
from benchmarks.controlling.evaluate import SYNTHETIC_DAYS, Plan, philly, reclaimed
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import Measure, cells_of, gather
from benchmarks.controlling.hour import play_hour
from benchmarks.controlling.play import Played, Stage
from benchmarks.controlling.results import (
    ClassResult,
    Outcome,
    Results,
    Variant,
    outcome,
    write_json,
)
from benchmarks.controlling.splits import TUNE, Split, split
from benchmarks.options import add_traces
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import Generator

SEED = 0
TUNING_SEED: Final = 800
"""The first of the generated weeks for tuning; nothing else is drawn from their seeds."""
MADE: Final = ("cyclical", "flash")
"""Shapes of the generated weeks for tuning: the trace's own week is bursty."""
DOCS = Path(__file__).resolve().parents[1] / "docs"
VARIED: Final = "bursty"
RECLAIMS: Final = (0.25, 4.0)
"""How often spot nodes are taken back is an assumption: results are shown over this range."""
PEERS: Final = (RULE, "hpa", POLICY)
QUICK: Final = (
    "A quick run: without the clairvoyant bound, so that no avoidable cost is known, without the "
    "policies of the other training seeds, and under no other assumptions."
)
GENERATED = Split(known=False, train=None, tune=None, bounds=None, test=(), llm=None)
"""What there is without a folder of traces."""


def main() -> int:
    """Evaluate, and tune before it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser, without="else generated loads only")
    parser.add_argument("--quick", action="store_true", help="only what is shipped, as it is")
    parser.add_argument("--tune", action="store_true", help="tune all controllers anew first")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of page and plots (docs, for a whole run on the published weeks; else stdout)",
    )
    chosen = parser.parse_args()
    try:
        parts = split(chosen.traces) if chosen.traces else GENERATED
    except ValueError as error:
        parser.error(str(error))
    config = TwinConfig()
    if chosen.tune:
        retune(parts, config, chosen.traces)
    cast = Cast(parts=parts, config=config, traces=chosen.traces, seeds=not chosen.quick)
    whole, everyone = cast.plan(), cast.field()
    played = play_apart(cast)
    results = results_of(whole, everyone, played, bounding=None if chosen.quick else cast)
    if not chosen.quick:
        results = replace(results, variants=variants(cast, results))
    if parts.llm is not None and chosen.traces is not None:
        served = play_hour(chosen.traces, config, everyone.usual, whole.stage.rule)
        results = replace(results, hour=served)
    output = chosen.output or (DOCS if parts.known and not chosen.quick else None)
    if output is not None:
        report.write(results, output)
    else:
        print(report.markdown(results))
    print(write_json(results))
    return 0


def results_of(
    whole: Plan, everyone: Field, played: Played, *, bounding: Cast | None = None
) -> Results:
    """Return how everyone did on each class, beside the bound of what was cast where it is."""
    chosen = {load: cells_of(load, whole.classes) for load in CLASSES}
    batches = {load: runs(everyone, played, chosen[load], whole, "batch") for load in CLASSES}
    found = {load: batch for load, batch in batches.items() if batch}
    if bounding is not None:
        rules = {load: next(one for one in found[load] if one.name == RULE) for load in found}
        for load, least in bounds_apart(bounding, rules, everyone.tuned[RULE]).items():
            found[load] += [] if least is None else [least]
    classes = []
    for load, batch in found.items():
        service = runs(everyone, played, chosen[load], whole, "service")
        differing = [
            played.differing[place][chosen[load]].mean() for place in everyone.at_tuned(POLICY)
        ]
        classes.append(
            ClassResult(
                load=load,
                synthetic=load in whole.synthetic,
                alphas=everyone.alphas[0],
                share_of_decisions_differing=float(np.mean(differing)),
                batch=_outcome(batch, everyone),
                service=_outcome(service, everyone) if service else None,
            )
        )
    told = notes(whole, everyone) if bounding is not None else (*notes(whole, everyone), QUICK)
    return Results(notes=told, classes=tuple(classes))


def variants(cast: Cast, usual: Results) -> tuple[Variant, ...]:
    """Return what the comparisons come to where spot nodes are taken back more or less often.

    On the days of the class that learned policies are for, without the bound.
    """
    found = {1.0: tuple(one for one in usual.classes if one.load == VARIED)}
    for factor in RECLAIMS:
        say(f"spot reclaims at {factor:g} times the default", RECLAIMS.index(factor) / 2)
        other = dataclasses.replace(
            cast, config=reclaimed(cast.config, factor), names=PEERS, load=VARIED
        )
        found[factor] = results_of(other.plan(), other.field(), play_apart(other)).classes
    return tuple(
        Variant(assumption=f"spot reclaims at {factor:g} times the default", classes=found[factor])
        for factor in sorted(found)
    )


def runs(
    everyone: Field, played: Played, cells: np.ndarray, whole: Plan, measure: Measure
) -> list[Runs]:
    """Return what each controller came to on the chosen days."""
    found = [
        gather(
            name,
            everyone.settings[name],
            [[played.scores[place] for place in places] for places in seeds],
            chosen=cells,
            pools=whole.pools,
            dates=whole.dates,
            measure=measure,
        )
        for name, seeds in everyone.places.items()
    ]
    return [one for one in found if one is not None]


def _outcome(found: list[Runs], everyone: Field) -> Outcome:
    return outcome(found, policy=POLICY, tuned=everyone.tuned, rule=RULE, seed=SEED)


def notes(whole: Plan, everyone: Field) -> tuple[str, ...]:
    """Return what was run on what."""
    config = whole.stage.configs[0]
    gpus = sum(pool.nodes_max * pool.gpus_per_node for pool in config.pools)
    worlds = len(whole.stage.configs)
    lacking = [load for load in CLASSES if load in whole.synthetic]
    generated = (
        f"Of {', '.join(lacking)} loads there are too few real days for a hundred jobs to wait too "
        f"long; {SYNTHETIC_DAYS} generated days of each stand in for them.",
    )
    return (
        f"{worlds} worlds of {whole.stage.days} days each; a fleet of at most {gpus} GPUs in "
        f"{len(config.pools)} pools with {config.arrival_share:.0%} of the trace's jobs; on "
        "Philly's own 2,816 GPUs nothing would queue.",
        f"{len(everyone.entrants)} entrants met the same jobs, prices and luck; every decision "
        "comes up to 50 s after its tick, and every other one knows the capacity of the tick "
        "before.",
        *(generated if lacking else ()),
        f"Lost on the weeks for tuning, in node-hours a day: {_losses()}. Policies are taught and "
        "judged by this figure as well.",
        f"Alphas that were earned, the policy that ships first: {_earned(everyone)}.",
    )


def _losses() -> str:
    """Tell what each controller was tuned to, the best first."""
    kept = sorted(tuning.load().items(), key=lambda one: one[1].node_hours_per_day)
    return ", ".join(f"{name} {one.node_hours_per_day:,.1f}" for name, one in kept)


def _earned(everyone: Field) -> str:
    return "; ".join(report.alphas_told(alphas) for alphas in everyone.alphas)


def retune(parts: Split, config: TwinConfig, traces: Path | None) -> None:
    """Tune every controller on the weeks for tuning and keep what came out."""
    if not parts.known:
        raise SystemExit("control: only the folder with the tuning weeks can be tuned on")
    shares = [tuple(CONTROLLERS)[share::PROCESSES] for share in range(PROCESSES)]
    with workers(PROCESSES) as executor:
        made = [executor.submit(tune_share, share, parts, config, traces) for share in shares]
        tuned = {name: one for share in made for name, one in share.result().items()}
    tuning.store({name: tuned[name] for name in CONTROLLERS})


def tune_share(
    names: tuple[str, ...], parts: Split, config: TwinConfig, traces: Path | None
) -> dict[str, tuning.Tuned]:
    """Tune controllers on the trace's tuning week and on generated weeks beside it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    one = replace(config, start_us=TUNE.first_us)
    made = [replace(one, seed=TUNING_SEED + place, shape=shape) for place, shape in enumerate(MADE)]
    stage = Stage(
        configs=[one, *made],
        workloads=[
            philly(one, traces),
            *(Generator(each.shape, each.seed, each.start_us) for each in made),
        ],
        traces=traces,
        days=TUNE.days,
        seed=SEED,
    )
    given = {name: untuned(name, parts, one, traces) for name in names}
    return tuning.tune(names, stage, given=given, seed=SEED, tell=say)


if __name__ == "__main__":
    sys.exit(main())
