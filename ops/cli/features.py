"""`gpuloop features`: what every number of `insight.features` is and what it comes from."""

from collections.abc import Iterator
from typing import Annotated, Final

import typer

from gpuloop.ops.cli.context import AsJson, print_json, show
from gpuloop.streams.features.definitions import (
    LAGS,
    SETS,
    STATISTICS,
    TEMPORAL,
    WINDOWS,
    FeatureSet,
    Window,
)
from gpuloop.streams.features.windows import LATE_MINUTES

app: Final = typer.Typer(help="Definitions of features.", no_args_is_help=True)

_HEAD: Final = f"""# Features

Written by `gpuloop features list --markdown`; a test holds this page to the definitions.

At every minute of fleet time `insight.features` holds one vector per pool and one per job class
of a pool, keyed by pool. A vector's numbers stand in the order of the set of definitions whose
digest it names; `gpuloop features list --json` tells them one by one, each with version, inputs,
window and unit.

- **Value, age, quality.** A number that is not known is null with quality 0. Age is how long ago
  the newest input was true. The quality of a window is the share of its minutes that had a value,
  each weighted by the quality of that.
- **Point in time.** A vector rests on the pool states that had come by its tick, and is never told
  again. A state up to {LATE_MINUTES} minutes late enters the windows of later vectors; one that
  comes twice changes nothing. Decisions of a pool and its vectors join on `tick_us`.
- **Offline as online.** All inputs are on `state.pools`, one partition;
  `streams.features.fold.over` computes the same vectors from a recording, byte for byte.
- **Memory.** The last hour is kept by the minute, longer windows as panes of count, mean, squared
  deviations, least and greatest. A window reaches back by at most one pane less than its name says.
"""


@app.command("list")
def list_features(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/features.md.")] = False,
) -> None:
    """List every feature in the order of the vectors: version, inputs, window, unit."""
    if markdown:
        typer.echo(page(), nl=False)
        return
    if as_json:
        print_json(
            [
                {"scope": one.scope, "digest": one.digest, "features": one.definitions}
                for one in SETS.values()
            ]
        )
        return
    rows = [
        {
            "feature": f"{one.scope}: {definition.name}",
            "version": definition.version,
            "kind": definition.kind,
            "unit": definition.unit,
            "inputs": ", ".join(definition.inputs),
        }
        for one in SETS.values()
        for definition in one.definitions
    ]
    show(rows, as_json=False, empty="there are no features")


def page() -> str:
    """Return docs/features.md."""
    parts = [_HEAD, "\n".join(_windows())]
    parts += ["\n".join(_section(one)) for one in SETS.values()]
    return "\n".join(parts) + "\n"


def _windows() -> Iterator[str]:
    yield "| window | reaches back | statistics of each series | lag |"
    yield "|---|---|---|---|"
    for window in WINDOWS:
        lag = "" if window not in LAGS else _lag(window)
        yield f"| {window.name} | {_reach(window)} | {', '.join(STATISTICS)} | {lag} |"


def _reach(window: Window) -> str:
    minutes, pane = window.span_us // 60_000_000, window.pane_us // 60_000_000
    return f"{minutes} min" if pane == 1 else f"{minutes - pane + 1} to {minutes} min"


def _lag(window: Window) -> str:
    pane = window.pane_us // 60_000_000
    return "value at that minute" if pane == 1 else f"mean of the {pane} min around it"


def _section(one: FeatureSet) -> Iterator[str]:
    yield f"\n## Of a {one.scope.replace('_', ' ')}\n"
    yield f"{len(one.definitions)} numbers, digest `{one.digest}`.\n"
    yield "| series | unit | from `state.pools` |"
    yield "|---|---|---|"
    for series in one.series:
        yield f"| `{series.name}` | {series.unit} | `{series.source}` |"
    yield "\nEach series as it is, then `series.statistic_window` of each window, then"
    yield "`series.lag_ago`, then:\n"
    yield "| feature | unit | what |"
    yield "|---|---|---|"
    for name, unit, what in TEMPORAL:
        yield f"| `{name}` | {unit} | {what} |"
    for pair in one.interactions:
        yield f"| `{pair.name}` | {pair.unit} | {pair.operation} of `{pair.left}`, `{pair.right}` |"
