"""How the policy that ships compares with everyone else, on weeks that nobody was tuned on.

    python benchmarks/control.py [--quick] [--tune] [--traces FOLDER] [--output FOLDER]

Eight controllers and the shipped policy, each at seven settings of its service knob, meet the same
jobs, prices and luck on the twin's pool level. Tuning and training are frozen files; `--tune` makes
the first anew. The page, its plots and the last line, one JSON object, come from this command.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.controlling import report, tuning
from benchmarks.controlling.apart import play_apart
from benchmarks.controlling.bounds import bound, worlds_of
from benchmarks.controlling.classes import CLASSES
from benchmarks.controlling.entrants import POLICY, RULE, Cast, Field, untuned
from benchmarks.controlling.evaluate import Plan, philly
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import Measure, cells_of, gather
from benchmarks.controlling.hour import play_hour
from benchmarks.controlling.play import Played, Stage
from benchmarks.controlling.results import ClassResult, Outcome, Results, outcome, write_json
from benchmarks.controlling.splits import TUNE, Split, split
from benchmarks.options import add_traces
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig

SEED = 0
DOCS = Path(__file__).resolve().parents[1] / "docs"
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
    cast = Cast(parts=parts, config=config, traces=chosen.traces)
    whole, everyone = cast.plan(), cast.field()
    played = play_apart(cast)
    results = results_of(whole, everyone, played, bounded=not chosen.quick)
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


def results_of(whole: Plan, everyone: Field, played: Played, *, bounded: bool) -> Results:
    """Return how everyone did on each class, beside the clairvoyant bound where it is wanted."""
    worlds = worlds_of(whole) if bounded else None
    classes = []
    for load in CLASSES:
        cells = cells_of(load, whole.classes)
        batch = runs(everyone, played, cells, whole, "batch")
        if not batch:
            continue
        if worlds is not None:
            rule = next(one for one in batch if one.name == RULE)
            least = bound(whole, worlds, load, rule, everyone.tuned[RULE], say)
            batch += [] if least is None else [least]
        service = runs(everyone, played, cells, whole, "service")
        differing = [played.differing[place] for place in everyone.places[POLICY]]
        usual = everyone.settings[POLICY].index(everyone.tuned[POLICY])
        classes.append(
            ClassResult(
                load=load,
                synthetic=load in whole.synthetic,
                alpha=everyone.alpha,
                share_of_decisions_differing=differing[usual],
                batch=_outcome(batch, everyone),
                service=_outcome(service, everyone) if service else None,
            )
        )
    return Results(notes=notes(whole, everyone), classes=tuple(classes))


def runs(
    everyone: Field, played: Played, cells: np.ndarray, whole: Plan, measure: Measure
) -> list[Runs]:
    """Return what each controller came to on the chosen days."""
    found = [
        gather(
            name,
            everyone.settings[name],
            [[played.scores[place] for place in places]],
            chosen=cells,
            pools=whole.pools,
            dates=whole.dates,
            measure=measure,
        )
        for name, places in everyone.places.items()
    ]
    return [one for one in found if one is not None]


def _outcome(found: list[Runs], everyone: Field) -> Outcome:
    return outcome(found, policy=POLICY, tuned=everyone.tuned, rule=RULE, seed=SEED)


def notes(whole: Plan, everyone: Field) -> tuple[str, ...]:
    """Return what was run on what."""
    config = whole.stage.configs[0]
    gpus = sum(pool.nodes_max * pool.gpus_per_node for pool in config.pools)
    worlds = len(whole.stage.configs)
    return (
        f"{worlds} worlds of {whole.stage.days} days each; a fleet of at most {gpus} GPUs in "
        f"{len(config.pools)} pools with {config.arrival_share:.0%} of the trace's jobs; on "
        "Philly's own 2,816 GPUs nothing would queue.",
        f"{len(everyone.entrants)} entrants met the same jobs, prices and luck; every decision "
        "comes up to 50 s after its tick, and every other one knows the capacity of the tick "
        "before.",
    )


def retune(parts: Split, config: TwinConfig, traces: Path | None) -> None:
    """Tune every controller on the weeks for tuning and keep what came out."""
    if not parts.known:
        raise SystemExit("control: only the folder with the tuning weeks can be tuned on")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    one = replace(config, start_us=TUNE.first_us)
    stage = Stage(
        configs=[one], workloads=[philly(one, traces)], traces=traces, days=TUNE.days, seed=SEED
    )
    kept = {}
    for name in CONTROLLERS:
        given = untuned(name, parts, one, traces)
        kept[name] = tuning.tune(name, stage, given=given, seed=SEED, tell=say)
    tuning.store(kept)


def say(what: str, share: float) -> None:
    """Tell on stderr how far a long piece of work has come."""
    print(f"{share:4.0%} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
