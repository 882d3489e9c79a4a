"""All that the decider knows: one struct, so that a snapshot is complete."""

from typing import Final

import msgspec
import numpy as np

from gpuloop.loop.decide.governance import Governance, fleet_budget, objectives_of
from gpuloop.loop.decide.library import Library
from gpuloop.loop.decide.memory import PoolMemory, remember
from gpuloop.loop.decide.observation import Surroundings
from gpuloop.loop.decide.release import Desk
from gpuloop.loop.decide.suspects import Suspects, jobs_at_risk
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import Forecast, JobState, Offer, PoolState
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import USD_MICROS

MAX_POOLS: Final = 256
MAX_JOBS: Final = 20_000
MAX_OFFERS: Final = 1024


class DeciderState(State):
    """What is known of the fleet, what people granted, and what is under way."""

    governance: Governance
    suspects: Suspects
    library: Library
    desk: Desk
    pools: dict[str, PoolMemory] = {}
    jobs: dict[str, JobState] = {}
    offers: dict[str, Offer] = {}
    forecasts: dict[str, Forecast] = {}
    decided_us: int = 0
    dropped: dict[str, int] = {}
    """What found no room or was no use, by kind."""
    behind_us: int = 0
    """How far before what is known the last state of a pool was dated; 0 when it was of use."""


def know_pool(state: DeciderState, pool: PoolState) -> bool:
    """Take in a pool's state; False when there is no room for another pool."""
    memory = state.pools.get(pool.pool)
    if memory is None:
        if len(state.pools) >= MAX_POOLS:
            drop(state, "pools")
            return False
        memory = state.pools[pool.pool] = PoolMemory(latest=pool)
    remember(memory, pool)
    return True


def know_job(state: DeciderState, job: JobState) -> None:
    """Keep jobs while they run: only those can be moved."""
    if job.phase != "running":
        state.jobs.pop(job.job, None)
    elif job.job in state.jobs or len(state.jobs) < MAX_JOBS:
        state.jobs[job.job] = job
    else:
        drop(state, "jobs")


def know_offer(state: DeciderState, offer: Offer, now_us: int) -> None:
    """Keep the newest offer of each provider, region, model and billing.

    A date ahead of now counts as now, so that no offer is believed longer than it says, or instead
    of one that comes after it.
    """
    if offer.fetched_at_us > now_us:
        offer = msgspec.structs.replace(offer, fetched_at_us=now_us)
    key = f"{offer.provider}/{offer.region}/{offer.gpu_model}/{offer.billing}"
    known = state.offers.get(key)
    if known is None and len(state.offers) >= MAX_OFFERS:
        drop(state, "offers")
    elif known is None or offer.fetched_at_us >= known.fetched_at_us:
        state.offers[key] = offer


def drop(state: DeciderState, kind: str) -> None:
    """Count something that found no room or is no use."""
    state.dropped[kind] = state.dropped.get(kind, 0) + 1


def movable_jobs(state: DeciderState, pool: str) -> list[JobState]:
    """Return the jobs at risk that may be moved: not lately, and not on their way."""
    flights = state.pools[pool].flights.values()
    moving = {flight.target for flight in flights if flight.actuator == "migration"}
    return [
        job
        for job in jobs_at_risk(state.suspects, state.jobs, pool)
        if job.job not in moving and job.job not in state.desk.spared
    ]


def nodes_asked_about(state: DeciderState) -> set[str]:
    """Return suspected nodes that a person is asked to let a job leave.

    Only questions that were put while the suspicion held count, and each ends by itself: a
    suspicion outlasts its time by as long as a person has to answer, and no longer.
    """
    suspects, found = state.suspects.nodes, set()
    for one in state.desk.waiting.values():
        job = state.jobs.get(one.command.target)
        if one.command.actuator != "migration" or job is None:
            continue
        asked_us = one.command.issued_at_us
        found |= {
            node for node in job.nodes if node in suspects and asked_us <= suspects[node].until_us
        }
    return found


def surroundings(state: DeciderState, now_us: int) -> Surroundings:
    """Return what is known beside the pools' states, at one moment."""
    budget = fleet_budget(state.governance)
    return Surroundings(
        forecasts=state.forecasts,
        offers=best_offers(state, now_us),
        objectives={name: objectives_of(state.governance, name) for name in state.pools},
        fleet_budget_usd=np.inf if budget is None else (budget - _promised(state)) / USD_MICROS,
        jobs_at_risk={name: len(movable_jobs(state, name)) for name in state.pools},
    )


def _promised(state: DeciderState) -> int:
    """Return USD micros per hour of growth that was sent and does not count as present yet.

    A saving counts once it is there.
    """
    return sum(
        max(0, flight.usd_micros_per_hour)
        for memory in state.pools.values()
        for flight in memory.flights.values()
        if flight.generation is None
    )


def best_offers(state: DeciderState, now_us: int) -> dict[tuple[str, Billing], Offer]:
    """Return the cheapest offer by model and billing; one still believed beats one that is not."""
    best: dict[tuple[str, Billing], tuple[bool, int, str]] = {}
    for key, offer in state.offers.items():
        lapsed = offer.fetched_at_us + offer.valid_for_us < now_us
        rank = (lapsed, offer.usd_micros_per_gpu_hour, key)
        name = (offer.gpu_model, offer.billing)
        if name not in best or rank < best[name]:
            best[name] = rank
    return {name: state.offers[rank[2]] for name, rank in best.items()}
