"""The service model beside an hour of requests to a language model.

The twin serves a request for an exponential time with one mean; the trace says how many tokens each
answer had. Queued first come first served on as many servers as the twin would want, the trace
shows what the formula makes of its real arrivals and answers.
"""

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.calibrating import published

from gpuloop.schemas.units import MINUTE_US, SECOND_US
from gpuloop.twin.config import SERVICES, ServiceConfig
from gpuloop.twin.fit import Floats
from gpuloop.twin.services import gpus_wanted, request_rate, serve

TOKENS_PER_SECOND: Final = 350.0
"""What an L4 is assumed to generate, by which answers become seconds."""

WARM_UP_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """The trace's requests and the twin's, side by side; times in seconds."""

    prompt_tokens: float
    answer_tokens: float
    seconds: float
    variation: float
    """Standard deviation of the seconds of a request over their mean; exponential times have 1."""
    minute_variation: float
    minute_variation_twin: float
    wait_p95: float
    wait_p95_twin: float
    servers: int


def compare(folder: Path) -> Served:
    """Queue the trace's requests, and let the twin say what it would expect of them."""
    config = SERVICES[0]
    at, prompt, answer = published.requests(folder)
    seconds = answer / TOKENS_PER_SECOND
    rate = len(at) / float(at[-1])
    servers = gpus_wanted(rate, float(seconds.mean()), config.target_utilisation)
    told = serve(config, rate=rate, gpus=servers, backlog=0.0)
    minutes = np.bincount((at // 60).astype(int))[:-1]
    waits = fifo_waits(at, seconds, servers)[at >= WARM_UP_SECONDS]
    return Served(
        prompt_tokens=float(prompt.mean()),
        answer_tokens=float(answer.mean()),
        seconds=float(seconds.mean()),
        variation=float(seconds.std() / seconds.mean()),
        minute_variation=float(minutes.std() / minutes.mean()),
        minute_variation_twin=_minute_variation(config, rate),
        wait_p95=float(np.quantile(waits, 0.95)),
        wait_p95_twin=(told.first_token_p95_us - config.prefill_us) / SECOND_US,
        servers=servers,
    )


def fifo_waits(at: Floats, seconds: Floats, servers: int) -> Floats:
    """Return how long each request waits for one of some servers, first come first served."""
    free = [0.0] * servers
    waits = np.zeros(len(at))
    for index, (arrival, length) in enumerate(zip(at.tolist(), seconds.tolist(), strict=True)):
        begin = max(arrival, heapq.heappop(free))
        waits[index] = begin - arrival
        heapq.heappush(free, begin + length)
    return waits


def _minute_variation(config: ServiceConfig, rate: float) -> float:
    """Return the variation of the requests of a minute in the twin's busiest hours at a rate.

    Poisson counts of a rate that itself moves from minute to minute; hours of day and flashes are
    left out, for the trace has one hour.
    """
    hour_us = 14 * 60 * MINUTE_US
    calm = [
        request_rate(config, seed, hour_us + minute * MINUTE_US)
        for seed in range(20)
        for minute in range(20)
    ]
    low = np.array(calm)
    low = low[low < np.median(low) * config.burst_factor * 0.85]
    return float(np.hypot(low.std() / low.mean(), 1 / np.sqrt(rate * 60)))
