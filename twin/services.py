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


def wait_quantile(waits: float, spare: float, quantile: float) -> float:
    """Return a quantile of the wait in M/M/c, in the unit of `spare`.

    Args:
        waits: the probability that a request waits, by `erlang_c`.
        spare: the rate at which all servers serve, less that of arrivals; positive.
        quantile: in (0, 1).

    """
    if waits <= 1.0 - quantile:
        return 0.0
    return log(waits / (1.0 - quantile)) / spare


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
    return window(
        rate=rate,
        gpus=gpus,
        backlog=backlog,
        service_seconds=config.service_seconds,
        timeout_seconds=config.timeout_seconds,
        prefill_us=config.prefill_us,
        limit_us=config.first_token_p95_us,
    )


def window(
    rate: float,
    gpus: int,
    backlog: float,
    service_seconds: float,
    timeout_seconds: float,
    prefill_us: int,
    limit_us: int,
) -> Window:
    """Return a minute of a service of which `limit_us` bounds the 95th percentile to first token.

    This and what it calls know numbers only, so that they can be compiled as they are; compiled
    code has no keyword-only arguments, name them all the same.
    """
    seconds = MINUTE_US / SECOND_US
    capacity = gpus / service_seconds
    left = errors = 0.0
    if backlog == 0.0 and rate < capacity:
        per_server = 1.0 / service_seconds
        waits, spare = erlang_c(gpus, rate / per_server), gpus * per_server - rate
        p50 = min(wait_quantile(waits, spare, 0.50), timeout_seconds)
        p95 = min(wait_quantile(waits, spare, 0.95), timeout_seconds)
        depth = waits * rate / (capacity - rate)
        served = rate * seconds
    else:
        waiting = backlog + (rate - capacity) * seconds
        left = depth = min(max(waiting, 0.0), timeout_seconds * capacity)
        lost = max(waiting - left, 0.0)
        served = backlog + rate * seconds - left - lost
        errors = min(lost / max(rate * seconds, 1.0), 1.0)
        p50 = min((backlog + left) / 2 / capacity, timeout_seconds) if capacity else timeout_seconds
        p95 = min(max(backlog, left) / capacity, timeout_seconds) if capacity else timeout_seconds
    p95_us = prefill_us + round(p95 * SECOND_US)
    return Window(
        served=int(served),
        utilisation=min(served / seconds / capacity, 1.0) if capacity else 0.0,
        first_token_p50_us=prefill_us + round(p50 * SECOND_US),
        first_token_p95_us=p95_us,
        queue_depth=depth,
        backlog=left,
        error_ratio=errors,
        violated=p95_us > limit_us or errors > 0.0,
    )


def gpus_wanted(rate: float, service_seconds: float, target_utilisation: float) -> int:
    """Return the servers that keep utilisation at a service's target."""
    return max(round(rate * service_seconds / target_utilisation + 0.5), 1)
