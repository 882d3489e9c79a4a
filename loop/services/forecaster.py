"""The forecaster's process: forecasts of demand, and the features of pools and job classes."""

from typing import ClassVar

from gpuloop.loop.services.journaled import run_component
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.together import Both, Together
from gpuloop.reasoning.forecast import Forecaster, ForecasterState
from gpuloop.streams.features.fold import Features, FeaturesState


class Foresight(Together[ForecasterState, FeaturesState]):
    """The forecaster and the features, which read the same topic."""

    name: ClassVar[str] = Forecaster.name
    inputs: ClassVar[tuple[str, ...]] = Forecaster.inputs
    state_version: ClassVar[int] = Forecaster.state_version + Features.state_version

    def __init__(self, fleet: str) -> None:
        """Forecast for `fleet`."""
        super().__init__(Forecaster(fleet), Features(), Both[ForecasterState, FeaturesState])


def main(settings: Settings) -> None:
    """Forecast demand and tell features until asked to stop."""
    run_component(build(settings), settings)


def build(settings: Settings) -> Foresight:
    """Return the component that the settings describe."""
    return Foresight(settings.fleet)
