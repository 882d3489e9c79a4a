"""Start one service: `python -m gpuloop.loop.services NAME`.

The table below is the whole registry; a module is imported only by the process that runs it, so
that torch, DoWhy, Faust and ClickHouse's engine stay out of the others.
"""

import sys
from importlib import import_module
from typing import Final

from gpuloop.loop.services.process import configure_logging
from gpuloop.loop.settings import Settings, SettingsError

SERVICES: Final = (
    "twin",
    "framer",
    "observe",
    "forecaster",
    "causes",
    "decider",
    "evaluator",
    "auditor",
    "learner",
    "keeper",
    "collector",
    "clickhouse",
    "sink-timescale",
    "sink-clickhouse",
)


def run(arguments: list[str]) -> int:
    """Run the named service until it is asked to stop; return the exit status."""
    if len(arguments) != 1 or arguments[0] not in SERVICES:
        print(f"usage: python -m gpuloop.loop.services {{{','.join(SERVICES)}}}", file=sys.stderr)
        return 2
    name = arguments[0]
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        print(f"gpuloop {name}: {error}", file=sys.stderr)
        return 2
    configure_logging(name, settings.log_level)
    import_module(f"gpuloop.loop.services.{name.replace('-', '_')}").main(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
