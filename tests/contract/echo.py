"""Two small components that use all a shell offers, and what is needed to drive them."""

from collections.abc import Sequence
from typing import Any, ClassVar

from gpuloop.loop.shells.fold import Executed, encode_outputs
from gpuloop.loop.shells.journal import Saved
from gpuloop.schemas.codec import BadInput, Encoded, Record, encode
from gpuloop.schemas.component import Context, Event, Output, State, Tick
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Anomaly, ClockAnchor, Fault
from gpuloop.schemas.units import MINUTE_US, SECOND_US

FLEET = "local"
START_US = 1_508_112_000_000_000


class EchoState(State):
    heard: int = 0
    weights: int = 0
    ticks: int = 0
    last: str = ""
    ballast: bytes = b""


class Echo:
    """Answers every fault with a draw of its own, and every minute with what it has heard."""

    name: ClassVar[str] = "causes"
    inputs: ClassVar[tuple[str, ...]] = ("telemetry.faults", "policies.weights")
    state_version: ClassVar[int] = 1

    def __init__(self, *, ballast: int = 0, salt: str = "") -> None:
        self.state_type = EchoState
        self.tick_every_us = MINUTE_US
        self._ballast = ballast
        self._salt = salt

    def initial(self) -> EchoState:
        return EchoState(ballast=b"\0" * self._ballast)

    def step(
        self, state: EchoState, event: Event, ctx: Context
    ) -> tuple[EchoState, Sequence[Output]]:
        if isinstance(event, Tick):
            state.ticks += 1
            tick = (self.name, str(event.tick_us))
            return state, [self._say(state, "tick", derived_event_id("tick", tick), event.tick_us)]
        if event.message is None:
            state.weights += len(event.payload)
            return state, []
        assert isinstance(event.message, Fault)
        if event.message.detail == "refuse me":
            raise BadInput("inconsistent", "as asked")
        state.heard += 1
        state.last = event.id
        return state, [self._say(state, event.key, derived_event_id("echo", (event.id,)), 0, ctx)]

    def _say(
        self, state: EchoState, subject: str, id_: str, time_us: int, ctx: Context | None = None
    ) -> Output:
        score = ctx.rng("echo", id_).random() if ctx else 0.0
        return Output(
            topic="insight.anomalies",
            key=subject,
            event_id=id_,
            time_us=time_us or START_US,
            message=Anomaly(
                fleet=FLEET,
                anomaly_id=id_,
                subject=subject,
                pool="h100",
                metric=f"{self._salt}{state.heard}/{state.weights}/{state.ticks}/{state.last}",
                event_time_us=time_us or START_US,
                value=score,
                expected=0.0,
                score=score,
                state="open",
            ),
        )


def fault_output(number: int, *, node: str = "n1", fleet: str = FLEET, detail: str = "") -> Output:
    return Output(
        topic="telemetry.faults",
        key=node,
        event_id=f"{fleet}/{node}/1/{number}",
        time_us=START_US + number * SECOND_US,
        message=Fault(
            fleet=fleet,
            node=node,
            pool="h100",
            kind="xid",
            event_time_us=START_US + number * SECOND_US,
            boot=1,
            seq=number,
            xid=79,
            detail=detail,
        ),
    )


def weights_output(data: bytes) -> Output:
    return Output(
        topic="policies.weights",
        key=sha256_of(data),
        event_id=sha256_of(data),
        time_us=0,
        message=None,
        payload=data,
    )


def fault(number: int, *, node: str = "n1", fleet: str = FLEET, detail: str = "") -> Encoded:
    return encode_outputs([fault_output(number, node=node, fleet=fleet, detail=detail)], "test")[0]


def anchor(
    *, wall_us: int, speed: float = 60.0, fleet_us: int = START_US, world: str = "w1"
) -> Encoded:
    message = ClockAnchor(
        fleet=FLEET, world=world, anchor_us=fleet_us, anchor_wall_us=wall_us, speed=speed
    )
    return encode("telemetry.clock", FLEET, message, event_id=f"clock/{wall_us}", source="test")


class Silent:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.refused = 0
        self.skipped = 0
        self.followed = self.disagreed = self.expired = -1
        self.snapshots: list[int] = []
        self.waits: list[str] = []
        self.unheeded: list[str] = []

    def waiting(self, why: str) -> None:
        self.waits.append(why)

    def resumed(self, saved: Saved[Any], *, followed: int, disagreed: int, expired: int) -> None:
        self.followed, self.disagreed, self.expired = followed, disagreed, expired

    def idle(self, now_us: int) -> None:
        pass

    def cut(
        self,
        records: Sequence[Record],
        executed: Executed[Any],
        saved: Saved[Any],
        *,
        skipped: int,
        took_us: int,
    ) -> None:
        self.refused += len(executed.refused)
        self.skipped += skipped

    def snapshot(self, number: int) -> None:
        self.snapshots.append(number)

    def passed_over(self, what: str) -> None:
        self.unheeded.append(what)
