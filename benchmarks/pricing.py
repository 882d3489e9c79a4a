"""What the learned price earns beside a fixed one, the market's, the rule's and its band's ceiling.

    python benchmarks/pricing.py [--quick] [--traces FOLDER] [--output FOLDER]

On the pool level of the twin, with the tuned rule's capacity, over assumed elasticities and spot
reclaim rates: Philly from 16 October, after three weeks of learning. `--quick` scores one week
of two worlds. The policy that ships takes the rule's capacity at three of these prices, so that
both are scored together. The page and the last line, one JSON object, come from this command.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.controlling import tuning
from benchmarks.controlling.entrants import POLICY, field_of, rule_of
from benchmarks.controlling.evaluate import philly
from benchmarks.controlling.splits import TRAIN, Span, split
from benchmarks.options import add_traces
from benchmarks.priced import report
from benchmarks.priced.assumptions import CALIBRATED, worlds
from benchmarks.priced.play import Seller, Sold, fixed, followed, play, ruled
from benchmarks.priced.results import (
    LEARNED,
    Results,
    as_json,
    rivals_of,
    terms_of,
    world_of,
)
from benchmarks.priced.together import on_policy, together_of
from msgspec.structs import replace

from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US

DOCS = Path(__file__).resolve().parents[1] / "docs"
LAW = PricingConfig()
LOYALTY = 0.05
QUICK_DAYS = 7
SELLERS = (
    Seller(name="fixed", price=fixed),
    Seller(name="market", price=followed(1.0, LAW)),
    Seller(name="rule", price=ruled),
    Seller(name="ceiling", price=followed(LAW.highest, LAW)),
    Seller(name=LEARNED, learned=LAW),
)
TERMS = (
    Seller(name=LEARNED, learned=LAW),
    Seller(name="patrons pay 5 % less", learned=LAW, loyalty=LOYALTY),
    Seller(name="no off-peak term", learned=replace(LAW, off_peak=0.0)),
    Seller(name="no scarcity term", learned=replace(LAW, scarcity=0.0)),
    Seller(name="no exploration", learned=replace(LAW, explore=0.0, explore_known=0.0)),
)


def main() -> int:
    """Play and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser, without="else nothing is measured")
    parser.add_argument("--quick", action="store_true", help="a week of two worlds")
    parser.add_argument(
        "--output", type=Path, help="folder of the page (docs, for a whole run; else stdout)"
    )
    chosen = parser.parse_args()
    parts = split(chosen.traces) if chosen.traces else None
    if parts is None or not parts.known:
        print("pricing is measured on the weeks of Philly: set GPULOOP_TRACES or give --traces")
        print(json.dumps({"benchmark": "pricing", "skipped": "no traces"}))
        return 0
    days = QUICK_DAYS if chosen.quick else parts.test[0].days
    results = measure(
        TwinConfig(), chosen.traces, Span(parts.test[0].first_us, days), quick=chosen.quick
    )
    page = report.markdown(
        results,
        refused=LAW.refused_charge,
        priced_out=LAW.priced_out_charge,
        ceiling=LAW.highest,
    )
    output = chosen.output or (None if chosen.quick else DOCS)
    if output is None:
        print(page)
    else:
        output.mkdir(parents=True, exist_ok=True)
        (output / "pricing.md").write_text(page, encoding="utf-8")
    print(as_json(results))
    return 0


def measure(config: TwinConfig, traces: Path, scored: Span, *, quick: bool) -> Results:
    """Return what all sellers came to on the scored dates, having learned since training began."""
    begin = replace(config, start_us=TRAIN.first_us)
    lead = (scored.first_us - TRAIN.first_us) // DAY_US
    if quick:
        begin, lead = replace(config, start_us=scored.first_us - 2 * DAY_US), 2
    workload = philly(begin, traces)
    found = worlds(begin)
    if quick:
        found = dict(list(found.items())[:2])
    rule = rule_of(tuning.load())

    def lived(configs: list[TwinConfig], sellers: tuple[Seller, ...], what: str) -> Sold:
        days = lead + scored.days
        return play(
            configs, workload, sellers, rule=rule, traces=traces, days=days,
            tell=telling(what, days),
        )  # fmt: skip

    field = field_of(split(traces), begin, traces, (POLICY,), seeds=False)
    sellers = (*SELLERS, *on_policy(SELLERS, field.usual[0].controller))
    played = lived(list(found.values()), sellers, "prices")
    sold = played.of([one.name for one in SELLERS])
    terms, outcomes = terms_of(lived([found[CALIBRATED]], TERMS, "terms"), lead, LAW)
    return Results(
        dates=scored.dates,
        lead_days=lead,
        pools=tuple(pool.name for pool in config.pools),
        rivals=rivals_of([one.name for one in SELLERS]),
        worlds=tuple(
            world_of(name, one, place, sold, lead, LAW)
            for place, (name, one) in enumerate(found.items())
        ),
        together=tuple(
            together_of(name, place, played, lead, LAW) for place, name in enumerate(found)
        ),
        alphas=field.alphas,
        terms=terms,
        terms_outcomes=outcomes,
    )


def telling(what: str, days: int) -> Callable[[int], None]:
    """Return what tells on stderr which day has passed, and how long it took so far."""
    began = monotonic()

    def tell(day: int) -> None:
        took = monotonic() - began
        print(f"{what}: day {day} of {days}, {took:.0f} s", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
