"""What strikes the nodes of a pool whoever controls it: all of it is drawn already.

The twin draws losses and reclaims by node and hour, so all controllers meet the same ones. Which of
the nodes a controller has at that moment is its own affair, so what is away counts every node it
could have. Nodes at work when a row begins cannot be given up before, so theirs are known.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import RECLAIM_NOTICE_US
from gpuloop.twin.faults import HEALED_AFTER_MINUTES, HEALED_SIGMA
from gpuloop.twin.pool_level import draws
from gpuloop.twin.pool_level.arrays import LOSS, MEMORY, NEVER, RECLAIM, Ints, Rules
from gpuloop.twin.pool_level.compiling import compiled, entry

Floats = NDArray[np.float64]

LOST_MINUTES: Final = HEALED_AFTER_MINUTES["lost"]
DAY_HOURS: Final = 24


class Away(NamedTuple):
    """By bin: the most nodes that can be away on average, and spot nodes that can come back."""

    nodes: Floats
    healed_spot: Floats


def away(rules: Rules, row: int, *, bins: int, bin_us: int) -> Away:
    """Return what losses and reclaims can take from a row of rules in bins since its start.

    A node that is struck is away until it is repaired or, where that is later, until the slowest
    replacement of its billing has come.
    """
    found = Away(np.zeros(bins), np.zeros(bins))
    _strike(rules, row, bin_us, found.nodes, found.healed_spot)
    return found


def first_strikes(rules: Rules, row: int, *, hours: int) -> Ints:
    """Return when each node that a row begins with is first struck, in time since its start.

    Memory that begins to fail counts, although it takes down no job or one a little later.
    """
    found = np.full(rules.cold_start_us.shape[1], NEVER)
    _find_strikes(rules, row, hours, found)
    return found


@entry
def _find_strikes(rules: Rules, row: int, hours: int, found: Ints) -> None:
    half, start_us = len(found) // 2, rules.start_us[row]
    for node in range(len(found)):
        reclaims = rules.reclaims[row] if node >= half else 0.0
        for hour in range(hours):
            lost_us = _strikes_at(rules, row, node, hour, LOSS, rules.lost[row])
            ill_us = _strikes_at(rules, row, node, hour, MEMORY, rules.ecc[row])
            asked_us = _strikes_at(rules, row, node, hour, RECLAIM, reclaims)
            for at_us in (lost_us, ill_us, asked_us + RECLAIM_NOTICE_US if asked_us >= 0 else -1):
                if at_us >= 0:
                    found[node] = min(found[node], at_us - start_us)


@entry
def _strike(rules: Rules, row: int, bin_us: int, nodes: Floats, healed_spot: Floats) -> None:
    half = rules.cold_start_us.shape[1] // 2
    hours = (len(nodes) * bin_us - 1) // HOUR_US + 1
    start_us, seed = rules.start_us[row], rules.seed[row]
    for billing in range(2):
        if not rules.billings[row, billing]:
            continue
        first = billing * half
        last = first + rules.nodes_max[row]
        slowest_us = rules.cold_start_us[row, first:last].max()
        for node in range(first, last):
            for hour in range(hours):
                lost_us = _strikes_at(rules, row, node, hour, LOSS, rules.lost[row])
                if lost_us >= 0:
                    minutes = draws.lognormal(
                        LOST_MINUTES, HEALED_SIGMA, seed, draws.LOST_FOR, node, lost_us // MINUTE_US
                    )
                    healed_us = lost_us + round(minutes * MINUTE_US)
                    place = (healed_us - start_us) // bin_us
                    if billing == 1 and 0 <= place < len(nodes):
                        healed_spot[place] += 1.0
                    replaced_us = _available_from(rules, row, billing, lost_us) + slowest_us
                    back_us = max(healed_us, replaced_us) - start_us
                    _add(nodes, bin_us, lost_us - start_us, back_us)
                if billing == 1:
                    asked_us = _strikes_at(rules, row, node, hour, RECLAIM, rules.reclaims[row])
                    if asked_us >= 0:
                        gone_us = asked_us + RECLAIM_NOTICE_US
                        back_us = _available_from(rules, row, billing, gone_us) + slowest_us
                        _add(nodes, bin_us, gone_us - start_us, back_us - start_us)


@compiled
def _strikes_at(rules: Rules, row: int, node: int, hour: int, what: int, rate: float) -> int:
    """Return when in an hour something strikes a node, or -1: as `pool_level.nodes` draws it."""
    number = rules.start_us[row] // HOUR_US + hour
    if hour < rules.luck.shape[2]:
        drawn = rules.luck[row, node, hour, what]
    else:
        drawn = draws.uniform(rules.seed[row], draws.STRIKES + what, node, number)
    return int(number * HOUR_US + int(drawn / rate * HOUR_US)) if drawn < rate else -1


@compiled
def _available_from(rules: Rules, row: int, billing: int, at_us: int) -> int:
    start = rules.start_us[row] // HOUR_US
    hour = min(at_us // HOUR_US - start, rules.shortage.shape[1] - 1)
    if billing == 0 or not rules.shortage[row, hour]:
        return int(at_us)
    later, last = hour, min(hour + DAY_HOURS, rules.shortage.shape[1] - 1)
    while later < last and rules.shortage[row, later]:
        later += 1
    return int((start + later) * HOUR_US)


@compiled
def _add(nodes: Floats, bin_us: int, from_us: int, until_us: int) -> None:
    """Add a node's absence to the bins it lies in."""
    for place in range(max(from_us // bin_us, 0), min((until_us - 1) // bin_us + 1, len(nodes))):
        low, high = max(from_us, place * bin_us), min(until_us, (place + 1) * bin_us)
        nodes[place] += (high - low) / bin_us
