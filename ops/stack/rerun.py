"""Runs the twin again after a run, on the same draws, under the executed policy and under the rule.

What comes out is simulation and is labelled so. The windows compared are those that the live run
was rewarded for, at most the first twelve hours of them, because a person waits for the answer. In
a world that is older than a day they are its first hours: the way to the others is too long.
"""

import os
import signal
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Final

import msgspec
import numpy as np

from gpuloop.loop.children import end_with
from gpuloop.loop.learn.registry import load_weights, published
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.tally import Acted, Tally
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.policy import Floats, PoolBatch
from gpuloop.schemas.units import HOUR_US

MAX_SPAN_US: Final = 12 * HOUR_US
MAX_LEAD_US: Final = 24 * HOUR_US
PART_US: Final = HOUR_US // 4
LOOK_SECONDS: Final = 1.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy version and its weights."""

    version: PolicyVersion
    weights: bytes


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate: the twin's settings, the fleet time compared, and who acted when.

    `acted` holds, for each pool, the policies in the order in which they acted; `policies` holds
    those that acted at an alpha above 0. All else is as in a fresh world: every actuator in auto,
    nothing frozen, no objectives.
    """

    environment: dict[str, str]
    from_us: int
    until_us: int
    acted: dict[str, list[Acted]]
    policies: dict[str, Policy]


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of both re-runs in USD over the same hours of fleet time."""

    policy: float
    rule: float
    from_us: int
    hours: float


def plan(settings: Settings, tally: Tally, broker: Broker) -> Rerun | None:
    """Return what to run again, or None when nothing was rewarded."""
    if tally.rewarded_from_us is None:
        return None
    start = tally.rewarded_from_us
    return Rerun(
        environment=settings.environment(),
        from_us=start,
        until_us=min(tally.rewarded_until_us, start + MAX_SPAN_US),
        acted=tally.acted,
        policies=_policies(tally, broker),
    )


def _policies(tally: Tally, broker: Broker) -> dict[str, Policy]:
    wanted = {one.policy_id for all_ in tally.acted.values() for one in all_ if one.alpha > 0.0}
    found = {}
    for version in published(broker) if wanted else ():
        if version.policy_id in wanted:
            weights = load_weights(broker, version.weights_digest)
            if weights is not None:
                found[version.policy_id] = Policy(version=version, weights=weights)
    return found


def simulate(rerun: Rerun, progress: Callable[[float], None] = lambda share: None) -> Simulated:
    """Run the twin again, in processes of their own, and return what both runs earned.

    `progress` hears about once a second what share is done. An interrupt ends the processes too.

    Raises:
        StackError: a process ended on the way.

    """
    runs: Sequence[Rerun] = [msgspec.structs.replace(rerun, policies={})]
    if rerun.policies:
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
    rule, policy = earned[0], earned[-1]
    return Simulated(
        policy=round(policy.usd, 4),
        rule=round(rule.usd, 4),
        from_us=rule.from_us,
        hours=round((rule.until_us - rule.from_us) / HOUR_US, 2),
    )


class Earned(msgspec.Struct, frozen=True, kw_only=True):
    """What one re-run earned between two fleet times."""

    usd: float
    from_us: int
    until_us: int


_shares: list["SynchronizedArray[float]"] = []
"""Where this process says how far its run is; empty in the process that waits for it."""


def _adopt(shares: "SynchronizedArray[float]", parent: int) -> None:
    end_with(parent)
    _shares[:] = [shares]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever waits ends us.


def _tell(place: int, share: float) -> None:
    for shares in _shares:
        shares[place] = share


def _earn(rerun: Rerun, place: int) -> Earned:
    from gpuloop.loop.learn.simulate import FleetSimulation
    from gpuloop.loop.services.twin import twin_config

    settings = Settings.from_environment(rerun.environment)
    fleet = FleetSimulation(
        twin_config(settings),
        traces=settings.traces,
        workload=settings.workload or "auto",
        offsets=offsets_as_acted(rerun),
    )
    from_us, until_us = window(rerun, fleet.start_us)

    def run(to_us: int) -> float:
        for at_us in range(fleet.simulation.now_us + PART_US, to_us, PART_US):
            fleet.run(at_us)
            _tell(place, (at_us - fleet.start_us) / (until_us - fleet.start_us))
        return fleet.run(to_us).usd

    before = run(from_us)
    return Earned(usd=run(until_us) - before, from_us=from_us, until_us=until_us)


def window(rerun: Rerun, start_us: int) -> tuple[int, int]:
    """Return the fleet time to compare in a world that begins at `start_us`.

    Windows too far into the world to be reached again stand for themselves no longer: the same
    length of the world's beginning is compared instead.
    """
    if start_us <= rerun.from_us <= start_us + MAX_LEAD_US:
        return rerun.from_us, rerun.until_us
    return start_us, start_us + rerun.until_us - rerun.from_us


def offsets_as_acted(rerun: Rerun) -> Callable[[PoolBatch], Floats]:
    """Return what acts in a re-run: on each pool, from tick to tick, who acted on it live.

    Before the first decision of a pool that was seen, the first one's policy acts. As live, none
    acts on what is out of its range.
    """
    actors = {}
    for policy_id, one in rerun.policies.items():
        spec, normaliser = one.version.actor, one.version.normaliser
        if spec is not None and normaliser is not None:
            actors[policy_id] = Actor.from_safetensors(one.weights, spec, normaliser)

    def offsets(batch: PoolBatch) -> Floats:
        wish = np.zeros_like(batch.present)
        for row, pool in enumerate(batch.pools):
            acted = rerun.acted.get(pool)
            if not acted:
                continue
            now = bisect_right(acted, int(batch.tick_us[row]), key=lambda one: one.from_us)
            who = acted[max(now - 1, 0)]
            actor, seen = actors.get(who.policy_id), batch.observation[row : row + 1]
            if actor is not None and actor.in_range(seen)[0]:
                wish[row] = who.alpha * actor(seen)[0]
        return wish

    return offsets
