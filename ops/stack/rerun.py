"""Runs the twin again after a run, on the same draws, under the executed policy and under the rule.

What comes out is simulation and is labelled so. The windows compared are those that the live run
was rewarded for, at most the first twelve hours of them, because a person waits for the answer.
"""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Final

import msgspec

from gpuloop.loop.children import end_with
from gpuloop.loop.learn.registry import load_weights, published
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.units import HOUR_US

MAX_SPAN_US: Final = 12 * HOUR_US
MAX_LEAD_US: Final = 24 * HOUR_US
PART_US: Final = HOUR_US // 4
LOOK_SECONDS: Final = 1.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy version, its weights, and the alpha it acted with."""

    version: PolicyVersion
    weights: bytes
    alpha: float


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate: the twin's settings, the fleet time compared, and the policy executed."""

    environment: dict[str, str]
    from_us: int
    until_us: int
    policy: Policy | None


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of both re-runs in USD over the same hours of fleet time."""

    policy: float
    rule: float
    hours: float


def plan(settings: Settings, tally: Tally, broker: Broker) -> Rerun | None:
    """Return what to run again, or None when nothing was rewarded or the world is too old."""
    if tally.rewarded_from_us is None:
        return None
    start = tally.rewarded_from_us
    if not settings.start_us <= start <= settings.start_us + MAX_LEAD_US:
        return None
    return Rerun(
        environment=settings.environment(),
        from_us=start,
        until_us=min(tally.rewarded_until_us, start + MAX_SPAN_US),
        policy=_executed(tally, broker),
    )


def _executed(tally: Tally, broker: Broker) -> Policy | None:
    """Return the policy that acted last with the largest alpha; None for the rule."""
    decision = max(tally.latest.values(), key=lambda d: (d.alpha, d.pool), default=None)
    if decision is None or decision.alpha == 0.0:
        return None
    for version in published(broker):
        if version.policy_id == decision.policy_id:
            weights = load_weights(broker, version.weights_digest)
            if weights is not None:
                return Policy(version=version, weights=weights, alpha=decision.alpha)
    return None


def simulate(rerun: Rerun, progress: Callable[[float], None] = lambda share: None) -> Simulated:
    """Run the twin again, in processes of their own, and return what both runs earned.

    `progress` hears about once a second what share is done. An interrupt ends the processes too.

    Raises:
        StackError: a process ended on the way.

    """
    runs: Sequence[Rerun] = [msgspec.structs.replace(rerun, policy=None)]
    if rerun.policy is not None:
        runs = [*runs, rerun]
    context = get_context("spawn")
    shares = context.Array("d", len(runs))
    with ProcessPoolExecutor(
        len(runs), mp_context=context, initializer=_adopt, initargs=(shares, os.getpid())
    ) as pool:
        try:
            waiting = [pool.submit(_earn, one, place) for place, one in enumerate(runs)]
            while wait(waiting, LOOK_SECONDS).not_done:
                progress(sum(shares[:]) / len(runs))
            earned = [done.result() for done in waiting]
        except BrokenProcessPool:
            raise StackError("a process of the simulation ended on its own") from None
        except BaseException:
            for child in active_children():
                child.terminate()
            raise
    hours = (rerun.until_us - rerun.from_us) / HOUR_US
    return Simulated(rule=round(earned[0], 4), policy=round(earned[-1], 4), hours=round(hours, 2))


_shares: list["SynchronizedArray[float]"] = []
"""Where this process says how far its run is; empty in the process that waits for it."""


def _adopt(shares: "SynchronizedArray[float]", parent: int) -> None:
    end_with(parent)
    _shares[:] = [shares]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever waits ends us.


def _tell(place: int, share: float) -> None:
    for shares in _shares:
        shares[place] = share


def _earn(rerun: Rerun, place: int) -> float:
    from gpuloop.loop.learn.simulate import FleetSimulation, Offsets, offsets_of, rule_alone
    from gpuloop.loop.services.twin import twin_config
    from gpuloop.reasoning.actor import Actor

    settings = Settings.from_environment(rerun.environment)
    offsets: Offsets = rule_alone
    if rerun.policy is not None:
        version, alpha = rerun.policy.version, rerun.policy.alpha
        assert version.actor is not None
        assert version.normaliser is not None
        actor = Actor.from_safetensors(rerun.policy.weights, version.actor, version.normaliser)
        offsets = offsets_of(actor, alpha)
    fleet = FleetSimulation(
        twin_config(settings),
        traces=settings.traces,
        workload=settings.workload or "auto",
        offsets=offsets,
    )

    def run(until_us: int) -> float:
        span = rerun.until_us - fleet.start_us
        for at_us in range(fleet.simulation.now_us + PART_US, until_us, PART_US):
            fleet.run(at_us)
            _tell(place, (at_us - fleet.start_us) / span)
        return fleet.run(until_us).usd

    before = run(rerun.from_us)
    return run(rerun.until_us) - before
