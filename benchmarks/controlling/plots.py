"""Frontiers drawn: what each controller costs at which violation rate."""

import io
from math import floor, log10
from typing import Final

import matplotlib
from benchmarks.controlling.results import Controller, Outcome
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SALT: Final = "gpuloop"
"""From which identifiers within the file derive, instead of from chance."""
COLOURS: Final = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c564b", "#000000",
)  # fmt: skip
MARKERS: Final = "osD^vPX<>*"


def frontier_svg(outcome: Outcome, *, title: str) -> str:
    """Return a plot of cost over violation rate by pool as SVG, the same for the same outcome.

    Settings are marks, those on a controller's frontier are joined, its tuned one is ringed.
    """
    # Texts stay texts, which is small and takes the reader's font.
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none"}):
        pools = outcome.pools
        figure = Figure(figsize=(2 + 4.5 * len(pools), 5), layout="constrained")
        panels = figure.subplots(1, len(pools), squeeze=False)[0]
        for panel, pool in zip(panels, pools, strict=True):
            _panel(panel, outcome, pool)
        panels[0].set_ylabel("cost, US dollars a day")
        figure.suptitle(title)
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center",
                      fontsize="small")  # fmt: skip
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _panel(axes: Axes, outcome: Outcome, pool: str) -> None:
    rates = [point.violation_rate for one in outcome.controllers for point in one.of(pool)]
    positive = [rate for rate in rates if rate > 0]
    if positive:
        # Rates of zero have a place too, left of the least of the others.
        axes.set_xscale("symlog", linthresh=min(positive))
        ticks = _ticks(min(rates), min(positive), max(positive))
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.tick_params(axis="x", labelrotation=45)
        axes.minorticks_off()
    for place, one in enumerate(outcome.controllers):
        _draw(axes, one, pool, place, shipped=one.name == outcome.policy)
    axes.set_title(pool)
    axes.set_xlabel("violation rate")
    axes.grid(visible=True, alpha=0.3)


def _ticks(least: float, positive: float, most: float) -> list[float]:
    """Return 0 where it is among the rates, and 1, 2 and 5 of each decade that they span."""
    decades = range(floor(log10(positive)), floor(log10(most)) + 1)
    found = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    within = [tick for tick in found if positive / 2 <= tick <= most * 1.5]
    return [0.0, *within] if least == 0 else within


def _draw(axes: Axes, one: Controller, pool: str, place: int, *, shipped: bool) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    points = one.of(pool)
    kept = [point for point in points if point.on_frontier]
    axes.plot(
        [point.violation_rate for point in kept],
        [point.cost_usd_per_day for point in kept],
        color=colour, marker=marker, markersize=5, linewidth=2.5 if shipped else 1.0,
        label=one.name,
    )  # fmt: skip
    others = [point for point in points if not point.on_frontier]
    axes.plot(
        [point.violation_rate for point in others],
        [point.cost_usd_per_day for point in others],
        color=colour, marker=marker, markersize=4, linestyle="", fillstyle="none",
    )  # fmt: skip
    for point in points:
        if point.tuned:
            axes.plot(
                [point.violation_rate], [point.cost_usd_per_day], color=colour, marker="o",
                markersize=11, fillstyle="none",
            )  # fmt: skip
