"""What the observe stage takes: per CPU-second, per node, in bytes, and from sensor to state.

    python benchmarks/observe.py [--quick]

A Kafka of its own, the framer and the Faust worker as the stack runs them, and beside them, over
the same topic in the same run, a bare consumer loop, Faust per message, Quix Streams and Bytewax.
CPU is that of our processes; the broker and the load share the machine and are not counted. Nobody
is measured by the first two rounds of a fleet, which make it known. Peers are installed into an
environment of their own. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from benchmarks.observing import load
from benchmarks.observing.faults import fault_to_command
from benchmarks.observing.peers.job import KNOWN
from benchmarks.observing.rig import Service, Sight, Stage, broker, peer

from gpuloop.loop.shells.broker import read_between
from gpuloop.schemas.codec import decode
from gpuloop.schemas.messages import Frame

ROOT: Final = Path(__file__).resolve().parents[1]
PEERS: Final = Path.home() / ".cache" / "gpuloop" / "peers"
NODES: Final = 12_500
HELD_P99_MS: Final = 250.0
"""A fleet is held when its samples are in the state in time and no more than a second's wait."""
LOOK_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of each is done."""

    records: int
    per_message: int
    paced_seconds: int
    fleets: Sequence[int]
    faults: int


FULL: Final = Size(
    records=500_000, per_message=75_000, paced_seconds=60, fleets=(100, 1_000, 5_000, NODES),
    faults=60,
)  # fmt: skip
QUICK: Final = Size(
    records=100_000, per_message=37_500, paced_seconds=15, fleets=(100, NODES), faults=10
)


def watched(
    services: dict[str, tuple[Service, str]], done: Callable[[dict[str, Sight]], bool]
) -> dict[str, list[Sight]]:
    """Look at services again and again until they are done; return what was seen of each."""
    seen: dict[str, list[Sight]] = {name: [] for name in services}
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        now = {name: service.see(topic) for name, (service, topic) in services.items()}
        for name, sight in now.items():
            seen[name].append(sight)
        if done(now):
            return seen
        if monotonic() > deadline:
            sys.exit(f"not done after {PATIENCE_SECONDS:.0f} s: {now}")
        Event().wait(LOOK_SECONDS)


def slope(sights: Sequence[Sight], work: Callable[[Sight], float], after: float = 0.0) -> float:
    """Return work per CPU-second between the first and the last sight at which there was some.

    What was done up to `after` is left out: the first round of a fleet's samples makes it known.
    """
    steps = [(a, b) for a, b in pairwise(sights) if work(b) > work(a) > after]
    (first, _), (_, last) = steps[0], steps[-1]
    return (work(last) - work(first)) / (last.cpu - first.cpu)


class Framed:
    """How many samples frames hold, by position."""

    def __init__(self, stage: Stage) -> None:
        self._sums: dict[str, list[int]] = {}
        for part in stage.partitions("internal.frames"):
            end = stage.ends("internal.frames")[str(part.number)]
            counts = [0] * end
            for record in read_between(stage.broker, part, 0, end):
                frame = decode(record)
                assert isinstance(frame, Frame)
                counts[record.offset] = len(frame.nodes)
            self._sums[str(part.number)] = [0, *accumulate(counts)]

    def samples(self, sight: Sight) -> int:
        """Return how many samples a process had applied."""
        return sum(self._sums[number][at] for number, at in sight.positions.items())


def position(sight: Sight) -> int:
    """Return how many records were consumed in all."""
    return sum(sight.positions.values())


def through_the_framer(stage: Stage, size: Size) -> tuple[float, float]:
    """Drain a backlog of node samples; return node samples a CPU-second and a second."""
    framer, observe = stage.start("framer"), stage.start("observe")
    ends = stage.ends("telemetry.gpu")

    def done(now: dict[str, Sight]) -> bool:
        framed = now["framer"].positions == ends
        frames = stage.ends("internal.frames")
        # Ticks go on, so the worker is never at the end for long.
        behind = sum(frames.values()) - position(now["observe"])
        return framed and behind <= len(frames)

    services = {"framer": (framer, "telemetry.gpu"), "observe": (observe, "internal.frames")}
    seen = watched(services, done)
    framer.stop()
    observe.stop()
    framed = Framed(stage)
    packs = slope(seen["framer"], position)
    applies = slope(seen["observe"], framed.samples, after=KNOWN)
    begin = next(sight.at for sight in seen["framer"] if position(sight) > 0)
    wall = seen["observe"][-1].at - begin
    print(f"  framer            {packs:>10,.0f} node samples per CPU-second")
    print(f"  Faust on its frames {applies:>8,.0f} node samples per CPU-second")
    return 1 / (1 / packs + 1 / applies), size.records / wall


def from_frames(servers: str, folder: Path, size: Size) -> float:
    """Drain a backlog of frames with a tick each second; return node samples a CPU-second."""
    stage = Stage(servers, "batched.", folder)
    load.framed(servers, stage.prefix, NODES, max(size.records // 2, 4 * NODES), 1_000)
    observe = stage.start("observe")
    ends = stage.ends("internal.frames")
    seen = watched(
        {"observe": (observe, "internal.frames")}, lambda now: now["observe"].positions == ends
    )
    observe.stop()
    framed = Framed(stage)
    return slope(seen["observe"], framed.samples, after=KNOWN)


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Return a quantile of what a histogram counted in between, in milliseconds."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    wanted, low, under = share * counts[max(counts)], 0.0, 0.0
    for bound, count in counts.items():
        if count >= wanted:
            inside = (wanted - under) / (count - under) if count > under else 1.0
            return 1000 * (low + inside * (bound - low)) if bound < float("inf") else float("inf")
        low, under = bound, count
    return float("inf")


@dataclass(frozen=True, kw_only=True)
class Held:
    """A fleet at one sample per node and second, over some time."""

    nodes: int
    cores: float
    behind: int
    p50_ms: float
    p99_ms: float
    resident: int
    grown: int
    wire: float
    changelog: float

    @property
    def is_held(self) -> bool:
        """Say whether the stage keeps up, in time."""
        return self.behind <= self.nodes and self.p99_ms <= HELD_P99_MS


def held(servers: str, folder: Path, nodes: int, seconds: int) -> Held:
    """Run the stage under a paced load and return what it took."""
    stage = Stage(servers, f"paced{nodes}.", folder)
    framer, observe = stage.start("framer"), stage.start("observe")
    framer.ready()
    observe.ready()
    warm = 10
    command = [sys.executable, "-m", "benchmarks.observing.load", servers, stage.prefix]
    sender = subprocess.Popen(  # noqa: S603
        [*command, str(nodes), str(seconds + warm)], cwd=ROOT
    )
    while sum(stage.ends("telemetry.gpu").values()) < nodes * warm // 2:
        if sender.poll() is not None:
            sys.exit("the load ended before it began")
        Event().wait(0.5)

    def look() -> tuple[Sight, Sight, dict[float, float], int, int]:
        return (
            framer.see("telemetry.gpu"),
            observe.see("internal.frames"),
            observe.latencies("internal.frames"),
            stage.stored_bytes("internal.frames"),
            stage.stored_bytes("observe-nodes-changelog"),
        )

    f0, o0, l0, frames0, log0 = look()
    Event().wait(max(seconds - warm // 2, 5))
    f1, o1, l1, frames1, log1 = look()
    behind = sum(stage.ends("telemetry.gpu").values()) - position(f1)
    sender.terminate()
    sender.wait()
    framer.stop()
    observe.stop()
    gpus = (position(f1) - position(f0)) * load.GPUS
    return Held(
        nodes=nodes,
        cores=(f1.cpu - f0.cpu + o1.cpu - o0.cpu) / (f1.at - f0.at),
        behind=behind,
        p50_ms=quantile(l0, l1, 0.5),
        p99_ms=quantile(l0, l1, 0.99),
        resident=f1.resident + o1.resident,
        grown=f1.resident + o1.resident - f0.resident - o0.resident,
        wire=(frames1 - frames0) / gpus,
        changelog=(log1 - log0) / gpus,
    )


def environment_of_peers() -> str | None:
    """Make the peers' environment where it is not there yet; return its Python, or None."""
    python, lock = PEERS / "bin/python", ROOT / "benchmarks/observing/peers/requirements.txt"
    uv = str(Path(sys.executable).with_name("uv"))
    make = [uv, "venv", "--quiet", "--python", sys.executable, str(PEERS)]
    fill = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(lock)]
    try:
        for command in ([] if python.exists() else [make]) + [fill]:
            subprocess.run(command, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"  no environment for the peers: {error}")
        return None
    return str(python)


def per_cpu_second(took: dict[str, float] | None) -> float | None:
    """Return records a CPU-second."""
    return None if took is None else took["records"] / took["cpu_s"]


def ratio(ours: float, other: float | None) -> float | None:
    """Return how many times as many are ours."""
    return None if other is None else round(ours / other, 2)


def main() -> None:
    """Measure, print a line for each, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    size = QUICK if parser.parse_args().quick else FULL
    with tempfile.TemporaryDirectory(prefix="gpuloop-bench-") as name:
        folder = Path(name)
        with broker(folder) as servers:
            result = measure(servers, folder, size)
    result |= fault_to_command(size.faults)
    print(json.dumps(result))


def measure(servers: str, folder: Path, size: Size) -> dict[str, object]:
    """Return everything that needs no more than a broker."""
    stage = Stage(servers, "drain.", folder)
    topic = f"{stage.prefix}telemetry.gpu"
    print(f"a backlog of {size.records:,} node samples, {load.GPUS} GPUs each")
    sent = load.fill(servers, topic, NODES, size.records)
    framed, a_second = through_the_framer(stage, size)
    print(f"  both together     {framed:>10,.0f}; {a_second:,.0f} a second on this machine")
    raw = per_cpu_second(peer("raw", servers, topic, size.records, folder))
    print(f"  a bare loop       {raw or 0:>10,.0f}")
    batched = from_frames(servers, folder, size)
    print(f"  frames of 1,000   {batched:>10,.0f}")
    naive = per_cpu_second(peer("faust_per_message", servers, topic, size.per_message, folder))
    print(f"  Faust per message {naive or 0:>10,.0f}")
    python, others = environment_of_peers(), {}
    for script in ("quix", "bytewax_flow"):
        took = python and peer(script, servers, topic, size.per_message, folder, python)
        others[script] = per_cpu_second(took or None)
        print(f"  {script:<17} {others[script] or 0:>10,.0f}")
    fleets = [held(servers, folder, nodes, size.paced_seconds) for nodes in size.fleets]
    for one in fleets:
        print(
            f"{one.nodes * load.GPUS:>8,} GPUs at 1 Hz: {one.cores:.3f} cores, to state p50"
            f" {one.p50_ms:.0f} ms, p99 {one.p99_ms:.0f} ms, {one.resident / 2**20:.0f} MiB"
            f" ({one.grown / 2**20:+.1f}), {one.wire:.1f} B a GPU's sample in frames,"
            f" {one.changelog:.1f} B in the changelog, {one.behind:,} behind"
        )
    least, most = fleets[0], fleets[-1]
    per_node = (most.resident - least.resident) / (most.nodes - least.nodes)
    return {
        "samples_per_cpu_second": round(framed * load.GPUS),
        "samples_per_second": round(a_second * load.GPUS),
        "ratio_to_raw": ratio(framed, raw),
        "ratio_to_raw_batched": ratio(batched, raw),
        "ratio_to_naive_faust": ratio(framed, naive),
        "ratio_to_quix": ratio(framed, others["quix"]),
        "ratio_to_bytewax": ratio(framed, others["bytewax_flow"]),
        "cores_at_most_gpus": round(most.cores, 3),
        "p50_ms": round(most.p50_ms),
        "p99_ms": round(most.p99_ms),
        "gpus_held": max((one.nodes * load.GPUS for one in fleets if one.is_held), default=0),
        "bytes_per_sample": round(most.wire, 1),
        "telemetry_bytes_per_sample": round(sent / size.records / load.GPUS, 1),
        "changelog_bytes_per_sample": round(most.changelog, 1),
        "memory_bytes_per_node": round(per_node),
    }


if __name__ == "__main__":
    main()
