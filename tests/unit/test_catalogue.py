"""The catalogue says who reads and writes what; rights on a cluster and the documents follow it."""

import pytest

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.reasoning.causes import Causes
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.schemas.catalogue import CATALOGUE

SHELL = {"telemetry.clock", "internal.journal", "internal.snapshots"}
"""What the live shell reads for whatever component it runs."""


@pytest.mark.parametrize("component", [Causes, Decider, Evaluator, Forecaster])
def test_a_component_is_listed_as_a_reader_of_its_inputs_and_of_nothing_else(
    component: type[Causes | Decider | Evaluator | Forecaster],
) -> None:
    listed = {name for name, topic in CATALOGUE.items() if component.name in topic.consumers}
    assert listed - SHELL == set(component.inputs)
