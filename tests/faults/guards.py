"""Taking a guard out of the code, to see that the promise it keeps is then broken.

A promise is shown by a check: a function of a seed that lives through bad luck and returns what it
saw that the promise forbids. The promise's test asserts that no seed shows anything. A guard is a
line that the promise rests on; `Guard.remove` runs the same code without it, and the guard's test
asserts that some seed then shows something. A line that is no longer there fails that test: say
here where the guard has gone.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import pytest

Check = Callable[[int], list[str]]
Removal = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Guard:
    """A guard by what it does, how to do without it, and the check that then finds something.

    `seeds` are tried in turn until one does; a guard that is only needed at some moments needs
    more of them.
    """

    name: str
    remove: Removal
    check: Check
    seeds: Iterable[int] = field(default=range(40))

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def found_without(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the first violations that are seen when the guard is gone."""
        self.remove(monkeypatch)
        return next((found for seed in self.seeds if (found := self.check(seed))), [])


def line(function: Any, *changes: tuple[str, str]) -> Removal:
    """Return how to run a function or method with some of its source changed.

    Its code is exchanged in place, so whoever has imported it runs the changed code as well.
    """
    assert isinstance(function, FunctionType)

    def remove(monkeypatch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            assert source.count(old) == 1, f"{function.__qualname__} no longer reads: {old}"
            source = source.replace(old, new)
        made: dict[str, Any] = {}
        exec(compile(source, f"<{function.__qualname__}>", "exec"), function.__globals__, made)
        monkeypatch.setattr(function, "__code__", made[function.__name__].__code__)

    return remove


def value(owner: object, name: str, instead: object) -> Removal:
    """Return how to run with another value of a module's constant."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, instead)


def both(*removals: Removal) -> Removal:
    """Return how to do without guards of which each would do alone."""

    def remove(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in removals:
            one(monkeypatch)

    return remove


def violations(check: Check, seeds: Iterable[int]) -> list[str]:
    """Return what a check finds over many seeds, each finding with the seed that repeats it."""
    return [f"seed {seed}: {found}" for seed in seeds for found in check(seed)]
