"""What the rule earns in the twin, beside a fleet that is left alone and a rule with room to spare.

    python benchmarks/rule.py [--traces FOLDER] [--hours 36] [--start 2017-09-26]

Without traces the load is generated. The 36 hours that are the default here were not tuned on.
"""

import argparse
from datetime import UTC, datetime

import msgspec
from options import add_traces

from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.messages.actions import Mode
from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import TwinConfig

FROM = datetime(2017, 9, 26, tzinfo=UTC)
ROOMY = RuleConfig(spare_nodes=1.0, scarcity=0.5)


def earned(
    chosen: argparse.Namespace, *, rule: RuleConfig | None = None, mode: Mode = "auto"
) -> str:
    """Run a fleet and return what it earned, by component."""
    start_us = int(chosen.start.replace(tzinfo=UTC).timestamp()) * SECOND_US
    config = msgspec.structs.replace(TwinConfig(), start_us=start_us)
    fleet = FleetSimulation(config, traces=chosen.traces, rule=rule, mode=mode)
    found = fleet.run(fleet.start_us + chosen.hours * HOUR_US)
    parts = ", ".join(f"{part} {usd:+,.0f}" for part, usd in found.components.items())
    return f"{found.usd:>+12,.0f} USD on {fleet.workload_name}: {parts}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser)
    parser.add_argument("--hours", type=int, default=36)
    parser.add_argument("--start", type=datetime.fromisoformat, default=FROM)
    chosen = parser.parse_args()
    print("left alone               ", earned(chosen, mode="off"), flush=True)
    print("the rule                 ", earned(chosen), flush=True)
    print("the rule, a node to spare", earned(chosen, rule=ROOMY), flush=True)


if __name__ == "__main__":
    main()
