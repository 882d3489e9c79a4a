"""Every figure: what the twin shows, what was published, and how the one came by the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.calibrating import published
from benchmarks.calibrating.figures import Assumption, Figure
from benchmarks.calibrating.played import Played, generated
from benchmarks.calibrating.serving import Served

from gpuloop.schemas.units import SECOND_US
from gpuloop.twin import openb
from gpuloop.twin.capacity import cold_start_us
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.draws import generator
from gpuloop.twin.filling import arrivals, fill
from gpuloop.twin.fit import Floats
from gpuloop.twin.fragmentation import typical
from gpuloop.twin.strategies import studied

PHILLY: Final = "Philly, AcmeTrace's summary"
ACME: Final = "Seren and Kalos, AcmeTrace"
ACME_POOL: Final = "a100"
"""The twin's pool of the GPUs that Seren and Kalos have."""
GPU_YEARS_100: Final = 100 * 365.25 * 24
PLACED: Final = {"Random": "Random", "GpuPacking": "Packing", "BestFit": "BestFit", "FGD": "FGD"}
COLD_STARTS: Final = 2_000


def _values(played: Sequence[Played], what: str, *pools: str) -> tuple[Floats, ...]:
    return tuple(one.sensor(what, *pools) for one in played)


def jobs(fitted: Sequence[Played], whole: Sequence[Played], folder: Path) -> list[Figure]:
    """Return how jobs fared: on the days on which the twin was fitted, and on the weeks after."""
    summary = published.clusters(folder)
    philly, known = summary["Philly"], [summary[name] for name in summary if name != "Philly"]

    def of(name: str) -> tuple[float, ...]:
        return tuple(one[name] for one in known if name in one)

    group = "Jobs of the trace, a fleet that stands still"
    return [
        Figure(
            group=group, name="mean queueing delay, 16 to 18 October", unit="s",
            model=tuple(float(np.mean(one.waits)) for one in fitted),
            published=philly["avg_que_time_gpu"], others=of("avg_que_time_gpu"),
            source=PHILLY, standing="fitted",
        ),
        Figure(
            group=group, name="mean queueing delay, 16 October to 13 November", unit="s",
            model=tuple(float(np.mean(one.waits)) for one in whole),
            published=philly["avg_que_time_gpu"], others=of("avg_que_time_gpu"),
            source=PHILLY, standing="unused",
        ),
        Figure(
            group=group, name="median queueing delay", unit="s",
            model=tuple(float(np.median(one.waits)) for one in whole),
            published=philly["med_que_time_gpu"], others=of("med_que_time_gpu"),
            source=PHILLY, standing="unused",
            note="the twin starts what fits in the same instant, real schedulers take rounds",
        ),
        Figure(
            group=group, name="jobs that fail", unit="%",
            model=tuple(one.share_ended("failed") for one in whole),
            published=philly["fail_rate_gpu"], others=of("fail_rate_gpu"),
            source=PHILLY, standing="set", note="of those that ended",
        ),
        Figure(
            group=group, name="jobs that are cancelled", unit="%",
            model=tuple(one.share_ended("cancelled") for one in whole),
            published=philly["cancel_rate_gpu"], others=of("cancel_rate_gpu"),
            source=PHILLY, standing="fitted",
            note="published ones were queued or running, the twin's are queued",
        ),
        Figure(
            group=group, name="GPU-time of jobs that fail", unit="%",
            model=tuple(_share(one.gpu_seconds, "failed") for one in whole),
            published=philly["fail_rate_gpu_time"], others=of("fail_rate_gpu_time"),
            source=PHILLY, standing="unused",
            note="the twin's jobs fail at their end and whatever their length",
        ),
        Figure(
            group=group, name="GPUs that jobs hold", unit="%",
            model=tuple(one.held / one.gpus for one in whole),
            published=published.earth_allocated(folder),
            source="Earth, HeliosArtifact, May 2020", standing="unused",
        ),
    ]  # fmt: skip


def _share(sums: dict[str, float], name: str) -> float:
    return sums[name] / sum(sums.values())


def generator_figures(folder: Path, seeds: range, days: int) -> list[Figure]:
    """Return the generator's jobs beside Philly's."""
    philly = published.clusters(folder)["Philly"]
    gpus, seconds = generated(seeds, days)
    at_hand, lengths = published.philly_jobs(folder)
    cut = "the file holds 68,063 of 112,956 jobs and fewer wide ones"
    tail = "the generator's lengths end at four days, for a fleet of 500 GPUs"
    group = "Jobs of the generator"
    told: list[tuple[str, str, list[float], float, str, str]] = [
        ("mean GPUs of a job", "", [float(x.mean()) for x in gpus], float(at_hand.mean()),
         "Philly, the file at hand", ""),
        ("mean GPUs of a job", "", [float(x.mean()) for x in gpus], philly["avg_gpu_num"],
         PHILLY, cut),
        ("median GPUs of a job", "", [float(np.median(x)) for x in gpus], philly["med_gpu_num"],
         PHILLY, ""),
        ("jobs of one GPU", "%", [float((x == 1).mean()) for x in gpus],
         float((at_hand == 1).mean()), "Philly, the file at hand", ""),
        ("median length of a job", "s", [float(np.median(x)) for x in seconds],
         float(np.median(lengths)), "Philly, the file at hand", ""),
        ("median length of a job", "s", [float(np.median(x)) for x in seconds],
         philly["med_run_time_gpu"], PHILLY, ""),
        ("mean length of a job", "s", [float(x.mean()) for x in seconds],
         philly["avg_run_time_gpu"], PHILLY, tail),
    ]  # fmt: skip
    return [
        Figure(group=group, name=name, unit=unit, model=tuple(model), published=value,
               source=source, standing="fitted", note=note)
        for name, unit, model, value, source, note in told
    ]  # fmt: skip


def sensors(played: Sequence[Played], folder: Path) -> list[Figure]:
    """Return what GPUs and nodes show."""
    group = "Sensors"
    philly = published.distribution(folder, "util_gpu_philly")
    acme = [published.distribution(folder, f"util_gpu_{name}") for name in ("seren", "kalos")]
    everyone = _values(played, "utilisation")
    rest = tuple(float(other.mean()) / 100 for other in acme)
    found = [
        Figure(
            group=group, name="mean GPU utilisation", unit="%",
            model=tuple(float(x.mean()) for x in everyone), published=float(philly.mean()) / 100,
            others=rest, source="Philly, AcmeTrace", standing="fitted",
        ),
        Figure(
            group=group, name="GPUs that do nothing", unit="%",
            model=tuple(float((x == 0).mean()) for x in everyone),
            published=float((philly == 0).mean()),
            others=tuple(float((other == 0).mean()) for other in acme),
            source="Philly, AcmeTrace", standing="unused",
            note="the twin's are those that nothing holds; no job of the twin idles on its GPUs",
        ),
    ]  # fmt: skip
    found += [
        Figure(
            group=group, name=f"GPU utilisation that {percent} % stay below", unit="%",
            model=tuple(float(np.percentile(x, percent)) for x in everyone),
            published=float(np.percentile(philly, percent)) / 100,
            others=tuple(float(np.percentile(other, percent)) / 100 for other in acme),
            source="Philly, AcmeTrace", standing="unused",
        )
        for percent in (50, 90)
    ]  # fmt: skip
    ratio = "fitted as a ratio to utilisation, and that is Philly's"
    columns: tuple[tuple[str, str, str, str, int, float, str], ...] = (
        ("mean SM activity", "%", "sm_active", "util_gpu_{}", 2, 0.01, ratio),
        ("mean tensor activity", "%", "tensor_active", "util_gpu_{}", 3, 0.01, ratio),
        ("mean GPU memory in use", "%", "memory_used", "util_gpu_{}", 1, 0.01, ""),
        ("mean GPU temperature", "degrees", "temperature_celsius", "gpu_temp_{}", 0, 1.0,
         "inlet air and coolers are assumptions"),
        ("mean GPU power", "W", "power_watts", "gpu_power_{}", 0, 1.0,
         "more of the twin's GPUs work, none of its jobs idles"),
    )  # fmt: skip
    for name, unit, sensor, file, column, scale, note in columns:
        means = []
        for cluster in ("seren", "kalos"):
            source = file.format(cluster)
            full = f"{source}_full" if source == "util_gpu_kalos" else source
            means.append(scale * float(published.distribution(folder, full, column).mean()))
        found.append(
            Figure(
                group=group, name=name, unit=unit, published=means[0], others=(means[1],),
                model=tuple(float(x.mean()) for x in _values(played, sensor, ACME_POOL)),
                source=ACME, standing="fitted" if unit == "%" else "unused", note=note,
            )
        )  # fmt: skip
    server = float(published.distribution(folder, "server_power").mean())
    found.append(
        Figure(
            group=group, name="mean power of a node of eight", unit="W", published=server,
            model=tuple(float(np.mean(one.node_watts[ACME_POOL])) for one in played),
            source=ACME, standing="unused",
        )
    )  # fmt: skip
    return found


def faults(played: Sequence[Played]) -> list[Figure]:
    """Return how often nodes break, the demonstration's factor taken out."""
    group = "Faults, without the factor by which the demonstration has more of them"
    per_gpu = GPU_YEARS_100 / 8

    def rate(*kinds: str, scale: float = 1.0) -> tuple[float, ...]:
        return tuple(one.faults_per_node_hour(*kinds) * scale for one in played)

    meta = "Llama 3 405B, 54 days on 16,384 H100"
    old = "another GPU, seven years older"
    hours = published.NODE_HOURS
    return [
        Figure(group=group, name="GPUs lost in those 54 days", unit="",
               model=rate("lost", scale=hours), published=published.GPU_FAULTS, source=meta,
               standing="set"),
        Figure(group=group, name="failures of GPU memory", unit="",
               model=rate("ecc", scale=hours), published=published.MEMORY_FAULTS, source=meta,
               standing="set"),
        Figure(group=group, name="interruptions of all kinds", unit="",
               model=rate("lost", "ecc", "link", "thermal", scale=hours),
               published=published.INTERRUPTIONS, source=meta, standing="unused",
               note="the twin has no faults of hosts, networks and software, and its thermal and "
               "link faults are an assumption"),
        Figure(group=group, name="double-bit errors in 100 GPU-years", unit="",
               model=rate("ecc", scale=per_gpu),
               published=published.TITAN_PER_100_GPU_YEARS["ecc"], source="Titan, K20X",
               standing="unused", note=old),
        Figure(group=group, name="GPUs off the bus in 100 GPU-years", unit="",
               model=rate("lost", scale=per_gpu),
               published=published.TITAN_PER_100_GPU_YEARS["lost"], source="Titan, K20X",
               standing="unused", note=old),
    ]  # fmt: skip


def service(served: Served) -> list[Figure]:
    """Return the service model beside the hour of requests."""
    group = f"Requests to a language model, {served.servers} servers"
    source = "Azure conversations, one hour of 2023"
    told: tuple[tuple[str, str, float, float, str], ...] = (
        ("seconds of a request", "s", 0.6, served.seconds, "at 350 tokens a second"),
        ("variation of a request's seconds", "", 1.0, served.variation,
         "the twin's are exponential"),
        ("variation of a minute's requests", "", served.minute_variation_twin,
         served.minute_variation, "the hour has a trend and waves that the twin's noise lacks"),
        ("wait that 95 % stay below", "s", served.wait_p95_twin, served.wait_p95,
         "the twin's formula against real arrivals and lengths in a queue"),
    )  # fmt: skip
    return [
        Figure(group=group, name=name, unit=unit, model=(model,), published=value, source=source,
               standing="set" if name == "seconds of a request" else "unused", note=note)
        for name, unit, model, value, note in told
    ]  # fmt: skip


def placement(folder: Path, seeds: Sequence[int]) -> list[Figure]:
    """Return the GPUs that placement can use when pods that ask for all of them have come."""
    inventory = openb.read_inventory(folder)
    tasks = openb.read_tasks(folder / openb.PODS, inventory.models)
    mix, table = typical(tasks), openb.read_published(folder, "used")
    strategies = studied(tasks)
    found = []
    for name, told in PLACED.items():
        used = []
        for seed in seeds:
            coming = arrivals(tasks, inventory.capacity_milli, 1.03, generator(seed, "openb"))
            luck = generator(seed, "openb", "nodes")
            filled = fill(inventory.nodes, coming, strategies[name], mix, luck)
            used.append(filled.at(filled.used, 100) / 100)
        found.append(
            Figure(group="Placement on openb", name=f"GPUs in use at 100 % load, {told}", unit="%",
                   model=tuple(used), published=float(table[name][:, 100].mean()) / 100,
                   source="Weng et al., ten seeds", standing="unused")
        )  # fmt: skip
    return found


def assumptions() -> list[Assumption]:
    """Return what nothing was published about that is at hand."""
    config = TwinConfig()
    starts = [
        cold_start_us(0, f"a100-d{index:03d}", boot) / SECOND_US
        for index in range(COLD_STARTS // 10)
        for boot in range(10)
    ]
    low, middle, high = np.percentile(starts, (5, 50, 95))
    reclaims = sorted({pool.spot_reclaims_per_node_hour for pool in config.pools} - {0.0})
    return [
        Assumption(name="cold start of a node", value=f"{middle:.0f} s ({low:.0f} to {high:.0f} s)",
                   basis="lognormal around 180 s between one and ten minutes"),
        Assumption(name="reclaims of a spot node",
                   value=", ".join(f"{rate:g} an hour" for rate in reclaims),
                   basis="providers publish none; the control benchmark shows a range"),
        Assumption(name="elasticity of demand", value="-0.39, -1.1, -0.6",
                   basis="inside the published range of -0.3 to -2, by segment"),
        Assumption(name="faults of the demonstration",
                   value=f"{config.fault_rate_factor:g} times the rates above",
                   basis="so that a run of minutes shows some"),
        Assumption(name="jobs of the trace that the fleet takes",
                   value=f"{config.arrival_share:.0%}",
                   basis="fitted with the queueing delay; on Philly's 2,816 GPUs nothing waits"),
    ]  # fmt: skip
