"""The forecaster's process."""

from gpuloop.loop.services.journaled import run_component
from gpuloop.loop.settings import Settings
from gpuloop.reasoning.forecast import Forecaster


def main(settings: Settings) -> None:
    """Forecast demand until asked to stop."""
    run_component(build(settings), settings)


def build(settings: Settings) -> Forecaster:
    """Return the forecaster that the settings describe."""
    return Forecaster(settings.fleet)
