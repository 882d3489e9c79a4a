"""The few scalar types that messages are made of, with their units and ranges.

Times are microseconds since the Unix epoch on the fleet clock unless a name says `wall`; money is
millionths of a US dollar; ratios run from 0 to 1; a missing value is null, never a sentinel.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from msgspec import Meta

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
USD_MICROS: Final = 1_000_000

INT64_MAX: Final = 2**63 - 1
MAX_GPUS_PER_NODE: Final = 64
MAX_NODES_PER_JOB: Final = 4096

TimeUs = Annotated[
    int, Meta(ge=0, le=INT64_MAX, description="microseconds since 1970, fleet clock")
]
WallUs = Annotated[int, Meta(ge=0, le=INT64_MAX, description="microseconds since 1970, wall clock")]
DurationUs = Annotated[int, Meta(ge=0, le=INT64_MAX, description="microseconds")]
UsdMicros = Annotated[
    int, Meta(ge=-INT64_MAX, le=INT64_MAX, description="millionths of a US dollar")
]
Price = Annotated[
    int, Meta(ge=0, le=INT64_MAX, description="millionths of a US dollar, not negative")
]
Count = Annotated[int, Meta(ge=0, le=INT64_MAX)]
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(ge=0.0)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=4000)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, lower-case hex")]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def calendar_time(time_us: int) -> datetime | None:
    """Return a time exactly; None outside the years 1 to 9999, for which RFC 3339 has no words."""
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return None
