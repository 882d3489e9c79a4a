"""The keeper: renews the lease without which executors start nothing.

It is the dead man's switch of the loop: when it dies, hangs or cannot reach Kafka, the last lease
runs out and effects stop. It renews blindly; the kill switch is another control and wins over it.
"""

from collections.abc import Callable
from typing import Final

from gpuloop.loop.services import metrics
from gpuloop.loop.services.process import Process, serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker
from gpuloop.loop.shells.clock import Pace, wall_us
from gpuloop.loop.shells.fold import source_of
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.schemas.codec import Encoded, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.control import KillLease, scope
from gpuloop.schemas.units import SECOND_US

NAME: Final = "keeper"
RENEW_EVERY_US: Final = 15 * SECOND_US
LEASE_US: Final = 45 * SECOND_US
"""Three renewals: two may be missed before effects stop."""


def main(settings: Settings) -> None:
    """Renew the lease until asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    try:
        with serving(NAME, settings) as process:
            keep(process, broker, wall_us)
    finally:
        broker.close()


def keep(process: Process, broker: Broker, wall: Callable[[], int]) -> None:
    """Renew at once and then every `RENEW_EVERY_US`."""
    pace = Pace(RENEW_EVERY_US)
    while True:
        now_us = wall()
        broker.produce([lease(process.settings.fleet, now_us)])
        metrics.OUTPUTS.labels(NAME, "controls").inc()
        process.health.progress(f"lease renewed for {LEASE_US // SECOND_US} s")
        if not pace.wait(process.stop):
            return


def lease(fleet: str, now_us: int) -> Encoded:
    """Return the control that lets effects start until `LEASE_US` from wall time `now_us`."""
    body = KillLease(expires_wall_us=now_us + LEASE_US)
    control = Control(fleet=fleet, by=NAME, reason="alive", body=body)
    event_id = derived_event_id("controls/lease", (fleet, str(body.expires_wall_us)))
    return encode(
        "controls", scope(body), control, event_id=event_id, source=source_of(fleet, NAME)
    )
