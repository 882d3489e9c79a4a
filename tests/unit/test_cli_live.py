"""The live view can be read on the smallest of terminals, and the re-runs do not depend on it."""

from io import StringIO
from threading import Lock
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from builders import pool_state
from gpuloop.loop.settings import Settings
from gpuloop.ops.cli.live import PlainView, screen
from gpuloop.ops.stack.moment import Moment
from gpuloop.ops.stack.services import SERVICES
from gpuloop.ops.stack.tally import Tally
from gpuloop.ops.stack.unit import Phase
from messages_shown import COMMAND, outcome

ALWAYS = [name for name, service in SERVICES.items() if service.profile != "gpu"]


def moment(**changes: object) -> Moment:
    tally = Tally()
    for name in ("a100", "h100", "l4"):
        tally.take(pool_state(name, allocated=220, queued=64, nodes_heard=27), 0)
    for _ in range(20):
        tally.take(COMMAND, 0)
        tally.take(outcome("rejected", "stale_generation"), 0)
    tally.rewards_usd_micros.update(dict.fromkeys(("revenue", "capacity_cost", "energy"), 10**12))
    tally.reward_total_usd_micros = 3 * 10**12
    unit = SimpleNamespace(phase=Phase.READY, restarts=0)
    fields = {
        "phase": "running",
        "supervisor": SimpleNamespace(units=dict.fromkeys(ALWAYS, unit), resident_bytes=10**10),
        "monitor": SimpleNamespace(lock=Lock(), tally=tally),
        "elapsed_seconds": 1e4,
        "phase_seconds": 1e4,
        "stack": SimpleNamespace(settings=Settings()),
    }
    return Moment(**cast(Any, fields | changes))


def shown(moment: Moment, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen(moment, height=height))
    return cast(StringIO, console.file).getvalue().splitlines()


def test_screen_fits_eighty_by_twenty_four_with_nothing_wrapped() -> None:
    trouble = ("no fresh state for 40 s: " + "x" * 200, "observe fails again and again")
    lines = shown(moment(notices=trouble))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("! no fresh state for 40 s")
    table = lines.index(next(line for line in lines if line.startswith("pool"))) + 1
    rows = [line.split() for line in lines[table : table + 3]]
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        (name, "192", "220", "28") for name in ("a100", "h100", "l4")
    ]
    count = len(ALWAYS)
    assert f"processes {count} of {count} ready" in lines[-1]


def test_larger_screen_shows_more_of_what_happened() -> None:
    count = {height: sum("stale_generation" in line for line in shown(moment(), height=height))
             for height in (24, 40)}  # fmt: skip
    assert 0 < count[24] < count[40]


def test_process_that_is_not_ready_is_named() -> None:
    bad = SimpleNamespace(phase=Phase.BACKOFF, restarts=3)
    good = SimpleNamespace(phase=Phase.READY, restarts=0)
    units = SimpleNamespace(units={"twin": good, "observe": bad}, resident_bytes=0)
    last = shown(moment(supervisor=units))[-1]
    assert last == "processes 1 of 2 ready · restarting: observe · restarts: observe 3"


def test_sink_whose_store_is_away_is_told_once_with_its_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView()
    for attempt in (1, 2):
        detail = f"the store is away, attempt {attempt}, GPULOOP_POSTGRES_DSN: refused"
        sink = SimpleNamespace(phase=Phase.UNREADY, detail=detail, restarts=0)
        units = SimpleNamespace(units={"sink-timescale": sink}, resident_bytes=0)
        view.refresh(moment(supervisor=units, monitor=None, notices=()))
    [said] = capsys.readouterr().out.splitlines()
    assert said.endswith(
        "sink-timescale not ready: the store is away, attempt 1, GPULOOP_POSTGRES_DSN: refused"
    )
