"""An inference service as M/M/c: requests by time of day, latency by Erlang's C formula.

Below saturation a minute is in steady state; above it the backlog grows as a fluid, and requests
that would wait longer than the client's timeout are errors.
"""

from math import cos, exp, log, pi
from typing import NamedTuple

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import ServiceConfig
from gpuloop.twin.draws import normal, uniform

NOISE_SIGMA = 0.05
WEEKEND = 0.8


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that a request waits, for `load` in Erlangs below `servers`.

    Computed through Erlang B's recursion, which neither overflows nor loses digits.
    """
    blocking = 1.0
    for server in range(1, servers + 1):
        blocking = load * blocking / (server + load * blocking)
    return servers * blocking / (servers - load * (1.0 - blocking))


def wait_quantile(servers: int, arrivals: float, service: float, quantile: float) -> float:
    """Return a quantile of the wait in M/M/c, in the unit of the rates.

    Args:
        servers: c.
        arrivals: arrival rate.
        service: service rate of one server; c x service exceeds arrivals.
        quantile: in (0, 1).

    """
    waits = erlang_c(servers, arrivals / service)
    if waits <= 1.0 - quantile:
        return 0.0
    return log(waits / (1.0 - quantile)) / (servers * service - arrivals)


def request_rate(config: ServiceConfig, seed: int, at_us: int) -> float:
    """Return requests per second in the minute that ends at `at_us`."""
    hour = at_us / HOUR_US
    day = 1.0 + config.diurnal * cos(2.0 * pi * (hour % 24.0 - 14.0) / 24.0)
    weekend = WEEKEND if (int(hour // 24) + 4) % 7 in (0, 6) else 1.0
    burst = uniform(seed, "flash", config.name, at_us // (HOUR_US // 3)) < config.burst_share
    noise = exp(NOISE_SIGMA * normal(seed, "requests", config.name, at_us // MINUTE_US))
    factor = config.burst_factor if burst else 1.0
    return config.requests_per_second * day * weekend * factor * noise


class Window(NamedTuple):
    """What one minute of a service came to."""

    served: int
    utilisation: float
    first_token_p50_us: int
    first_token_p95_us: int
    queue_depth: float
    backlog: float
    error_ratio: float
    violated: bool


def serve(config: ServiceConfig, *, rate: float, gpus: int, backlog: float) -> Window:
    """Return a minute at `rate` requests per second on `gpus` servers after a backlog."""
    seconds = MINUTE_US / SECOND_US
    capacity = gpus / config.service_seconds
    slowest = config.timeout_seconds
    left = errors = 0.0
    if backlog == 0.0 and rate < capacity:
        per_server = 1.0 / config.service_seconds
        p50 = min(wait_quantile(gpus, rate, per_server, 0.50), slowest)
        p95 = min(wait_quantile(gpus, rate, per_server, 0.95), slowest)
        depth = erlang_c(gpus, rate / per_server) * rate / (capacity - rate)
        served = rate * seconds
    else:
        waiting = backlog + (rate - capacity) * seconds
        left = depth = min(max(waiting, 0.0), slowest * capacity)
        lost = max(waiting - left, 0.0)
        served = backlog + rate * seconds - left - lost
        errors = min(lost / max(rate * seconds, 1.0), 1.0)
        p50 = min((backlog + left) / 2 / capacity, slowest) if capacity else slowest
        p95 = min(max(backlog, left) / capacity, slowest) if capacity else slowest
    p95_us = config.prefill_us + round(p95 * SECOND_US)
    return Window(
        served=int(served),
        utilisation=min(served / seconds / capacity, 1.0) if capacity else 0.0,
        first_token_p50_us=config.prefill_us + round(p50 * SECOND_US),
        first_token_p95_us=p95_us,
        queue_depth=depth,
        backlog=left,
        error_ratio=errors,
        violated=p95_us > config.first_token_p95_us or errors > 0.0,
    )


def gpus_wanted(config: ServiceConfig, rate: float) -> int:
    """Return the servers that keep utilisation at the service's target."""
    return max(round(rate * config.service_seconds / config.target_utilisation + 0.5), 1)
