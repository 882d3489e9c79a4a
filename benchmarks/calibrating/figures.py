"""One figure of the twin beside one that was published, and the page of all of them.

A figure agrees when the twin's mean over its seeds is within a tenth of what was published, or when
its seeds lie on both sides of it; it is within the range when other clusters published lower and
higher ones. All else is off, and the page says so first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from textwrap import fill
from typing import Final, Literal

Verdict = Literal["agrees", "within the range", "off"]
Standing = Literal["set", "fitted", "unused"]
"""How the twin came to a figure: it was given it, was fitted to it, or never saw it."""

TOLERANCE: Final = 0.1
WIDTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure: what the twin shows by seed, what was published, and where.

    `others` are the same figure of other clusters; `note` says what differs between the two sides
    or why they do.
    """

    group: str
    name: str
    unit: str
    model: tuple[float, ...]
    published: float
    source: str
    standing: Standing
    others: tuple[float, ...] = ()
    note: str = ""

    @property
    def value(self) -> float:
        """Return the twin's mean over its seeds."""
        return mean(self.model)

    @property
    def verdict(self) -> Verdict:
        """Return what the comparison comes to."""
        near = abs(self.value - self.published) <= TOLERANCE * abs(self.published)
        if near or min(self.model) <= self.published <= max(self.model):
            return "agrees"
        known = (self.published, *self.others)
        return "within the range" if min(known) <= self.value <= max(known) else "off"

    @property
    def difference(self) -> float | None:
        """Return the twin's excess over what was published as a share of it, if that is not 0."""
        return (self.value - self.published) / self.published if self.published else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """A number of the twin for which nothing was published that the project has."""

    name: str
    value: str
    basis: str


def shown(value: float, unit: str) -> str:
    """Return a value as a person reads it."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 1 or value == 0:
        text = f"{value:.2f}".rstrip("0").rstrip(".")
    else:
        text = f"{value:.2g}"
    return f"{text} {unit}".rstrip()


def markdown(figures: Sequence[Figure], assumptions: Sequence[Assumption], heading: str) -> str:
    """Return the page: what is off, then every group's table, then what was never published."""
    off = [figure for figure in figures if figure.verdict == "off"]
    agree = sum(figure.verdict == "agrees" for figure in figures)
    lines = [
        "# Calibration",
        "",
        fill(heading, WIDTH),
        "",
        f"Of {len(figures)} figures {agree} agree, {len(figures) - agree - len(off)} lie within "
        f"the range of what several clusters\npublished, and {len(off)} are off.",
        "",
        "## Where the twin is off",
        "",
        *(f"- {_sentence(figure)}" for figure in off),
        *(["Nowhere."] if not off else []),
    ]
    for group in dict.fromkeys(figure.group for figure in figures):
        lines += ["", f"## {group}", ""]
        lines += ["| figure | twin | published | difference | verdict | twin was | source |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [_row(figure) for figure in figures if figure.group == group]
    lines += ["", "## Assumptions", "",
              "Nothing published is at hand for these; they stand in `twin/config.py` or beside "
              "the code that uses them.", "", "| what | twin | basis |",
              "|---|---|---|"]  # fmt: skip
    lines += [f"| {one.name} | {one.value} | {one.basis} |" for one in assumptions]
    return "\n".join(lines) + "\n"


def as_json(figures: Sequence[Figure]) -> dict[str, object]:
    """Return the figures as one object for machines."""
    return {
        "benchmark": "calibration",
        "figures": [
            {
                "group": figure.group,
                "name": figure.name,
                "unit": figure.unit,
                "model": round(figure.value, 9),
                "published": figure.published,
                "verdict": figure.verdict,
                "standing": figure.standing,
            }
            for figure in figures
        ],
    }


def _sentence(figure: Figure) -> str:
    """Return what is off about a figure."""
    told = (
        f"{figure.name}: {shown(figure.value, figure.unit)} against "
        f"{shown(figure.published, figure.unit)} published ({figure.source})"
    )
    return f"{told}; {figure.note}." if figure.note else f"{told}."


def _row(figure: Figure) -> str:
    twin = shown(figure.value, figure.unit)
    if len(set(figure.model)) > 1:
        low, high = (shown(end, figure.unit) for end in (min(figure.model), max(figure.model)))
        twin += f" ({low} to {high})"
    published = shown(figure.published, figure.unit)
    if figure.others:
        known = sorted((figure.published, *figure.others))
        published += f" ({shown(known[0], figure.unit)} to {shown(known[-1], figure.unit)})"
    gap = "" if figure.difference is None else f"{figure.difference:+.0%}"
    name = f"{figure.name}; {figure.note}" if figure.note else figure.name
    verdict = f"**{figure.verdict}**" if figure.verdict == "off" else figure.verdict
    cells = (name, twin, published, gap, verdict, figure.standing, figure.source)
    return "| " + " | ".join(cells) + " |"
