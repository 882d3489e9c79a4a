"""A state that was saved and loaded is the state that it was, order and all."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from builders import pool_state
from gpuloop.loop.decide.memory import PoolMemory
from gpuloop.schemas.component import State, load, save
from gpuloop.schemas.messages.state import Feature

PACKAGES = [
    "loop.decide",
    "loop.evaluate",
    "loop.services",
    "loop.shells",
    "reasoning",
    "streams",
    "twin",
]


def states() -> Iterator[type[State]]:
    """Yield every kind of state that the project has."""
    for package in PACKAGES:
        folder = importlib.import_module(f"gpuloop.{package}")
        for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
            spec = find_spec(module.name)
            if spec and spec.origin and "(State)" in Path(spec.origin).read_text():
                importlib.import_module(module.name)
    yield from (kind for kind in State.__subclasses__() if kind.__module__.startswith("gpuloop."))


def test_keys_keep_their_order():
    shown = Feature(value=1.0, age_us=0, quality=1.0)
    pool = msgspec.structs.replace(pool_state(), features=dict.fromkeys("zam", shown))
    again = load(PoolMemory, save(PoolMemory(latest=pool)))
    assert "".join(again.latest.features) == "zam"


@pytest.mark.parametrize("kind", list(states()), ids=lambda kind: kind.__name__)
def test_no_state_holds_what_has_no_order(kind: type[State]):
    assert "SetType" not in str(msgspec.inspect.type_info(kind))
