"""Shows a running stack: a live screen on a terminal, plain lines anywhere else.

Every line of the screen is cut where the terminal ends and none is wrapped but the last, so that
80 by 24 characters are enough; what is cut stands whole on its topic.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpuloop.ops.cli.lines import clock, line, usd, when
from gpuloop.ops.stack.moment import Moment, View
from gpuloop.ops.stack.state import NO_ROOM
from gpuloop.ops.stack.tally import Tally
from gpuloop.ops.stack.unit import Phase
from gpuloop.schemas.messages import Decision, PolicyVersion, PoolState
from gpuloop.schemas.units import USD_MICROS

SCREEN_SECONDS: Final = 0.5
SUMMARY_SECONDS: Final = 15.0
NOTICE_SECONDS: Final = 30.0
PROGRESS_SECONDS: Final = 5.0
POOLS: Final = 8
BAR: Final = 10
_COLOUR: Final = {
    "ready": "green",
    "failed": "red",
    "restarting": "red",
    "not ready": "yellow",
    "starting": "yellow",
}


@contextmanager
def view(gone: Callable[[], None]) -> Iterator[View]:
    """Return a screen on a terminal, else something that prints lines.

    `gone` is called when nobody reads those lines any more.
    """
    if not sys.stdout.isatty():
        yield PlainView(gone)
        return
    console = Console()
    # What libraries write to standard error goes to the supervisor's log, not onto the screen.
    with Live(console=console, auto_refresh=False, redirect_stderr=False) as screen:
        yield ScreenView(screen)


class PlainView:
    """Prints what changes: phases of processes, commands, outcomes, causes; and a summary."""

    def __init__(self, gone: Callable[[], None] = lambda: None) -> None:
        self._gone: Final = gone
        self._phases: dict[str, Phase] = {}
        self._seen = 0
        self._summary_due = 0.0
        self._notices_due: dict[str, float] = {}
        self._progress_due = 0.0

    def say(self, text: str) -> None:
        """Print one line; once nobody reads, say so to whom it concerns and print no more."""
        try:
            typer.echo(text)
        except OSError as error:
            if error.errno in NO_ROOM:
                return  # Its lines go to a file on a full disk; what runs must not end for it.
            if not isinstance(error, BrokenPipeError):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            self._gone()

    def progress(self, what: str, share: float) -> None:
        """Print how far it has come, every few seconds."""
        if monotonic() >= self._progress_due:
            self._progress_due = monotonic() + PROGRESS_SECONDS
            self.say(f"{what}: {share:.0%}")

    def refresh(self, moment: Moment) -> None:
        """Print what is new since the last time."""
        for name, watched in moment.supervisor.units.items():
            quiet = watched.phase in (Phase.WAITING, Phase.PREPARING)
            told = watched.phase is Phase.FAILED and watched.trouble() in moment.notices
            if self._phases.get(name) != watched.phase and not quiet and not told:
                detail = f": {watched.detail}" if watched.detail else ""
                self.say(f"{moment.elapsed_seconds:6.1f} s  {name} {watched.phase}{detail}")
            self._phases[name] = watched.phase
        self._notice(moment)
        if moment.monitor is None:
            return
        with moment.monitor.lock:
            tally = moment.monitor.tally
            new = min(tally.happenings - self._seen, len(tally.happened))
            happened = list(tally.happened)[len(tally.happened) - new :]
            self._seen = tally.happenings
            summary = _summary(tally)
        for message, timestamp_ms in happened:
            self.say(line(message, timestamp_ms))
        if monotonic() >= self._summary_due and moment.phase == "running":
            self._summary_due = monotonic() + SUMMARY_SECONDS
            self.say(f"{moment.elapsed_seconds:6.1f} s  {summary}")

    def _notice(self, moment: Moment) -> None:
        """Print what a person must know when it begins, and again while it lasts."""
        now = monotonic()
        kinds = {re.sub(r"\d+", "", notice): notice for notice in moment.notices}
        self._notices_due = {k: due for k, due in self._notices_due.items() if k in kinds}
        for kind, notice in kinds.items():
            if now >= self._notices_due.get(kind, 0.0):
                self._notices_due[kind] = now + NOTICE_SECONDS
                self.say(f"{moment.elapsed_seconds:6.1f} s  ! {notice}")


class ScreenView:
    """Redraws one screen: fleet, decisions, what happened, money, processes."""

    def __init__(self, screen: Live) -> None:
        self._screen: Final = screen
        self._due = 0.0
        self._shown: RenderableType = ""
        self._phase = ""

    def say(self, text: str) -> None:
        """Print one line above the screen."""
        self._screen.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, what: str, share: float) -> None:
        """Show how far it has come under the screen."""
        self._screen.update(Group(self._shown, Text(f"{what}: {share:.0%}")), refresh=True)

    def refresh(self, moment: Moment) -> None:
        """Redraw, at most twice a second, and at once when the phase changes."""
        if monotonic() < self._due and moment.phase == self._phase:
            return
        self._due, self._phase = monotonic() + SCREEN_SECONDS, moment.phase
        self._shown = screen(moment, height=self._screen.console.size.height)
        self._screen.update(self._shown, refresh=True)


def screen(moment: Moment, *, height: int) -> Group:
    """Return the whole screen for a terminal of `height` lines."""
    tally = Tally()
    if moment.monitor is None:
        return Group(*_headline(moment, tally), _processes(moment))
    with moment.monitor.lock:
        tally = moment.monitor.tally
        top, money = _headline(moment, tally), _money(tally)
        fleet: list[RenderableType] = [_title("fleet"), _fleet(tally)]
        decided = [_title("last decisions"), *_decisions(tally)]
        rows = min(len(tally.pools), POOLS) + 1
        left = height - len(top) - rows - len(decided) - len(money) - 6
        happened = [_title("commands, outcomes, causes"), *_happened(tally, max(left, 2))]
    return Group(*top, *fleet, *decided, *happened, _title("rewards"), *money, _processes(moment))


def _summary(tally: Tally) -> str:
    refused = sum(tally.refused.values())
    return (
        f"{tally.decisions} decisions, {tally.applied} commands applied, {refused} refused, "
        f"{tally.causes} causes, alpha {max(tally.alpha.values(), default=0.0):.2f}, "
        f"reward {usd(tally.reward_total_usd_micros)}"
    )


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _title(text: str) -> Text:
    return _line(text, "bold cyan")


def _headline(moment: Moment, tally: Tally) -> list[Text]:
    settings = moment.stack.settings
    fleet = f" · fleet time {when(tally.fleet_us)[:16]}" if tally.fleet_us else ""
    text = f"gpuloop {moment.phase} for {moment.phase_seconds:.0f} s · {settings.speed:g}x{fleet}"
    memory = f"{moment.supervisor.resident_bytes / 2**30:.2f} GiB resident"
    keys = "" if moment.phase == "stopping" else " · Ctrl-C stops"
    kafka = f"Kafka at {settings.bootstrap_servers} · {memory}{keys}"
    notices = [_line(f"! {notice}", "bold red") for notice in moment.notices]
    return [_line(text, "bold"), _line(kafka, "dim"), *notices]


def _decisions(tally: Tally) -> list[Text]:
    latest = [decision for _, decision in sorted(tally.latest.items())][:POOLS]
    return [_line(_decided(decision)) for decision in latest] or [_line("none yet", "dim")]


def _decided(decision: Decision) -> str:
    summary = decision.summary.removeprefix(f"{decision.pool}: ")
    return f"{decision.pool:<6}{summary}  {decision.why_not}"


def _happened(tally: Tally, count: int) -> list[Text]:
    found = []
    for message, timestamp_ms in list(tally.happened)[-count:]:
        wall = "wall " if isinstance(message, PolicyVersion) else ""
        found.append(_line(wall + clock(line(message, timestamp_ms))))
    return found or [_line("nothing yet", "dim")]


def _money(tally: Tally) -> list[Text]:
    refused = sum(tally.refused.values())
    amounts = sorted(tally.rewards_usd_micros.items(), key=lambda part: (-abs(part[1]), part[0]))
    parts = [f"{name} {amount / USD_MICROS:+,.0f}" for name, amount in amounts if amount]
    alpha = max(tally.alpha.values(), default=0.0)
    return [
        _line(
            f"{usd(tally.reward_total_usd_micros)} booked · "
            f"{tally.decisions} decisions · {tally.applied} applied · {refused} refused · "
            f"alpha {alpha:.2f}"
        ),
        _line(" · ".join(parts) or "nothing booked yet", "dim"),
    ]


def _fleet(tally: Tally) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("pool", "GPUs", "busy", "draining", "queued", "on demand", "spot", "ordered",
                 "$/GPU-h"):  # fmt: skip
        table.add_column(name, justify="left" if name == "pool" else "right", no_wrap=True)
    table.add_column("busy", no_wrap=True)
    for name, pool in sorted(tally.pools.items())[:POOLS]:
        table.add_row(name, *_pool(pool))
    return table


def draining_gpus(pool: PoolState) -> int:
    """Return the GPUs that are given back and still heard of, as far as it can be seen.

    A node that drains counts as rented no longer, and its jobs run on; so more GPUs can be busy
    than are rented.
    """
    ready = sum(tranche.nodes_ready for tranche in pool.tranches)
    heard = (pool.nodes_heard - ready) * pool.gpus_per_node
    return max(heard, pool.gpus_allocated - ready * pool.gpus_per_node, 0)


def _pool(pool: PoolState) -> list[str]:
    nodes = {tranche.billing: tranche.nodes_ready for tranche in pool.tranches}
    ordered = sum(len(tranche.pending_arrival_us) for tranche in pool.tranches)
    gpus = sum(nodes.values()) * pool.gpus_per_node
    share = min(pool.gpus_allocated / gpus, 1.0) if gpus else 0.0
    return [
        str(gpus),
        str(pool.gpus_allocated),
        str(draining_gpus(pool)),
        str(sum(queue.gpus for queue in pool.queues)),
        str(nodes.get("on_demand", "-")),
        str(nodes.get("spot", "-")),
        str(ordered),
        f"{pool.quote_usd_micros_per_gpu_hour / USD_MICROS:.2f}",
        "█" * round(share * BAR) + "░" * (BAR - round(share * BAR)),
    ]


def _processes(moment: Moment) -> Text:
    """Return how many processes are ready, and which are not or were restarted."""
    units = moment.supervisor.units
    ready = [name for name, watched in units.items() if watched.phase is Phase.READY]
    text = Text("processes ", "bold cyan")
    text.append(f"{len(ready)} of {len(units)} ready", "green" if len(ready) == len(units) else "")
    others: dict[str, list[str]] = {}
    for name, watched in units.items():
        if watched.phase is not Phase.READY:
            others.setdefault(str(watched.phase), []).append(name)
    for phase, names in others.items():
        text.append(f" · {phase}: {', '.join(names)}", _COLOUR.get(phase, "dim"))
    again = [f"{name} {watched.restarts}" for name, watched in units.items() if watched.restarts]
    if again:
        text.append(f" · restarts: {', '.join(again)}", "yellow")
    return text
