"""How far ahead of the fleet clock a message may be dated.

Whoever remembers by time can be made deaf for good by one message from the far future: all that
follows would be older than what is known.
"""

from typing import Final

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.units import HOUR_US, SECOND_US

SOURCE_AHEAD_US: Final = HOUR_US
"""For what a source dates by a clock of its own, and what repeats that date."""

STATE_AHEAD_US: Final = 3 * HOUR_US
"""For what our own components date by the fleet clock. They all follow it, but where the world
stood still while its clock ran on, who starts after the clock was set back meets what others dated
by it: two minutes of wall time, which are two hours at the usual pace."""


def refuse_ahead(time_us: int, now_us: int, most_us: int) -> None:
    """Raise `BadInput` for a message dated more than `most_us` after fleet time `now_us`."""
    if time_us > now_us + most_us:
        ahead_s = (time_us - now_us) // SECOND_US
        raise BadInput("out_of_range", f"dated {ahead_s} s ahead of the fleet clock")
