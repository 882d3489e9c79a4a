"""What telemetry means for money: small dated steps, cut out of messages as they arrive.

A step holds only what the ledger needs, so that many can wait for their time in a small state.
Numbers so large that they can only be mistakes are refused here; sums of plausible ones then fit
64 bits.
"""

from typing import Final

import msgspec

from gpuloop.schemas.messages import JobEvent, Message, Offer, ResourceSample, ServiceSample
from gpuloop.schemas.units import HOUR_US, MAX_GPUS_PER_NODE

MAX_RATE: Final = 10**14
"""USD micros per hour: a hundred million dollars an hour from one job or one pool."""
MAX_AMOUNT: Final = 10**15
MAX_NODES: Final = 10**6
MAX_OFFER: Final = 10**10
"""USD micros per GPU-hour."""
MAX_ENERGY_RATE: Final = 10**17
"""Milliwatts x USD micros per kWh: a gigawatt at ten cents."""
MAX_CARBON_RATE: Final = 10**18
"""Milliwatts x milligrams per kWh: a gigawatt at a kilogram."""
MAX_WATTS: Final = 10**12


class _Step(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """Something that happens at `at_us`; steps of one instant go in the order of `order`."""

    at_us: int
    boot: int
    seq: int
    subject: str


class OfferStep(_Step, frozen=True, tag=0):
    """A seller's price per GPU-hour for what `subject` names, a GPU model and billing."""

    seller: str
    usd_micros_per_gpu_hour: int


class CapacityStep(_Step, frozen=True, tag=1):
    """What the pool `subject` rents: (billing, nodes, USD micros per node-hour), and its power."""

    gpu_model: str
    gpus_per_node: int
    tranches: tuple[tuple[str, int, int], ...]
    energy_rate: int
    milliwatts: int = 0
    carbon_rate: int = 0


class JobStep(_Step, frozen=True, tag=2):
    """What happened to the job `subject`; `placed` says that it holds nodes afterwards."""

    event: str
    pool: str
    gpus: int
    price: int
    gpu_us_lost: int
    placed: bool
    gpu_milli: int = 1000


class ServiceStep(_Step, frozen=True, tag=3):
    """What the window of the service `subject` earned, and how much of it missed its level."""

    pool: str
    revenue_usd_micros: int
    violated_us: int


class OverdueStep(_Step, frozen=True, tag=4):
    """The job `subject` begins to cost for waiting, if it has waited since `since_us` till now."""

    since_us: int


Step = OfferStep | CapacityStep | JobStep | ServiceStep | OverdueStep

_RANK: Final[dict[type, int]] = {
    OfferStep: 0,
    CapacityStep: 1,
    JobStep: 2,
    ServiceStep: 3,
    OverdueStep: 4,
}


def order(step: Step) -> tuple[int, int, int, int, str]:
    """Return the key under which steps are sorted, whatever order they arrived in."""
    return (step.at_us, _RANK[type(step)], step.boot, step.seq, step.subject)


def step_of(message: Message) -> Step | None:
    """Return what a message means for money; None when nothing, or nothing plausible."""
    match message:
        case JobEvent():
            return _job_step(message)
        case ServiceSample():
            return _service_step(message)
        case ResourceSample(kind="capacity"):
            return _capacity_step(message)
        case Offer() if message.usd_micros_per_gpu_hour <= MAX_OFFER:
            return OfferStep(
                at_us=message.fetched_at_us,
                boot=0,
                seq=0,
                subject=f"{message.gpu_model}/{message.billing}",
                seller=f"{message.provider}/{message.region}",
                usd_micros_per_gpu_hour=message.usd_micros_per_gpu_hour,
            )
        case _:
            return None


def _job_step(event: JobEvent) -> JobStep | None:
    price = event.price_usd_micros_per_gpu_hour
    if event.gpus * price > MAX_RATE or event.gpu_us_lost * price > MAX_AMOUNT * HOUR_US:
        return None
    return JobStep(
        at_us=event.event_time_us,
        boot=event.boot,
        seq=event.seq,
        subject=event.job,
        event=event.kind,
        pool=event.pool,
        gpus=event.gpus,
        price=price,
        gpu_us_lost=event.gpu_us_lost,
        placed=bool(event.nodes),
        gpu_milli=event.gpu_milli,
    )


def _service_step(sample: ServiceSample) -> ServiceStep | None:
    if sample.revenue_usd_micros > MAX_AMOUNT or sample.window_us > 24 * HOUR_US:
        return None
    return ServiceStep(
        # The window ends before its end: what it earned belongs to the time it covers.
        at_us=max(sample.event_time_us - 1, 0),
        boot=sample.boot,
        seq=sample.seq,
        subject=sample.service,
        pool=sample.pool,
        revenue_usd_micros=sample.revenue_usd_micros,
        violated_us=sample.window_us if sample.violated else 0,
    )


def _capacity_step(sample: ResourceSample) -> CapacityStep | None:
    tranches = tuple(
        (tranche.billing, tranche.nodes_ready, tranche.usd_micros_per_node_hour)
        for tranche in sample.tranches
    )
    if sample.power_watts > MAX_WATTS:
        return None  # Its milliwatts may be infinite, which no integer is.
    milliwatts = round(sample.power_watts * 1000)
    energy_rate = milliwatts * sample.energy_usd_micros_per_kwh
    carbon_rate = milliwatts * sample.carbon_milligrams_per_kwh
    dear = carbon_rate > MAX_CARBON_RATE or any(
        nodes > MAX_NODES or nodes * price > MAX_RATE for _, nodes, price in tranches
    )
    if dear or sample.gpus_per_node > MAX_GPUS_PER_NODE or energy_rate > MAX_ENERGY_RATE:
        return None
    return CapacityStep(
        at_us=sample.event_time_us,
        boot=sample.boot,
        seq=sample.seq,
        subject=sample.pool,
        gpu_model=sample.gpu_model,
        gpus_per_node=sample.gpus_per_node,
        tranches=tranches,
        energy_rate=energy_rate,
        milliwatts=milliwatts,
        carbon_rate=carbon_rate,
    )
