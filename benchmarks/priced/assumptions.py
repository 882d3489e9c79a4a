"""Worlds that differ in what is assumed: how elastic demand is, how spot capacity comes and goes.

An elasticity is that of every segment at the first quote; the share that accepts that quote stays
what it is, so worlds differ in the slope of demand alone.
"""

from math import exp, log
from statistics import NormalDist
from typing import Final

from msgspec.structs import replace

from gpuloop.twin.config import SegmentConfig, TwinConfig

ELASTICITIES: Final = (-0.3, -0.6, -1.1, -2.0)
RECLAIMS: Final = (0.3, 3.0)
CALIBRATED: Final = "as calibrated"
FALLING: Final = "a market that falls"
SPOT_MARKUP: Final = 0.56
"""First quote over the on-demand list price: 1.4 times what spot costs on the first day."""

_NORMAL: Final = NormalDist()


def worlds(config: TwinConfig) -> dict[str, TwinConfig]:
    """Return the worlds by what is assumed in them."""
    found = {CALIBRATED: config}
    for elasticity in ELASTICITIES:
        segments = {name: scaled(one, elasticity) for name, one in config.segments.items()}
        found[f"elasticity {elasticity}"] = replace(config, segments=segments)
    for factor in RECLAIMS:
        found[f"spot reclaims x {factor}"] = replace(
            config,
            pools=tuple(
                replace(one, spot_reclaims_per_node_hour=one.spot_reclaims_per_node_hour * factor)
                for one in config.pools
            ),
        )
    found[FALLING] = replace(
        config,
        pools=tuple(
            replace(
                one,
                billings=("spot",),
                spot_nodes=one.on_demand_nodes,
                on_demand_nodes=0,
                quote_over_list=SPOT_MARKUP,
            )
            if one.name == "h100"
            else one
            for one in config.pools
        ),
    )
    return found


def scaled(segment: SegmentConfig, elasticity: float) -> SegmentConfig:
    """Return a segment of this elasticity at the first quote; as many accept that quote."""
    share = accepting(segment)
    z = _NORMAL.inv_cdf(share)
    sigma = _NORMAL.pdf(z) / share / abs(elasticity)
    return replace(segment, sigma=sigma, median=exp(z * sigma))


def accepting(segment: SegmentConfig, log_price: float = 0.0) -> float:
    """Return the share that accepts a quote, given as the log of it over the first one."""
    return _NORMAL.cdf((_log_median(segment) - log_price) / segment.sigma)


def elasticity_at(segment: SegmentConfig, log_price: float) -> float:
    """Return the true elasticity of a segment at a quote."""
    z = (_log_median(segment) - log_price) / segment.sigma
    return -_NORMAL.pdf(z) / (segment.sigma * _NORMAL.cdf(z))


def _log_median(segment: SegmentConfig) -> float:
    return log(segment.median)
