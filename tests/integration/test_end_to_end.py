"""The whole loop on a real Kafka: what the README promises, seen to happen, then seen to survive.

One stack serves the module; its tests run in order and each waits for what it names. The twin runs
the public trace where `GPULOOP_TRACES` has it and generated bursts elsewhere.
"""

import itertools
import json
import os
import signal
import threading
from collections import Counter, defaultdict

import msgspec
import psutil
import pytest

from gpuloop.loop.learn.registry import shipped
from gpuloop.ops.stack import postgres, process
from gpuloop.ops.stack.services import SERVICES
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.messages import (
    Approval,
    Cause,
    Decision,
    PolicyVersion,
    PoolState,
    Proposal,
    Reward,
    TenantEvent,
)
from gpuloop.schemas.messages.actions import PriceTo, ScaleTo
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import MINUTE_US
from gpuloop.twin.config import Injection, TwinConfig
from gpuloop.twin.demand import reservation_price
from loop_stack import LoopStack, Watch, applied, commands, letters, listening, messages

pytestmark = [pytest.mark.kafka, pytest.mark.stores, pytest.mark.timeout(900)]

SPEED = 120.0
FAULTY = tuple(f"{kind}{n:03d}" for n in range(1, 10) for kind in ("h100-d", "a100-d", "l4-s"))
"""One after another, for longer than a test waits: a node may be idle, or have a job of a whole
node that has no room elsewhere until it ends, and a suspicion lasts for 15 s of wall time."""

TWIN = TwinConfig(
    fault_rate_factor=0.0,
    injections=tuple(
        Injection(fault=fault, subject=node, after_us=count * 30 * MINUTE_US)
        for count, (node, fault) in enumerate(
            zip(FAULTY, itertools.cycle(("thermal", "ecc")), strict=False), start=1
        )
    ),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    (folder / "twin.json").write_bytes(msgspec.json.encode(TWIN))
    environment = {"GPULOOP_TWIN_CONFIG": str(folder / "twin.json"), "COLUMNS": "200"}
    running = LoopStack(folder, environment)
    start = "2017-10-16T08:00:00"
    running.command("up", "--detach", "--speed", str(SPEED), "--start", start)
    try:
        yield running
    finally:
        running.command("down", check=False)
        postgres.wipe(running.state_dir.resolve())


@pytest.fixture(scope="module")
def watch(stack):
    broker = stack.broker()
    watching = Watch(broker)
    thread = threading.Thread(target=watching.run, daemon=True)
    thread.start()
    yield watching
    watching.stopped.set()
    thread.join()
    broker.close()


def nodes(state):
    assert isinstance(state, ScaleTo)
    return state.on_demand_nodes + state.spot_nodes


def test_the_whole_stack_stays_within_its_memory(stack, watch):
    watch.until("a decision", lambda: watch.of("decisions"))
    assert 0 < stack.state.resident_peak_bytes < 3.5 * 2**30


def test_a_burst_leads_to_a_scaling_command_that_the_twin_applies(watch):
    def grown():
        done = {outcome.command_id for outcome in applied(watch, "scaling")}
        return [
            command
            for command in commands(watch, "scaling").values()
            if command.command_id in done and nodes(command.to) > nodes(command.before)
        ]

    command = watch.until("a larger pool", grown)[0]

    def ordered():
        return [
            state
            for state in messages(watch, PoolState, "state.pools")
            if state.pool == command.pool
            and state.tick_us > command.issued_at_us
            and state.generations.get("scaling", 0) > command.generation
        ]

    state = watch.until("the pool's state to show the change", ordered)[0]
    assert sum(t.nodes_ready + len(t.pending_arrival_us) for t in state.tranches) >= 1
    decision = next(
        d for d in messages(watch, Decision, "decisions") if d.decision_id == command.decision_id
    )
    assert command.command_id in decision.command_ids
    assert decision.summary
    assert len(decision.observation) == len(decision.feature_ages_us)


def test_a_fault_leads_to_a_cause_and_to_a_migration(watch):
    def named():
        return [
            cause
            for cause in messages(watch, Cause, "insight.causes")
            if cause.tier == "causal" and cause.suspects
            and cause.suspects[0].subject in FAULTY
        ]  # fmt: skip

    assert watch.until("DoWhy to name a faulty node", named)

    def moved():
        done = {outcome.command_id for outcome in applied(watch, "migration")}
        return [
            command
            for command in commands(watch, "migration").values()
            if command.command_id in done and set(command.to.avoid_nodes) & set(FAULTY)
        ]

    assert watch.until("a job to be moved off one", moved)


def test_the_shipped_policy_acts_where_it_earned_it_and_elsewhere_where_it_is_told_to(stack, watch):
    version, _ = shipped()
    forced = {pool for pool, alpha in version.alphas.items() if alpha == 0.0}.pop()
    asked = ("--pool", forced, "--stage", "champion", "--alpha", "0.6")
    stack.command("control", "policy", version.policy_id, *asked)

    def moved():
        return {
            decision.pool: decision
            for decision in messages(watch, Decision, "decisions")
            if decision.alpha == (version.alphas | {forced: 0.6})[decision.pool]
            and decision.policy_id == version.policy_id
            and any(abs(x) > 1e-3 for x in decision.joint_action)
        }

    watch.until("the policy's offset in every pool", lambda: len(moved()) == len(version.alphas))
    for decision in moved().values():
        for joint, policy in zip(decision.joint_action, decision.policy_action, strict=True):
            assert joint == pytest.approx(decision.alpha * policy, abs=1e-3)


def test_a_price_change_moves_demand(stack, watch):
    first = {}
    for state in messages(watch, PoolState, "state.pools"):
        if state.quote_usd_micros_per_gpu_hour > 0:
            first.setdefault(state.pool, state.quote_usd_micros_per_gpu_hour)
    assert set(first) == {pool.name for pool in TWIN.pools}
    for pool, quote in first.items():
        floor = f"{1.3 * quote / 1e6:.4f}"
        stack.command("control", "objectives", pool, "--price-floor", floor)

    def priced_out():
        """Tenants who refused the new quote and would have taken the first one."""
        return [
            event
            for event in messages(watch, TenantEvent, "telemetry.tenants")
            if event.kind == "refused"
            and event.quote_usd_micros_per_gpu_hour > first[event.pool]
            and reservation_price(0, event.job, TWIN.segments[event.segment], first[event.pool])
            >= first[event.pool]
        ]

    assert watch.until("someone to be priced out", priced_out)
    raised = [c for c in commands(watch, "pricing").values() if isinstance(c.to, PriceTo)]
    done = {outcome.command_id for outcome in applied(watch, "pricing")}
    assert any(c.command_id in done for c in raised)


def test_an_advised_command_waits_is_approved_and_is_applied(stack, watch):
    stack.command("control", "mode", "h100", "scaling", "advise")
    stack.command("control", "objectives", "h100", "--utilisation-target", "0.5")

    def waiting():
        answered = {p.command.command_id for p in proposals() if p.state != "awaiting"}
        return [
            p
            for p in proposals()
            if p.state == "awaiting"
            and p.command.pool == "h100"
            and p.command.command_id not in answered
        ]

    def proposals():
        return messages(watch, Proposal, "proposals")

    def released():
        return [o for o in applied(watch, "scaling") if o.command_id in approved]

    approved = set()
    for _ in range(5):  # A proposal can go stale while the person reads it.
        command = watch.until("a proposal", waiting)[-1].command
        assert command.command_id not in commands(watch, "scaling")
        approved.add(command.command_id)
        by_hand = {
            "fleet": "local",
            "command_id": command.command_id,
            "digest": command.digest,
            "approve": True,
            "by": "ada",
        }
        watch.broker.produce(
            [Encoded(topic="approvals", key=b"ada", headers=(), value=json.dumps(by_hand).encode())]
        )
        ended = watch.until(
            "an answer",
            lambda: (
                released()
                or [
                    p
                    for p in proposals()
                    if p.command.command_id in approved and p.state == "stale"
                ]
            ),
        )
        if released():
            break
        approved.clear()
        assert ended
    assert released()
    assert messages(watch, Approval, "approvals")[-1].by == "ada"
    stack.command("control", "mode", "h100", "scaling", "auto")


def test_rewards_arrive_and_a_policy_version_appears(watch):
    rewards = watch.until("rewards", lambda: messages(watch, Reward, "rewards"))
    for reward in rewards:
        assert set(reward.components) == set(COMPONENTS)
        assert sum(reward.components.values()) == reward.total_usd_micros
    known = {d.decision_id for d in messages(watch, Decision, "decisions")}
    assert {reward.decision_id for reward in rewards} <= known

    def learned():
        versions = messages(watch, PolicyVersion, "policies")
        return [version for version in versions if version.version >= 1]

    version = watch.until("a trained version", learned)[0]
    assert version.trained_on
    assert version.weights_digest != shipped()[0].weights_digest

    def shadowed():
        return any(
            version.policy_id in decision.shadow_actions
            for decision in messages(watch, Decision, "decisions")
        )

    assert watch.until("the version as a shadow", shadowed)


def test_the_audit_chain_verifies_and_the_recording_replays(stack):
    assert "verified" in stack.command("audit", "verify")
    assert_replays(stack, "before")


def assert_replays(stack, name, topics=()):
    stack.command("record", name, *(f"--topic={topic}" for topic in topics))
    report = json.loads(stack.command("replay", name, "--json"))
    replayed = report[0] if isinstance(report, list) else report
    assert replayed["different"] == 0
    assert replayed["absent"] == 0
    assert replayed["equal"] > 50


def test_more_workers_of_the_observe_stage_share_its_work(stack, watch):
    def whole(after_us):
        return [
            state
            for state in messages(watch, PoolState, "state.pools")
            if state.tick_us > after_us and state.shards_reported == state.shards_expected
        ]

    for count in (3, 1):
        told = stack.command("scale", f"observe={count}")
        assert told.startswith(f"observe: {count} worker")
        running = [p.name for p in stack.state.processes if p.name.startswith("observe")]
        assert running == ["observe", "observe-2", "observe-3"][:count]
        tick_us = max(s.tick_us for s in messages(watch, PoolState, "state.pools"))
        watch.until(f"whole states by {count}", lambda tick_us=tick_us: whole(tick_us + MINUTE_US))


@pytest.mark.parametrize(
    "name", [*(n for n, one in SERVICES.items() if one.profile != "gpu"), "postgres", "kafka"]
)
def test_a_killed_service_comes_back_and_the_loop_goes_on(stack, watch, name):
    before, restarts = stack.pid(name), stack.restarts(name)
    os.kill(before, signal.SIGKILL)

    def back():
        return (
            stack.restarts(name) > restarts
            and stack.pid(name) not in (None, before)
            and stack.phase(name) == "ready"
        )

    watch.until(f"{name} to be restarted:\n{stack.log(name)}", back)
    tick = max(d.tick_us for d in messages(watch, Decision, "decisions"))

    def on():
        return any(d.tick_us > tick + MINUTE_US for d in messages(watch, Decision, "decisions"))

    watch.until(f"decisions to go on without the old {name}", on)
    if name == "learner":
        return  # A round takes it a minute, so that it is waited for once the others are back.
    with listening(watch.broker, name) as spoke:
        watch.until(f"{name} to do its own work again:\n{stack.log(name)}", spoke)


def test_a_killed_learner_trains_another_version(stack, watch):
    def trained():
        started_us = psutil.Process(stack.pid("learner")).create_time() * 1e6
        versions = messages(watch, PolicyVersion, "policies")
        return any(version.created_wall_us > started_us for version in versions)

    watch.until(f"a version of the learner that was killed:\n{stack.log('learner')}", trained)


def test_the_invariants_held_through_it_all(stack, watch):
    once = Counter(outcome.command_id for outcome in applied(watch))
    assert max(once.values()) == 1
    effects = defaultdict(list)
    for seen in watch.of("actions.outcomes"):
        if seen.message.status == "applied":
            effects[seen.message.actuator, seen.message.target].append(seen)
    for changes in effects.values():
        generations = [s.message.generation for s in changes]
        epochs = [s.message.epoch for s in changes]
        assert generations == sorted(set(generations))
        assert epochs == sorted(epochs)
    for topic in ("decisions", "rewards", "actions."):
        contents = defaultdict(set)
        for seen in watch.of(topic):
            contents[seen.record.topic, seen.id].add(seen.record.value)
        assert all(len(values) == 1 for values in contents.values())
    assert letters(watch) == []
    by_window = {}
    for reward in messages(watch, Reward, "rewards"):
        by_window[reward.pool, reward.start_us] = reward
    spans = defaultdict(list)
    for reward in by_window.values():
        spans[reward.pool].append((reward.start_us, reward.end_us))
    for windows in spans.values():
        windows.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(windows))
    assert "verified" in stack.command("audit", "verify")
    assert_replays(stack, "after", topics_of("decider"))


def topics_of(name):
    """Return what a replay of one process reads: samples of GPUs are most of the rest by far."""
    return {*SERVICES[name].reads, *SERVICES[name].writes}


def test_the_stack_stops_and_leaves_nothing(stack, watch):
    pids = [p.pid for p in stack.state.processes if p.pid is not None]
    supervisor = stack.state.pid
    watch.stopped.set()
    stack.command("down")
    assert not [pid for pid in [*pids, supervisor] if process.runs(pid)]
    ours = str(stack.folder)
    left = [
        p for p in psutil.process_iter(["cmdline"]) if ours in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    assert not listening & {p.port for p in stack.state.processes if p.port is not None}
