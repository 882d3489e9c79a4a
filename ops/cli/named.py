"""Whether what a control names exists: a misspelt pool would be obeyed by nobody, in silence."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

import typer

from gpuloop.loop.shells.broker import Broker, BrokerError
from gpuloop.ops.cli.tail import records
from gpuloop.ops.stack.controls import EVERY_POOL
from gpuloop.ops.stack.errors import StackError
from gpuloop.schemas.codec import BadInput, decode
from gpuloop.schemas.messages import PoolState
from gpuloop.schemas.messages.control import (
    BreakerReset,
    ControlBody,
    Freeze,
    Objectives,
    PolicyStage,
    SetMode,
)

RECENT: Final = 200


def refuse_unknown(log: Broker, body: ControlBody) -> None:
    """Refuse a pool or a policy that does not exist; say what cannot be known yet.

    Raises:
        StackError: there is no such pool or policy.

    """
    match body:
        case SetMode(pool=pool) | Objectives(pool=pool) | BreakerReset(pool=pool):
            _check_pool(log, pool)
        case PolicyStage(pool=pool, policy_id=policy_id):
            _check_pool(log, pool)
            _check_policy(log, policy_id)
        case Freeze(target=target, until_us=until_us) if until_us:
            pools = _pools(log)
            if target not in (EVERY_POOL, *pools):
                _warn(f"{target} is no pool ({_listed(pools)}); taken for a job")
        case _:
            pass


def _check_pool(log: Broker, pool: str) -> None:
    if pool == EVERY_POOL:
        return
    pools = _pools(log)
    if not pools:
        _warn(f"no pool has been heard of yet, so nobody can say whether {pool} is one")
    elif pool not in pools:
        raise StackError(f"no pool {pool}{_meant(pool, pools)}; there are {_listed(pools)}")


def _check_policy(log: Broker, policy_id: str) -> None:
    from gpuloop.loop.learn.registry import published, shipped

    known = [version.policy_id for version in published(log)]
    with_us = shipped()
    known += [with_us[0].policy_id] if with_us is not None else []
    if policy_id not in known:
        raise StackError(
            f"no policy {policy_id}{_meant(policy_id, known)}; see `gpuloop policy list`"
        )


def bring_back(log: Broker, body: ControlBody) -> None:
    """Publish an old version again before it gets a part: deciders keep only the newest ones.

    Raises:
        StackError: it cannot be published, so no decider could follow the control.

    """
    from gpuloop.loop.decide.library import KEPT_VERSIONS
    from gpuloop.loop.learn.registry import publish_again, published

    if not isinstance(body, PolicyStage) or body.stage == "retired":
        return
    old = [one for one in published(log)[:-KEPT_VERSIONS] if one.policy_id == body.policy_id]
    if not old:
        return
    why = f"deciders keep the newest {KEPT_VERSIONS} versions, and {body.policy_id} is older"
    try:
        found = publish_again(log, old[0])
    except BrokerError as error:
        raise StackError(f"{why}; it could not be published again: {error}") from None
    if not found:
        raise StackError(f"{why}; its weights are on `policies.weights` no more")


def _pools(log: Broker) -> list[str]:
    """Return the pools whose state was told last."""
    found = set()
    for record in records(log, ("state.pools",), last=RECENT, follow=False):
        try:
            message = decode(record)
        except BadInput:
            continue
        if isinstance(message, PoolState):
            found.add(message.pool)
    return sorted(found)


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _listed(pools: Sequence[str]) -> str:
    return f"{', '.join(pools) or 'none yet'}, or '*' for all"


def _warn(text: str) -> None:
    typer.echo(f"gpuloop: {text}", err=True)
