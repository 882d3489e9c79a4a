"""The decider's process."""

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.services.journaled import run_component
from gpuloop.loop.settings import Settings


def main(settings: Settings) -> None:
    """Decide for the fleet until asked to stop."""
    run_component(build(settings), settings)


def build(settings: Settings) -> Decider:
    """Return the decider that the settings describe."""
    return Decider(
        settings.fleet,
        owner=f"decider/{settings.replica}",
        trusted_keys=settings.trusted_keys,
    )
