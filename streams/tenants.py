"""What tenants said to the quotes they were told, added up per pool and segment.

Each answer counts once, whatever comes twice or out of order. What is kept is sums since the start,
so that a reader who missed some of them is right again with the next.
"""

from typing import Final

from gpuloop.schemas.component import State
from gpuloop.schemas.messages import Partial, TenantEvent
from gpuloop.schemas.messages.state import QuoteState
from gpuloop.schemas.units import INT64_MAX, MINUTE_US
from gpuloop.streams.horizon import REMEMBER_US
from gpuloop.streams.jobs import OTHER_CLASSES, DropReason

MAX_SEGMENTS: Final = 64
"""Segments that are told by name, the last of them standing for all others."""


class Answers(State):
    """How many quotes a segment accepted and refused, and the sums of those quotes."""

    accepted: int = 0
    refused: int = 0
    accepted_sum: int = 0
    refused_sum: int = 0


class TenantShard(State):
    """Answers per pool since the start, and those recent enough to come twice."""

    refused: dict[str, int] = {}
    answers: dict[str, dict[str, Answers]] = {}
    recent: dict[str, int] = {}
    newest_us: int = 0
    pruned_us: int = 0


def absorb_tenant(shard: TenantShard, event: TenantEvent) -> DropReason | None:
    """Count an answer once; return why nothing was counted, None for what is no answer."""
    if event.kind == "cancelled":
        return None
    at, horizon = event.event_time_us, shard.newest_us - REMEMBER_US
    if at < horizon:
        return "late"
    identity = f"{event.tenant}/{event.boot}/{event.seq}"
    if identity in shard.recent:
        return "duplicate"
    shard.recent[identity] = at
    _count_answer(shard, event)
    shard.newest_us = max(shard.newest_us, at)
    if shard.newest_us - shard.pruned_us >= MINUTE_US:
        horizon = shard.newest_us - REMEMBER_US
        shard.recent = {key: time for key, time in shard.recent.items() if time >= horizon}
        shard.pruned_us = shard.newest_us
    return None


def _count_answer(shard: TenantShard, event: TenantEvent) -> None:
    """Count an answer; a job that its tenant's quota refuses says nothing about the quote."""
    if event.kind == "refused":
        shard.refused[event.pool] = shard.refused.get(event.pool, 0) + 1
        if event.reason:
            return
    segments = shard.answers.setdefault(event.pool, {})
    known = event.segment in segments or len(segments) < MAX_SEGMENTS - 1
    answers = segments.setdefault(event.segment if known else OTHER_CLASSES, Answers())
    quote = event.quote_usd_micros_per_gpu_hour
    if event.kind == "refused":
        answers.refused += 1
        answers.refused_sum = min(answers.refused_sum + quote, INT64_MAX)
    else:
        answers.accepted += 1
        answers.accepted_sum = min(answers.accepted_sum + quote, INT64_MAX)


def tenant_partials(shard: TenantShard, fleet: str, name: str, tick_us: int) -> list[Partial]:
    """Return the answers of each pool's tenants."""
    return [
        Partial(
            fleet=fleet,
            pool=pool,
            shard=name,
            tick_us=tick_us,
            refused_jobs=shard.refused.get(pool, 0),
            quotes=tuple(
                QuoteState(
                    segment=segment,
                    accepted_jobs=one.accepted,
                    refused_jobs=one.refused,
                    accepted_quotes_sum_usd_micros=one.accepted_sum,
                    refused_quotes_sum_usd_micros=one.refused_sum,
                )
                for segment, one in sorted(shard.answers.get(pool, {}).items())
            ),
        )
        for pool in sorted(shard.refused.keys() | shard.answers.keys())
    ]
