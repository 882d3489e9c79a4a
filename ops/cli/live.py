"""Shows a running stack: a live screen on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpuloop.ops.cli.lines import line, usd, when
from gpuloop.ops.stack.run import Moment, View
from gpuloop.ops.stack.tally import Tally
from gpuloop.ops.stack.unit import Phase
from gpuloop.schemas.messages import Message, PoolState
from gpuloop.schemas.units import USD_MICROS

SCREEN_SECONDS: Final = 0.5
SUMMARY_SECONDS: Final = 15.0
HAPPENED: Final = 8
_COLOUR: Final = {
    "ready": "green",
    "failed": "red",
    "restarting": "red",
    "not ready": "yellow",
    "starting": "yellow",
}


@contextmanager
def view() -> Iterator[View]:
    """Return a screen on a terminal, else something that prints lines."""
    if not sys.stdout.isatty():
        yield PlainView()
        return
    console = Console()
    with Live(console=console, refresh_per_second=4, auto_refresh=False) as screen:
        yield ScreenView(screen)


class PlainView:
    """Prints what changes: phases of processes, commands, outcomes, causes; and a summary."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._seen = 0
        self._summary_due = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        typer.echo(text)

    def refresh(self, moment: Moment) -> None:
        """Print what is new since the last time."""
        for name, watched in moment.supervisor.units.items():
            quiet = watched.phase in (Phase.WAITING, Phase.PREPARING)
            if self._phases.get(name) != watched.phase and not quiet:
                detail = f": {watched.detail}" if watched.detail else ""
                self.say(f"{moment.elapsed_seconds:6.1f} s  {name} {watched.phase}{detail}")
            self._phases[name] = watched.phase
        if moment.monitor is None:
            return
        with moment.monitor.lock:
            tally = moment.monitor.tally
            new = min(tally.happenings - self._seen, len(tally.happened))
            happened: list[Message] = list(tally.happened)[len(tally.happened) - new :]
            self._seen = tally.happenings
            summary = _summary(tally)
        for message in happened:
            self.say(line(message))
        if monotonic() >= self._summary_due and moment.phase == "running":
            self._summary_due = monotonic() + SUMMARY_SECONDS
            self.say(f"{moment.elapsed_seconds:6.1f} s  {summary}")


class ScreenView:
    """Redraws one screen: fleet, decisions, what happened, money, processes."""

    def __init__(self, screen: Live) -> None:
        self._screen: Final = screen
        self._due = 0.0

    def say(self, text: str) -> None:
        """Print one line above the screen."""
        self._screen.console.print(text)

    def refresh(self, moment: Moment) -> None:
        """Redraw, at most twice a second."""
        if monotonic() < self._due:
            return
        self._due = monotonic() + SCREEN_SECONDS
        parts = [_headline(moment)]
        if moment.monitor is not None:
            with moment.monitor.lock:
                parts += _loop(moment.monitor.tally)
        self._screen.update(Group(*parts, _processes(moment)), refresh=True)


def _summary(tally: Tally) -> str:
    refused = sum(tally.refused.values())
    return (
        f"{tally.decisions} decisions, {tally.applied} commands applied, {refused} refused, "
        f"{tally.causes} causes, alpha {max(tally.alpha.values(), default=0.0):.2f}, "
        f"reward {usd(tally.reward_total_usd_micros)}"
    )


def _headline(moment: Moment) -> Panel:
    settings = moment.stack.settings
    text = Text.assemble(
        ("gpuloop ", "bold"),
        f"{moment.phase} for {moment.elapsed_seconds:.0f} s · Kafka at "
        f"{settings.bootstrap_servers} · speed {settings.speed:g}x · "
        f"{moment.supervisor.resident_bytes / 2**30:.2f} GiB resident",
    )
    return Panel(text, border_style="dim")


def _loop(tally: Tally) -> list[Panel]:
    happened = _lines(list(tally.happened)[-HAPPENED:])
    money = Text(_summary(tally) + "\n")
    parts = sorted(tally.rewards_usd_micros.items())
    money.append("   ".join(f"{name} {usd(amount)}" for name, amount in parts), "dim")
    decisions = _lines([decision for _, decision in sorted(tally.latest.items())])
    return [
        Panel(_fleet(tally), title="fleet", title_align="left"),
        Panel(decisions, title="last decisions", title_align="left"),
        Panel(happened, title="commands, outcomes, causes", title_align="left"),
        Panel(money, title="rewards", title_align="left"),
    ]


def _lines(messages: Sequence[Message]) -> Text:
    """Return one line each, cut where the screen ends: the whole is on the topic."""
    text = "\n".join(line(message) for message in messages) or "nothing yet"
    return Text(text, no_wrap=True, overflow="ellipsis")


def _fleet(tally: Tally) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (
        ("pool", False), ("fleet time", False), ("GPUs", True), ("busy", True), ("queued", True),
        ("on demand", True), ("spot", True), ("ordered", True), ("quote $/GPU-h", True),
        ("busy share", False),
    ):  # fmt: skip
        table.add_column(name, justify="right" if right else "left")
    for name, pool in sorted(tally.pools.items()):
        table.add_row(name, when(pool.tick_us), *_pool(pool))
    return table


def _pool(pool: PoolState) -> list[str]:
    nodes = {tranche.billing: tranche.nodes_ready for tranche in pool.tranches}
    ordered = sum(len(tranche.pending_arrival_us) for tranche in pool.tranches)
    gpus = sum(nodes.values()) * pool.gpus_per_node
    share = min(pool.gpus_allocated / gpus, 1.0) if gpus else 0.0
    return [
        str(gpus),
        str(pool.gpus_allocated),
        str(sum(queue.gpus for queue in pool.queues)),
        str(nodes.get("on_demand", "-")),
        str(nodes.get("spot", "-")),
        str(ordered),
        f"{pool.quote_usd_micros_per_gpu_hour / USD_MICROS:.2f}",
        "█" * round(share * 20) + "░" * (20 - round(share * 20)),
    ]


def _processes(moment: Moment) -> Panel:
    text = Text()
    for name, watched in moment.supervisor.units.items():
        again = f" ({watched.restarts} restarts)" if watched.restarts else ""
        text.append(f"{name} ", "bold")
        text.append(f"{watched.phase}{again}   ", _COLOUR.get(watched.phase, "dim"))
    return Panel(text, title="processes", title_align="left", border_style="dim")
