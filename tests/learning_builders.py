"""Decisions and rewards as a learner reads them, one control tick apart."""

from collections.abc import Sequence

from gpuloop.schemas.messages import Decision, Reward
from gpuloop.schemas.policy import CONTROL_TICK_US, DIMENSIONS, FEATURE_NAMES, FEATURE_VERSION

RULE = (10.0, 4.0, 0.0, 2.0)
LIMIT = (2.0, 2.0, 1.0, 0.1)


def decision(
    tick: int,
    *,
    pool: str = "p",
    joint: float = 0.5,
    executed: Sequence[float] | None = None,
    observation: Sequence[float] | None = None,
    version: str = FEATURE_VERSION,
    level: str = "cluster",
) -> Decision:
    """Return the decision of a tick; what is executed is what was wished, unless it is given."""
    size = len(FEATURE_NAMES)
    wish = tuple(r + joint * x for r, x in zip(RULE, LIMIT, strict=True))
    return Decision(
        fleet="f",
        decision_id=f"f/{pool}/{level}/1/{tick}",
        pool=pool,
        level=level,
        epoch=1,
        tick_us=tick * CONTROL_TICK_US,
        dimensions=DIMENSIONS,
        feature_version=version,
        observation=(float(tick),) * size if observation is None else tuple(observation),
        feature_ages_us=(0,) * size,
        feature_quality=(1.0,) * size,
        feasible_low=(0.0,) * 4,
        feasible_high=(50.0,) * 4,
        delta_limit=LIMIT,
        rule_action=RULE,
        policy_action=(joint,) * 4,
        joint_action=(joint,) * 4,
        executed_action=wish if executed is None else tuple(executed),
        alpha=1.0,
        exploration=(0.0,) * 4,
        log_probability=0.0,
        policy_id="rule",
        policy_digest="0" * 64,
        normaliser_digest="0" * 64,
        envelope_digest="0" * 64,
        arm="champion",
        assignment_probability=1.0,
        forecast_id="",
        modes={},
        adjustments=(),
        command_ids=(),
        stale_inputs=(),
        influences=(),
        summary="",
        why_not="",
    )


def reward(tick: int, *, pool: str = "p", usd: int = 20, censored: bool = False) -> Reward:
    """Return what the window after a tick's decision earned."""
    return Reward(
        fleet="f",
        pool=pool,
        decision_id=f"f/{pool}/cluster/1/{tick}",
        start_us=tick * CONTROL_TICK_US,
        end_us=(tick + 1) * CONTROL_TICK_US,
        components={"revenue": usd * 1_000_000},
        total_usd_micros=usd * 1_000_000,
        overlap=0,
        censored=censored,
        definition="ledger/1",
    )
