"""How early and how late telemetry may come.

Whoever remembers by event time can be made to forget by one sample from the far future, so such
samples are refused; a source may run ahead of the fleet clock by less than what is remembered.
"""

from typing import Final

from gpuloop.schemas.horizon import SOURCE_AHEAD_US, refuse_ahead

REMEMBER_US: Final = SOURCE_AHEAD_US
"""How long silent nodes, ended jobs and counted refusals are kept to recognise late telemetry."""
AHEAD_US: Final = REMEMBER_US


def refuse_future(event_time_us: int, now_us: int) -> None:
    """Raise `BadInput` for telemetry dated more than `AHEAD_US` after fleet time `now_us`."""
    refuse_ahead(event_time_us, now_us, AHEAD_US)
