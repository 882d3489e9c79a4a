"""The shape of every component: a fold over events that does no I/O.

`step(state, event, ctx) -> (state, outputs)` reads time from `ctx.now_us` and randomness from
`ctx.rng` only, so the same component runs live, in replay and in simulation, and the same inputs
give the same outputs. A step owns the state it is given: it may change it in place, and the caller
must go on with the state it gets back. States are msgspec structs, so a shell can save and load
any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import msgspec

from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import TimeUs

if TYPE_CHECKING:  # Who draws nothing does without it, and without its 20 MB.
    import numpy as np


class State(msgspec.Struct, kw_only=True):
    """Base of component states: mutable, owned by one step at a time, saved as msgpack."""


S = TypeVar("S", bound=State)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message that arrived; `payload` holds the bytes of a topic that carries no messages."""

    topic: str
    partition: int
    offset: int
    key: str
    id: str
    message: Message | None
    payload: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The fleet clock passed `tick_us`, a multiple of the component's `tick_every_us`."""

    tick_us: int


Event = Received | Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A message to write. `event_id` is derived from what caused it, never drawn."""

    topic: str
    key: str
    message: Message | None
    event_id: str
    time_us: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Time and randomness, as arguments.

    `now_us` is the fleet clock (a tick's own time during a tick); `wall_us` is the wall clock at
    which the shell cut its input, for leases and for people; `run` names the start of the process
    that made the cut. All are in the journal.
    """

    now_us: int
    wall_us: int
    seed: int
    run: str = ""

    def rng(self, *key: str | int) -> "np.random.Generator":
        """Return the generator of `key`: the same key gives the same draws, in any order."""
        import numpy as np

        digest = sha256_of(str(self.seed), *(str(part) for part in key))
        return np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))


class Component(Protocol[S]):
    """A named fold. Topics in `inputs` are consumed whole, from all partitions."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    state_version: ClassVar[int]
    state_type: type[S]
    tick_every_us: TimeUs

    def initial(self) -> S:
        """Return the state before any event."""
        ...

    def step(self, state: S, event: Event, ctx: Context) -> tuple[S, Sequence[Output]]:
        """Fold one event into the state and say what to write."""
        ...


def save(state: State) -> bytes:
    """Return a component's state as bytes.

    Mappings keep the order of their keys: what a component does may hang on it, if only in the last
    bit of a sum, and it must not change with a restart. States therefore hold no sets.
    """
    return msgspec.msgpack.encode(state)


def load(kind: type[S], data: bytes) -> S:
    """Return the state in `data`.

    Raises:
        msgspec.ValidationError: the bytes are those of another state or version.

    """
    return msgspec.msgpack.decode(data, type=kind)
