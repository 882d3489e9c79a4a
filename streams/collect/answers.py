"""Answers of Prometheus' query API, and samples of services made of them.

A service is told of only when every expression has a value for it: half a sample would say zero
where nothing is known.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from gpuloop.schemas.messages import ServiceSample
from gpuloop.schemas.units import INT64_MAX, SECOND_US, USD_MICROS
from gpuloop.streams.collect.config import Services
from gpuloop.streams.collect.readings import Stamp

MAX_NAME: Final = 200
NO_POOL: Final = "default"
MOST: Final = 1e12
"""The largest number that is taken for one: as seconds, its microseconds fit into a message."""


class Series(msgspec.Struct, frozen=True):
    """One series of an instant vector: its labels, and when and what it is."""

    metric: dict[str, str]
    value: tuple[float, str]

    @property
    def number(self) -> float | None:
        """Return the value; None for NaN, for more than `MOST` and for what is no number."""
        try:
            found = float(self.value[1])
        except ValueError:
            return None
        return found if abs(found) <= MOST else None

    def name(self, label: str, missing: str = "") -> str:
        """Return a label that can be a name of ours, else `missing`."""
        found = self.metric.get(label, "")
        return found if 0 < len(found) <= MAX_NAME else missing


class _Data(msgspec.Struct, frozen=True, rename="camel"):
    result_type: str
    result: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    status: Literal["success", "error"]
    data: _Data | None = None
    error: str = ""


class NotAVector(ValueError):
    """The server refused the expression, or it does not answer one value per series."""


def vector(body: bytes) -> list[Series]:
    """Return the series in an answer to an instant query.

    Raises:
        NotAVector: with what the server says against the expression.

    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.status == "error" or answer.data is None:
            raise NotAVector(answer.error or "no data")
        if answer.data.result_type != "vector":
            raise NotAVector(f"an instant vector is wanted, not a {answer.data.result_type}")
        return msgspec.json.decode(answer.data.result, type=list[Series])
    except msgspec.DecodeError as error:
        raise NotAVector(str(error)) from None


NUMBERS: Final = (
    "requests_per_second",
    "queue_depth",
    "utilisation",
    "first_token_p50_seconds",
    "first_token_p95_seconds",
    "error_ratio",
    "gpus",
)
"""The expressions of `Services`."""


def services(
    config: Services,
    answers: Mapping[str, Sequence[Series]],
    *,
    fleet: str,
    stamp: Stamp,
    window_us: int,
) -> tuple[list[ServiceSample], int]:
    """Return a sample of each service that is wholly known, and how many are not.

    `answers` holds the series of each expression; the n-th sample has `stamp.seq + n`.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number in NUMBERS:
        for series in answers[number]:
            name, value = series.name("service"), series.number
            if name and value is not None and value >= 0:
                found.setdefault((series.name("pool", NO_POOL), name), {})[number] = value
    whole = {key: values for key, values in found.items() if len(values) == len(NUMBERS)}
    return [
        _service(config, fleet, *key, whole[key], window_us, stamp, seq)
        for seq, key in enumerate(sorted(whole), stamp.seq)
    ], len(found) - len(whole)


def _service(
    config: Services,
    fleet: str,
    pool: str,
    name: str,
    values: Mapping[str, float],
    window_us: int,
    stamp: Stamp,
    seq: int,
) -> ServiceSample:
    p95 = values["first_token_p95_seconds"]
    requests = values["requests_per_second"] * window_us / SECOND_US
    return ServiceSample(
        fleet=fleet,
        service=name,
        pool=pool,
        event_time_us=stamp.time_us,
        window_us=window_us,
        boot=stamp.boot,
        seq=seq,
        gpus=round(values["gpus"]),
        requests_per_second=values["requests_per_second"],
        queue_depth=values["queue_depth"],
        utilisation=min(values["utilisation"], 1.0),
        first_token_p50_us=round(values["first_token_p50_seconds"] * SECOND_US),
        first_token_p95_us=round(p95 * SECOND_US),
        error_ratio=min(values["error_ratio"], 1.0),
        violated=p95 > config.objective_p95_seconds,
        revenue_usd_micros=min(
            round(requests * config.revenue_usd_per_request * USD_MICROS), INT64_MAX
        ),
    )
