"""Tables and verdicts as the page writes them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from benchmarks.priced.results import Difference

VERDICTS: Final = ("loses", "wins", "is not told apart")


def shown(one: Difference) -> str:
    """Return a difference with its interval."""
    return f"{one.value:+,.0f} ({one.low:+,.0f} to {one.high:+,.0f})"


def verdict(one: Difference) -> str:
    """Return what a difference says of what is compared."""
    if one.high < 0.0:
        return "loses"
    return "wins" if one.low > 0.0 else "is not told apart"


def told_by(found: Mapping[str, Difference], words: Mapping[str, str] | None = None) -> str:
    """Return which verdict holds under which assumptions, losses first; `words` replace some."""
    told = []
    for what in VERDICTS:
        where = [f"{name} ({one.value:+,.0f})" for name, one in found.items()
                 if verdict(one) == what]  # fmt: skip
        if where:
            told.append(f"**{(words or {}).get(what, what)}** in {', '.join(where)}")
    return "; it ".join(told)


def headed(*names: str) -> Iterator[str]:
    """Yield a table's head."""
    yield line(*names)
    yield line(*("---" for _ in names))


def line(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(_escaped(cells))} |"


def _escaped(cells: Iterable[str]) -> Iterator[str]:
    return (cell.replace("|", "\\|") for cell in cells)
