"""`gpuloop policy`: the versions on `policies`; the parts they play are set by `control policy`."""

from typing import Annotated, Final

import typer

from gpuloop.ops.cli.context import (
    AsJson,
    BootstrapServers,
    StateDir,
    broker,
    print_json,
    settings,
    show,
)
from gpuloop.ops.cli.lines import when
from gpuloop.ops.stack.errors import StackError

app: Final = typer.Typer(help="Policy versions and what is known of them.", no_args_is_help=True)


@app.command("list")
def list_policies(
    as_json: AsJson = False, state_dir: StateDir = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """List the policy versions that the learner has published."""
    from gpuloop.loop.learn.registry import published

    with broker(settings(state_dir, bootstrap_servers)) as log:
        versions = published(log)
    show(
        [
            {
                "policy": version.policy_id,
                "algorithm": version.algorithm,
                "version": version.version,
                "alpha_earned": version.alpha,
                "made": when(version.created_wall_us) if version.created_wall_us else "shipped",
                "summary": version.summary,
            }
            for version in versions
        ],
        as_json=as_json,
        empty="no policy has been published",
    )


@app.command("show")
def show_policy(
    policy_id: Annotated[str, typer.Argument(help="A version, see `gpuloop policy list`.")],
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Print everything about one version, as JSON."""
    from gpuloop.loop.learn.registry import published

    with broker(settings(state_dir, bootstrap_servers)) as log:
        for version in published(log):
            if version.policy_id == policy_id:
                print_json(version)
                return
    raise StackError(f"no policy {policy_id}; see `gpuloop policy list`")
