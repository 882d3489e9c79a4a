from time import process_time

import numpy as np
import pytest
from msgspec.structs import replace

from gpuloop.reasoning.causes import Causes, CausesState, analysis_request, causal_cause
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Context, Output, Received, load, save
from gpuloop.schemas.messages import Anomaly, Cause, JobState, Message, NodeState, PoolState
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import MINUTE_US

START = 25_135_200
"""Minute 0 of the small fleet."""
GANG = ("n00", "n01", "n02", "n03")


class SmallFleet:
    """Sixteen nodes in two racks: one gang on four nodes, single-node jobs on eight, four idle.

    Faults are set by node: `hot` multiplies the thermal resistance, `link` the bandwidth left and
    `errors` the memory errors a minute. A gang goes at the pace of its slowest node.
    """

    def __init__(self, seed: int = 0, nodes: int = 16) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes = tuple(f"n{i:02d}" for i in range(nodes))
        self.jobs = {"gang": GANG} | {f"job-{name}": (name,) for name in self.nodes[4:12]}
        self.load = {job: 0.4 + 0.5 * self.rng.random() for job in self.jobs}
        self.hot: dict[str, float] = {}
        self.link: dict[str, float] = {}
        self.errors: dict[str, int] = {}
        self.celsius = dict.fromkeys(self.nodes, 30.0)
        self.counted = dict.fromkeys(self.nodes, 0)
        self.done = dict.fromkeys(self.jobs, 0.0)
        self.generation = dict.fromkeys(self.jobs, 0)

    def pace(self, job: str) -> float:
        slow = [1.0]
        for node in self.jobs[job]:
            slow.append(1.0 if self.celsius[node] < 85 else 0.6)
            slow.append(1 / (0.7 + 0.3 / self.link.get(node, 1.0)))
            slow.append(0.55 if node in self.errors else 1.0)
        return min(slow)

    def minute(self, minute: int) -> list[Message]:
        """Return what is published at the end of a minute."""
        end_us = (minute + 1) * MINUTE_US
        on = {node: job for job, nodes in self.jobs.items() for node in nodes}
        said: list[Message] = []
        for name in self.nodes:
            job = on.get(name)
            health = self.pace(job) if job else 1.0
            load = self.load[job] * health if job else 0.0
            watts = 60 + 340 * load
            goal = 27 + 0.1 * watts * self.hot.get(name, 1.0)
            self.celsius[name] += (goal - self.celsius[name]) * 0.5
            self.counted[name] += self.errors.get(name, 0)
            features = {
                "sm_active": 0.6 * load,
                "temperature_celsius": self.celsius[name] + self.rng.normal(0, 0.3),
                "power_watts": watts + self.rng.normal(0, 2),
                "throttled": float(self.celsius[name] >= 85),
                "nvlink_bytes_per_second": 9e10 * load * self.link.get(name, 1.0),
                "ecc_uncorrected": self.counted[name] / 8,
            }
            said.append(node_state(name, end_us, features))
        for job in sorted(self.jobs):
            self.done[job] += 8 * len(self.jobs[job]) * MINUTE_US * self.pace(job)
            if minute % 5 == sum(map(ord, job)) % 5:
                said.append(self.job_state(job, end_us))
        return [*said, pool_state(end_us, len(self.nodes))]

    def job_state(self, job: str, now_us: int) -> JobState:
        return JobState(
            fleet="local",
            job=job,
            pool="a100",
            tenant="t",
            job_class="training",
            phase="running",
            gpus=8 * len(self.jobs[job]),
            nodes=self.jobs[job],
            event_time_us=now_us,
            submitted_us=START * MINUTE_US,
            started_us=START * MINUTE_US,
            checkpointed_us=None,
            gpu_us_done=round(self.done[job]),
            attempt=0,
            generation=self.generation[job],
            price_usd_micros_per_gpu_hour=1_000_000,
        )


def node_state(name: str, now_us: int, features: dict[str, float]) -> NodeState:
    return NodeState(
        fleet="local",
        node=name,
        pool="a100",
        rack=f"rack{int(name[1:]) // 8}",
        gpu_model="a100",
        billing="on_demand",
        gpus=8,
        event_time_us=now_us,
        boot=1,
        seq=now_us // MINUTE_US,
        features={key: Feature(value=v, age_us=0, quality=1.0) for key, v in features.items()},
    )


def pool_state(now_us: int, nodes: int) -> PoolState:
    return PoolState(
        fleet="local",
        pool="a100",
        tick_us=now_us,
        gpu_model="a100",
        gpus_per_node=8,
        nodes_min=4,
        nodes_max=40,
        tranches=(Tranche(billing="on_demand", nodes_ready=nodes),),
        capacity_age_us=0,
        quote_usd_micros_per_gpu_hour=2_000_000,
        energy_usd_micros_per_kwh=80_000,
        generations={},
        nodes_heard=nodes,
        gpus_allocated=96,
        running_jobs=9,
        queues=(),
        services=(),
        arrived_gpus=0,
        arrived_jobs=0,
        refused_jobs=0,
        features={},
        shards_reported=1,
        shards_expected=1,
    )


TOPICS = {NodeState: "state.nodes", JobState: "state.jobs", PoolState: "state.pools"}


class Run:
    """The component on a small fleet, minute by minute."""

    def __init__(self, fleet: SmallFleet) -> None:
        self.fleet, self.component = fleet, Causes("local")
        self.state: CausesState = self.component.initial()
        self.minute = START
        self.outputs: list[Output] = []

    def go(self, minutes: int) -> None:
        for _ in range(minutes):
            for message in self.fleet.minute(self.minute):
                self.feed(message)
            self.minute += 1

    def feed(self, message: Message) -> None:
        event = Received(
            topic=TOPICS[type(message)], partition=0, offset=0, key="", id="", message=message
        )
        context = Context(now_us=self.minute * MINUTE_US, wall_us=0, seed=0)
        self.state, outputs = self.component.step(self.state, event, context)
        self.outputs += outputs

    @property
    def causes(self) -> list[Cause]:
        return [o.message for o in self.outputs if isinstance(o.message, Cause)]

    @property
    def anomalies(self) -> list[Anomaly]:
        return [o.message for o in self.outputs if isinstance(o.message, Anomaly)]


FAULTS = [
    ("hot", 2.2, "temperature_celsius"),
    ("link", 0.3, "nvlink_bytes_per_second"),
    ("errors", 1, "ecc_uncorrected"),
]


@pytest.mark.parametrize(("fault", "size", "metric"), FAULTS)
def test_sick_node_of_a_gang_leads_the_suspects_of_the_slow_job(
    fault: str, size: float, metric: str
) -> None:
    run = Run(SmallFleet())
    run.go(60)
    getattr(run.fleet, fault)["n02"] = size
    run.go(20)
    assert {cause.suspects[0].subject for cause in run.causes} == {"n02"}
    slow = next(cause for cause in run.causes if cause.symptom == "gang")
    assert slow.suspects[0].metric == metric
    assert slow.event_time_us <= (START + 72) * MINUTE_US
    assert slow.summary.startswith("n02: ")
    assert slow.summary.endswith("progress of gang")


def test_sick_node_is_reported_once_however_long_it_stays_sick() -> None:
    run = Run(SmallFleet())
    run.go(60)
    run.fleet.hot["n02"] = 2.2
    run.go(60)
    opened = [(a.subject, a.metric) for a in run.anomalies if a.state == "open"]
    assert sorted(opened) == sorted(set(opened))
    assert len([cause for cause in run.causes if cause.symptom == "n02"]) == 1
    assert len([cause for cause in run.causes if cause.symptom == "gang"]) == 1


def test_anomaly_closes_after_recovery_and_a_second_episode_has_another_id() -> None:
    run = Run(SmallFleet())
    run.go(60)
    for _ in range(2):
        run.fleet.link["n05"] = 0.3
        run.go(15)
        del run.fleet.link["n05"]
        run.go(25)
    link = [a for a in run.anomalies if a.subject == "n05" and a.metric.startswith("nvlink")]
    assert [a.state for a in link] == ["open", "closed", "open", "closed"]
    assert len({a.anomaly_id for a in link}) == 2
    assert not run.state.open


def test_fault_of_a_whole_rack_is_traced_to_the_rack() -> None:
    run = Run(SmallFleet())
    run.go(60)
    run.fleet.link |= dict.fromkeys(run.fleet.nodes[:8], 0.3)
    run.go(15)
    assert {cause.suspects[0].subject for cause in run.causes} == {"rack0"}


def test_healthy_fleet_whose_jobs_come_and_go_has_no_causes() -> None:
    fleet = SmallFleet(seed=3)
    run = Run(fleet)
    run.go(30)
    for change in range(60):
        name = f"late-{change}"
        place = fleet.nodes[4 + int(fleet.rng.integers(12))]
        for job in [job for job, nodes in fleet.jobs.items() if place in nodes]:
            run.feed(replace(fleet.job_state(job, run.minute * MINUTE_US), phase="finished"))
            for table in (fleet.jobs, fleet.done, fleet.load, fleet.generation):
                del table[job]
        fleet.jobs[name], fleet.load[name] = (place,), 0.2 + 0.7 * fleet.rng.random()
        fleet.done[name], fleet.generation[name] = 0.0, 0
        run.feed(fleet.job_state(name, run.minute * MINUTE_US))
        run.go(3 + int(fleet.rng.integers(6)))
    assert run.minute - START > 300
    assert run.causes == []
    assert run.anomalies == []


def test_migration_that_slows_its_job_is_a_suspect() -> None:
    run = Run(SmallFleet())
    run.go(60)
    fleet = run.fleet
    fleet.generation["gang"] = 1
    run.feed(fleet.job_state("gang", run.minute * MINUTE_US))
    for _ in range(10):
        run.go(1)
        fleet.done["gang"] -= 0.5 * 32 * MINUTE_US
    [cause] = run.causes
    assert (cause.symptom, cause.suspects[0].metric) == ("gang", "migration")


def test_saved_and_loaded_state_goes_on_identically() -> None:
    whole, parted = Run(SmallFleet()), Run(SmallFleet())
    for run in (whole, parted):
        run.go(60)
        run.fleet.hot["n02"] = 2.2
        run.go(3)
    parted.state = load(CausesState, save(parted.state))
    whole.go(30)
    parted.go(30)
    assert parted.outputs == whole.outputs
    assert save(parted.state) == save(whole.state)


def test_minute_told_twice_is_judged_once() -> None:
    once, twice = Run(SmallFleet()), Run(SmallFleet())
    for run in (once, twice):
        run.go(60)
        run.fleet.errors["n01"] = 1
    for run, times in ((once, 1), (twice, 2)):
        for message in run.fleet.minute(run.minute) * times:
            run.feed(message)
    assert twice.outputs == once.outputs != []


def test_blank_sensors_raise_nothing() -> None:
    run = Run(SmallFleet())
    run.go(60)
    for _ in range(10):
        for message in run.fleet.minute(run.minute):
            if isinstance(message, NodeState) and message.node in GANG:
                blank = Feature(value=None, age_us=0, quality=0.0)
                message = replace(message, features=dict.fromkeys(message.features, blank))
            run.feed(message)
        run.minute += 1
    assert run.anomalies == []


def test_state_of_a_large_fleet_stays_small_and_a_step_takes_less_than_a_millisecond() -> None:
    run = Run(SmallFleet(nodes=120))
    run.go(150)
    assert len(save(run.state)) < 400_000
    steps = 30 * sum(len(run.fleet.minute(m)) for m in range(5)) // 5
    began = process_time()
    run.go(30)
    assert (process_time() - began) / steps < 0.001


def test_cause_with_enough_data_becomes_a_question_about_its_symptom() -> None:
    run = Run(SmallFleet())
    run.go(60)
    run.fleet.link["n02"] = 0.3
    run.go(12)
    slow = next(cause for cause in run.causes if cause.symptom == "gang")
    question = analysis_request(run.state, slow)
    assert question is not None
    analysis = question.analysis
    assert analysis.target == "progress@gang"
    assert len(analysis.columns) <= 11
    assert "nvlink_bytes_per_second@n02" in analysis.columns
    assert len(analysis.matrix(analysis.normal)) >= 20
    assert analysis.matrix(analysis.anomalous)[:, -1].max() < -0.1


def test_deep_tier_without_an_answer_degrades_to_the_fast_one() -> None:
    run = Run(SmallFleet())
    run.go(60)
    run.fleet.link["n02"] = 0.3
    run.go(12)
    question = analysis_request(run.state, run.causes[-1])
    assert question is not None
    late = causal_cause(question, None, 2_000_000).message
    assert isinstance(late, Cause)
    assert late.timed_out
    assert (late.tier, late.elapsed_us) == ("causal", 2_000_000)
    assert late.suspects == run.causes[-1].suspects
    assert late.cause_id != run.causes[-1].cause_id


@pytest.mark.parametrize("kind", [NodeState, JobState, PoolState])
def test_a_state_from_the_future_is_refused_and_changes_nothing(kind: type[Message]):
    run = Run(SmallFleet())
    run.go(5)
    before = save(run.state)
    one = next(one for one in run.fleet.minute(run.minute) if isinstance(one, kind))
    dated = "tick_us" if kind is PoolState else "event_time_us"
    with pytest.raises(BadInput, match="ahead of the fleet clock"):
        run.feed(replace(one, **{dated: (run.minute + 365 * 24 * 60) * MINUTE_US}))
    assert save(run.state) == before
