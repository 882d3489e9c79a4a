"""`gpuloop control`: what people impose on the loop, written to `controls` and `approvals`."""

from typing import Annotated, Final, Literal

import msgspec
import typer

from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.timekeeping import Timekeeper, newest_anchors
from gpuloop.ops.cli.context import (
    AsJson,
    BootstrapServers,
    By,
    Reason,
    StateDir,
    broker,
    seconds,
    settings,
    show,
    user,
)
from gpuloop.ops.cli.lines import line, when
from gpuloop.ops.cli.named import bring_back, refuse_unknown
from gpuloop.ops.cli.tail import records
from gpuloop.ops.stack import controls
from gpuloop.ops.stack.errors import StackError
from gpuloop.schemas.codec import BadInput, decode, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Approval, Control, Message, Proposal
from gpuloop.schemas.messages.control import (
    BreakerReset,
    ControlBody,
    Freeze,
    Kill,
    Objectives,
    PolicyStage,
    SetMode,
    ended_by,
    scope,
)
from gpuloop.schemas.units import SECOND_US, USD_MICROS

EVERYTHING: Final = 1_000_000

app: Final = typer.Typer(
    help="Steer the loop: modes, freezes, the kill switch, objectives, policies, approvals.",
    no_args_is_help=True,
)

Pool = Annotated[str, typer.Argument(help="A pool, or '*' for every pool.")]
Actuators = Literal["scaling", "pricing", "migration", "remediation", "sharing"]
Modes = Literal["off", "shadow", "advise", "auto"]
Usd = Annotated[float | None, typer.Option(help="USD per GPU-hour.", min=0)]


def _say(
    body: ControlBody, state_dir: StateDir, servers: BootstrapServers, by: str, reason: str
) -> None:
    chosen = settings(state_dir, servers)
    with broker(chosen) as log:
        refuse_unknown(log, body)
        bring_back(log, body)
        controls.publish(log, [body], fleet=chosen.fleet, by=by or user(), reason=reason)
    typer.echo(f"{_done(body)} on fleet {chosen.fleet}")


def _done(body: ControlBody) -> str:
    """Return in plain words what holds now."""
    match body:
        case Kill(engaged=True):
            return "kill switch set: nothing new starts until `gpuloop control clear`,"
        case Kill(engaged=False):
            return "kill switch cleared"
        case Freeze(target=target, until_us=0):
            return f"{target} thawed"
        case Freeze(target=target, until_us=until_us):
            return f"{target} frozen until {when(until_us)} fleet time"
        case _:
            return f"{scope(body)} set"


@app.command("list")
def list_controls(
    as_json: AsJson = False, state_dir: StateDir = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """List what holds now: the last word of every scope."""
    with broker(settings(state_dir, bootstrap_servers)) as log:
        held: dict[str, Control] = {}
        for found in _messages(log, "controls"):
            if not isinstance(found, Control):
                continue
            for name in ended_by(found.body, {name: one.body for name, one in held.items()}):
                del held[name]
            held[scope(found.body)] = found
    show(
        [
            {"scope": name, "by": held[name].by, "reason": held[name].reason}
            | {"says": _says(held[name].body)}
            for name in sorted(held)
        ],
        as_json=as_json,
        empty="nobody has said anything on controls",
    )


@app.command()
def mode(
    pool: Pool,
    actuator: Actuators,
    to: Annotated[Modes, typer.Argument(help="Who may act.")],
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Grant a mode to an actuator on a pool: off, shadow, advise or auto."""
    body = SetMode(pool=pool, actuator=actuator, mode=to)
    _say(body, state_dir, bootstrap_servers, by, reason)


@app.command()
def freeze(
    target: Annotated[str, typer.Argument(help="A target, a pool, or '*'.")],
    for_: Annotated[str, typer.Option("--for", help="How long, in fleet time.")] = "1h",
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Hold a target as it is for some fleet time."""
    span_us = round(seconds(for_) * SECOND_US)
    chosen = settings(state_dir, bootstrap_servers)
    with broker(chosen) as log:
        until = _fleet_now_us(log, chosen.fleet) + span_us
    _say(Freeze(target=target, until_us=until), state_dir, bootstrap_servers, by, reason)


@app.command()
def thaw(
    target: Annotated[str, typer.Argument(help="What was frozen.")],
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """End a freeze."""
    _say(Freeze(target=target, until_us=0), state_dir, bootstrap_servers, by, reason)


@app.command()
def kill(
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Stop starting anything, now and until a person clears it."""
    _say(Kill(engaged=True), state_dir, bootstrap_servers, by, reason)


@app.command()
def clear(
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Clear the kill switch; the decider goes on under a new epoch."""
    _say(Kill(engaged=False), state_dir, bootstrap_servers, by, reason)


@app.command()
def objectives(
    pool: Pool,
    nodes_max: Annotated[int | None, typer.Option(min=0, help="Most nodes.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Most USD per hour.")] = None,
    price_floor: Usd = None,
    price_ceiling: Usd = None,
    wait_target: Annotated[str | None, typer.Option(help="Wait aimed at, e.g. 5m.")] = None,
    utilisation_target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of GPUs to keep busy.")
    ] = None,
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Set what people want of a pool; what is not given is not limited."""
    body = Objectives(
        pool=pool,
        nodes_max=nodes_max,
        usd_micros_per_hour_max=_micros(budget),
        price_floor_usd_micros=_micros(price_floor),
        price_ceiling_usd_micros=_micros(price_ceiling),
        wait_target_us=None if wait_target is None else round(seconds(wait_target) * SECOND_US),
        utilisation_target=utilisation_target,
    )
    _say(body, state_dir, bootstrap_servers, by, reason)


@app.command()
def policy(
    policy_id: Annotated[str, typer.Argument(help="A version, see `gpuloop policy list`.")],
    pool: Annotated[str, typer.Option(help="A pool, or '*'.")] = "*",
    stage: Annotated[
        Literal["shadow", "canary", "champion", "retired"], typer.Option(help="Its part.")
    ] = "shadow",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Share of its offset.")] = 0.0,
    exploration: Annotated[float, typer.Option(min=0, max=0.5, help="Share of draws.")] = 0.0,
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Give a policy version its part on a pool."""
    body = PolicyStage(
        pool=pool, policy_id=policy_id, stage=stage, alpha=alpha, exploration=exploration
    )
    _say(body, state_dir, bootstrap_servers, by, reason)


@app.command("reset-breaker")
def reset_breaker(
    pool: Pool,
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Close a tripped breaker."""
    _say(BreakerReset(pool=pool), state_dir, bootstrap_servers, by, reason)


Proposed = Annotated[str, typer.Argument(help="The first digits of the command's id.")]


@app.command()
def approve(
    command: Proposed,
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Say yes to one waiting command, exactly as it was shown."""
    _answer(command, True, by or user(), reason, settings(state_dir, bootstrap_servers))


@app.command()
def veto(
    command: Proposed,
    by: By = "",
    reason: Reason = "",
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Say no to one waiting command."""
    _answer(command, False, by or user(), reason, settings(state_dir, bootstrap_servers))


def _answer(prefix: str, approve: bool, by: str, reason: str, chosen: Settings) -> None:
    with broker(chosen) as log:
        newest = {
            found.command.command_id: found
            for found in _messages(log, "proposals")
            if isinstance(found, Proposal) and found.command.command_id.startswith(prefix)
        }
        waiting = [found for found in newest.values() if found.state == "awaiting"]
        if len(waiting) != 1:
            states = ", ".join(found.state for found in newest.values()) or "unknown"
            raise StackError(
                f"{len(waiting)} commands that wait for a person begin with {prefix} ({states})"
            )
        command = waiting[0].command
        answer = Approval(
            fleet=chosen.fleet,
            command_id=command.command_id,
            digest=command.digest,
            approve=approve,
            by=by,
            reason=reason,
        )
        event = derived_event_id("approvals", (command.command_id, by, str(wall_us())))
        source = f"gpuloop/{chosen.fleet}/people/{by}"
        log.produce(
            [encode("approvals", command.command_id, answer, event_id=event, source=source)]
        )
    typer.echo(f"{'approved' if approve else 'vetoed'}: {line(waiting[0])}")


def _messages(log: Broker, topic: str) -> list[Message]:
    """Return everything that a topic still holds, oldest first, without what is not understood."""
    found = []
    for record in records(log, (topic,), last=EVERYTHING, follow=False):
        try:
            found.append(decode(record))
        except BadInput:
            continue
    return found


def _fleet_now_us(log: Broker, fleet: str) -> int:
    keeper, wall = Timekeeper(), wall_us()
    keeper.open(newest_anchors(log, fleet), wall)
    if keeper.clock is None:
        raise StackError("no fleet has told its time on telemetry.clock yet")
    return keeper.clock.now_us(wall)


def _micros(usd: float | None) -> int | None:
    return None if usd is None else round(usd * USD_MICROS)


def _says(body: ControlBody) -> str:
    plain = msgspec.to_builtins(body)
    return " ".join(f"{k}={v}" for k, v in plain.items() if v is not None and k != "kind")
