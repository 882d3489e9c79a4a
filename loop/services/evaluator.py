"""The evaluator's process."""

from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.services.journaled import run_component
from gpuloop.loop.settings import Settings


def main(settings: Settings) -> None:
    """Keep the ledger and pay rewards until asked to stop."""
    run_component(build(settings), settings)


def build(settings: Settings) -> Evaluator:
    """Return the evaluator that the settings describe."""
    return Evaluator()
