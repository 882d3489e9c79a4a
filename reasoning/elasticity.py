"""How tenants of each segment answer price: learned online from quotes accepted and refused.

Acceptance is a logistic curve in the logarithm of the quote over the pool's anchor, the quote it
began with. Level and log slope have a Gaussian belief, taken forward by Laplace steps on each
epoch's answers and forgotten towards the prior (Kulhavy and Zarrop, 1993), so that a belief without
news becomes the prior again and its uncertainty never shrinks for want of attention. The rival is
the share of quotes accepted lately, whatever their price. Both predict each epoch before they see
it. A curve is trusted once it leads by `EARNED_NATS`, twenty to one. Of segments that do not mind
the price one in six comes to that by chance within four weeks, and one in twenty is there at any
one time. A curve is retired when the lead is lost, and begins anew where it falls far behind, as
after a drift.

A book of curves is one array (..., segments, `COLUMNS`), so that the live loop and vectorised
worlds run the same function on it; nothing here knows about prices of markets or what to charge.
"""

from typing import Final

import numpy as np

from gpuloop.schemas.policy import EPOCH_US, Flags, Floats
from gpuloop.schemas.units import HOUR_US

(
    LEVEL, SLOPE, LEVEL_PRECISION, CROSS_PRECISION, SLOPE_PRECISION,
    ACCEPTED, REFUSED, ANSWERED, LEAD, FALLEN, TRUSTED, LOAD,
) = range(12)  # fmt: skip
COLUMNS: Final = 12
"""Of a curve: the belief's mean (log odds at the anchor, log slope) and precision; the rival's
counts; answers in memory; nats ahead of the rival, and fallen behind since the last high; whether
it is trusted; and the GPUs that the segment keeps busy."""

JOBS_IN, LOG_IN, JOBS_OUT, LOG_OUT = range(4)
SAID: Final = 4
"""Of what a segment said in an epoch: quotes accepted, the log of their mean over the anchor, and
the same of quotes refused."""

ACCEPTED_JOBS, REFUSED_JOBS, ACCEPTED_SUM, REFUSED_SUM = range(4)
COUNTS: Final = 4
"""Of cumulative counts: jobs, and the sums of their quotes."""

PRIOR_LEVEL: Final = float(np.log(0.85 / 0.15))
PRIOR_SLOPE: Final = float(np.log(5.5))
PRIOR_SD: Final = (0.8, 1.0)
"""At the anchor five of six accept, with an elasticity between -0.17 and -4 in 19 of 20 cases."""
MEMORY: Final = 0.5 ** (EPOCH_US / (21 * 24 * HOUR_US))
RIVAL_MEMORY: Final = 0.5 ** (EPOCH_US / (7 * 24 * HOUR_US))
LOAD_MEMORY: Final = 0.5 ** (EPOCH_US / (24 * HOUR_US))
RIVAL_WEIGHT: Final = 4.0
EARNED_NATS: Final = 3.0
FURTHEST_BEHIND: Final = -1.0
"""Nats that a curve is behind at most: what it got wrong before it knew anything is forgiven."""
DRIFT_NATS: Final = 6.0
FEWEST_ANSWERS: Final = 40.0
STEPS: Final = 4
LARGEST_STEP: Final = 0.7
LEVELS: Final = (-6.0, 6.0)
SLOPES: Final = (float(np.log(0.3)), float(np.log(60.0)))
SURELY: Final = 1.96


def blank(pools: int, segments: int) -> Floats:
    """Return the curves of pools of which nothing is known, (pools, segments, `COLUMNS`)."""
    curves = np.zeros((pools, segments, COLUMNS))
    curves[..., LEVEL], curves[..., SLOPE] = PRIOR_LEVEL, PRIOR_SLOPE
    curves[..., LEVEL_PRECISION] = PRIOR_SD[0] ** -2
    curves[..., SLOPE_PRECISION] = PRIOR_SD[1] ** -2
    share = 1.0 / (1.0 + np.exp(-PRIOR_LEVEL))
    curves[..., ACCEPTED] = RIVAL_WEIGHT * share
    curves[..., REFUSED] = RIVAL_WEIGHT * (1.0 - share)
    return curves


def said_between(before: Floats, after: Floats, anchor: Floats) -> Floats:
    """Return what was said between two states of the counts, (..., segments, `SAID`).

    `anchor` (...) is in the unit of the counted quotes. Counts that ran back tell nothing.
    """
    grown = after - before
    known = (grown >= 0.0).all(axis=-1)
    said = np.zeros((*grown.shape[:-1], SAID))
    for jobs, total, column, log_column in (
        (ACCEPTED_JOBS, ACCEPTED_SUM, JOBS_IN, LOG_IN),
        (REFUSED_JOBS, REFUSED_SUM, JOBS_OUT, LOG_OUT),
    ):
        count = grown[..., jobs]
        told = known & (count > 0.0) & (grown[..., total] > 0.0)
        mean = np.where(told, grown[..., total], 1.0) / np.where(told, count, 1.0)
        said[..., column] = np.where(told, count, 0.0)
        said[..., log_column] = np.where(told, np.log(mean / anchor[..., None]), 0.0)
    return said


def fold(curves: Floats, said: Floats, load: Floats) -> Floats:
    """Return the curves after an epoch in which this was said, (..., segments, `SAID`).

    `load` (..., segments) are the GPUs that each segment's jobs hold or wait for.
    """
    after = _scored(curves, said)
    _forget(after)
    after[..., [LEVEL, SLOPE, LEVEL_PRECISION, CROSS_PRECISION, SLOPE_PRECISION]] = _learned(
        after, said
    )
    after[..., ACCEPTED] += said[..., JOBS_IN]
    after[..., REFUSED] += said[..., JOBS_OUT]
    after[..., ANSWERED] += said[..., JOBS_IN] + said[..., JOBS_OUT]
    after[..., LOAD] += (1.0 - LOAD_MEMORY) * (load - after[..., LOAD])
    return _judged(after)


def acceptance(curves: Floats, log_quote: Floats) -> Floats:
    """Return the share expected to accept, (..., segments), belief's uncertainty included.

    `log_quote` broadcasts to (..., segments): the log of a quote over the anchor.
    """
    odds, slope = _odds(curves, log_quote), np.exp(curves[..., SLOPE])
    spread = _variance(curves, np.ones_like(odds), -slope * log_quote)
    return _sigmoid(odds / np.sqrt(1.0 + np.pi / 8.0 * spread))


def elasticity(curves: Floats, log_quote: Floats) -> tuple[Floats, Floats, Floats]:
    """Return demand's elasticity at a quote, and the 95 % interval, each (..., segments).

    The middle one is the median; all are below 0, and low is the most elastic.
    """
    slope = np.exp(curves[..., SLOPE])
    share = _sigmoid(_odds(curves, log_quote))
    log_size = curves[..., SLOPE] + np.log1p(-share)
    spread = _variance(curves, -share, 1.0 + share * slope * log_quote)
    sd = SURELY * np.sqrt(spread)
    return -np.exp(log_size), -np.exp(log_size + sd), -np.exp(log_size - sd)


def trusted(curves: Floats) -> Flags:
    """Return which curves have beaten their rival, (..., segments)."""
    found: Flags = curves[..., TRUSTED] > 0.0
    return found


def _scored(curves: Floats, said: Floats) -> Floats:
    """Return the curves with the lead that this epoch's predictions gained or lost."""
    mine = said[..., JOBS_IN] * np.log(acceptance(curves, said[..., LOG_IN])) + said[
        ..., JOBS_OUT
    ] * np.log1p(-acceptance(curves, said[..., LOG_OUT]))
    share = curves[..., ACCEPTED] / (curves[..., ACCEPTED] + curves[..., REFUSED])
    rival = said[..., JOBS_IN] * np.log(share) + said[..., JOBS_OUT] * np.log1p(-share)
    after = curves.copy()
    gained = mine - rival
    after[..., LEAD] = np.maximum(MEMORY * curves[..., LEAD] + gained, FURTHEST_BEHIND)
    after[..., FALLEN] = np.maximum(0.0, curves[..., FALLEN] - gained)
    return after


def _forget(curves: Floats) -> None:
    """Let beliefs go back towards the prior, and counts fade."""
    prior = blank(1, 1)[0, 0]
    kept = MEMORY * _precision(curves)
    fresh = (1.0 - MEMORY) * _precision(prior)
    mean = np.stack([curves[..., LEVEL], curves[..., SLOPE]], axis=-1)
    first = np.array([PRIOR_LEVEL, PRIOR_SLOPE])
    total = kept + fresh
    moved = _solved(total, _times(kept, mean) + _times(fresh, first))
    curves[..., LEVEL], curves[..., SLOPE] = moved[..., 0], moved[..., 1]
    curves[..., LEVEL_PRECISION] = total[..., 0, 0]
    curves[..., CROSS_PRECISION] = total[..., 0, 1]
    curves[..., SLOPE_PRECISION] = total[..., 1, 1]
    for column in (ACCEPTED, REFUSED):
        floor = prior[column]
        curves[..., column] = floor + RIVAL_MEMORY * (curves[..., column] - floor)
    curves[..., ANSWERED] *= MEMORY


def _learned(curves: Floats, said: Floats) -> Floats:
    """Return mean and precision after the answers, (..., 5): Fisher scoring from the belief."""
    before = np.stack([curves[..., LEVEL], curves[..., SLOPE]], axis=-1)
    belief, mean, precision = _precision(curves), before.copy(), _precision(curves)
    for _ in range(STEPS):
        force = -_times(belief, mean - before)
        precision = belief.copy()
        slope = np.exp(mean[..., 1])
        for jobs, log_quote, accepts in (
            (said[..., JOBS_IN], said[..., LOG_IN], 1.0),
            (said[..., JOBS_OUT], said[..., LOG_OUT], 0.0),
        ):
            share = _sigmoid(mean[..., 0] - slope * log_quote)
            toward = np.stack([np.ones_like(slope), -slope * log_quote], axis=-1)
            force += (jobs * (accepts - share))[..., None] * toward
            weight = (jobs * share * (1.0 - share))[..., None, None]
            precision += weight * toward[..., :, None] * toward[..., None, :]
        step = np.clip(_solved(precision, force), -LARGEST_STEP, LARGEST_STEP)
        mean = np.clip(mean + step, (LEVELS[0], SLOPES[0]), (LEVELS[1], SLOPES[1]))
    return np.stack(
        [
            mean[..., 0],
            mean[..., 1],
            precision[..., 0, 0],
            precision[..., 0, 1],
            precision[..., 1, 1],
        ],
        axis=-1,
    )


def _judged(curves: Floats) -> Floats:
    """Return the curves with those that lead trusted, and those that drifted away begun anew."""
    known = curves[..., ANSWERED] >= FEWEST_ANSWERS
    earned = known & (curves[..., LEAD] >= EARNED_NATS)
    keeps = (curves[..., TRUSTED] > 0.0) & (curves[..., LEAD] > 0.0)
    curves[..., TRUSTED] = earned | keeps
    drifted = curves[..., FALLEN] >= DRIFT_NATS
    anew = np.broadcast_to(blank(1, 1)[0, 0], curves.shape).copy()
    anew[..., LOAD] = curves[..., LOAD]
    return np.where(drifted[..., None], anew, curves)


def _odds(curves: Floats, log_quote: Floats) -> Floats:
    odds: Floats = curves[..., LEVEL] - np.exp(curves[..., SLOPE]) * log_quote
    return odds


def _variance(curves: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the variance of a linear form of the belief, its coefficients being these."""
    a, b, c = (curves[..., n] for n in (LEVEL_PRECISION, CROSS_PRECISION, SLOPE_PRECISION))
    found: Floats = (c * level**2 - 2.0 * b * level * slope + a * slope**2) / (a * c - b * b)
    return found


def _precision(curves: Floats) -> Floats:
    cross = curves[..., CROSS_PRECISION]
    rows = ((curves[..., LEVEL_PRECISION], cross), (cross, curves[..., SLOPE_PRECISION]))
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _times(matrix: Floats, vector: Floats) -> Floats:
    product: Floats = (matrix * vector[..., None, :]).sum(axis=-1)
    return product


def _solved(matrix: Floats, vector: Floats) -> Floats:
    """Return the solution of 2 x 2 systems, the same whatever stands beside them."""
    a, b, c = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    u, v = vector[..., 0], vector[..., 1]
    determinant = a * c - b * b
    return np.stack([(c * u - b * v) / determinant, (a * v - b * u) / determinant], axis=-1)


def _sigmoid(odds: Floats) -> Floats:
    share: Floats = 1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0)))
    return share
