"""Devices that several jobs share: who asks for a part, who holds which, and what that comes to.

A job may ask for thousandths of one GPU. Its part is guaranteed, so it goes at its own pace and
uses its profile's share of it; heat and clocks are the device's, so what one does the others feel.
A device that is shared is no longer free, and its slot in `Node.slots` says `SHARED`.
"""

from itertools import accumulate
from typing import Final

from gpuloop.twin.config import SharesConfig
from gpuloop.twin.draws import uniform
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.state import Job, Node
from gpuloop.twin.workload import JobSpec

SHARED: Final = "\x1f"
"""What the slot of a shared device says; nothing else is called so."""


def asked_milli(seed: int, spec: JobSpec, shares: SharesConfig | None) -> int:
    """Return the thousandths of each GPU that a job asks for: what its trace says, else a draw."""
    if shares is None or spec.gpus > 1 or spec.gpu_milli < WHOLE_GPU:
        return spec.gpu_milli
    if uniform(seed, "share", spec.job) >= shares.of_single_gpu_jobs:
        return WHOLE_GPU
    mark = uniform(seed, "share-size", spec.job) * sum(weight for _, weight in shares.sizes)
    for (milli, _), reached in zip(
        shares.sizes, accumulate(weight for _, weight in shares.sizes), strict=True
    ):
        if mark < reached:
            return milli
    return shares.sizes[-1][0]


def hourly(job: Job) -> int:
    """Return what a job pays in an hour, in whole USD micros: its part of the price of a GPU."""
    return job.gpus * job.price * job.gpu_milli // WHOLE_GPU


def gpu_us(job: Job, work_us: int) -> int:
    """Return work as GPU-microseconds, of which a part of a device counts its part."""
    return work_us * job.gpus * job.gpu_milli // WHOLE_GPU


def free_milli(node: Node) -> tuple[int, ...]:
    """Return the thousandths that each device of a node has free."""
    free = [0 if slot else WHOLE_GPU for slot in node.slots]
    for device, parts in node.shares.items():
        free[device] = WHOLE_GPU - sum(parts.values())
    return tuple(free)


def free_gpus(node: Node) -> float:
    """Return the GPUs that nothing holds, parts of devices included."""
    if not node.shares:
        return node.free
    return sum(free_milli(node)) / WHOLE_GPU


def holders(node: Node, device: int) -> tuple[str, ...]:
    """Return the jobs or the service on a device."""
    slot = node.slots[device]
    if slot == SHARED:
        return tuple(node.shares[device])
    return (slot,) if slot else ()


def holding(node: Node) -> list[str]:
    """Return everything that runs on a node, by name."""
    names = {slot for slot in node.slots if slot and slot != SHARED}
    for parts in node.shares.values():
        names.update(parts)
    return sorted(names)


def take_part(node: Node, device: int, name: str, milli: int) -> None:
    """Give a job, or one more server of a service, its part of a device.

    Raises:
        ValueError: the device is held whole or has less free; nothing has changed.

    """
    if free_milli(node)[device] < milli:
        raise ValueError(f"{node.id} has no {milli} thousandths free on device {device}")
    node.slots[device] = SHARED
    parts = node.shares.setdefault(device, {})
    parts[name] = parts.get(name, 0) + milli
    node.free = node.slots.count("")


def give_part(node: Node, device: int, name: str, milli: int) -> None:
    """Take one server of a service, or a job, off a device that it shares."""
    parts = node.shares[device]
    parts[name] -= milli
    if not parts[name]:
        del parts[name]
    if not parts:
        del node.shares[device]
        node.slots[device] = ""
    node.free = node.slots.count("")


def leave(node: Node, name: str) -> None:
    """Take a job or service off a node, from the devices it held whole and from those it shared."""
    node.slots = ["" if slot == name else slot for slot in node.slots]
    for device in [device for device, parts in node.shares.items() if name in parts]:
        del node.shares[device][name]
        if not node.shares[device]:
            del node.shares[device]
            node.slots[device] = ""
    node.free = node.slots.count("")
