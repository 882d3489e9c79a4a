"""What a row rents: `twin.capacity` and the faults that take nodes, for compiled code."""

from math import log

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import RECLAIM_NOTICE_US
from gpuloop.twin.faults import HEALED_AFTER_MINUTES, HEALED_SIGMA, UNCONTAINED_SHARE
from gpuloop.twin.pool_level import draws
from gpuloop.twin.pool_level.arrays import (
    DOWN,
    DRAINING,
    FIELD,
    LEAVING,
    LOSS,
    LOST,
    MEMORY,
    NEVER,
    NODES,
    NONE,
    PENDING,
    READY,
    RECLAIM,
    RECLAIMED,
    RUNNING,
    STATE,
    Rules,
    Specs,
    State,
)
from gpuloop.twin.pool_level.compiling import compiled
from gpuloop.twin.pool_level.jobs import interrupt, schedule

DAY_HOURS = 24
LOST_MINUTES, ECC_MINUTES = HEALED_AFTER_MINUTES["lost"], HEALED_AFTER_MINUTES["ecc"]
ECC_GAP_MINUTES = 2.5
"""Mean time between errors of failing memory, which come after one to four minutes."""

DONE, OUT_OF_BOUNDS, NO_CAPACITY, UNSUPPORTED = range(4)
"""What became of an order."""


@compiled
def scale(state: State, rules: Rules, specs: Specs, row: int, on_demand: int, spot: int) -> int:
    """Bring a row's desired counts to these; return `DONE` or why nothing has changed."""
    if (on_demand and not rules.billings[row, 0]) or (spot and not rules.billings[row, 1]):
        return UNSUPPORTED
    if not rules.nodes_min[row] <= on_demand + spot <= rules.nodes_max[row]:
        return OUT_OF_BOUNDS
    if spot > _count(state, row, 1) and rules.shortage[row, _hour(state, rules, row)]:
        return NO_CAPACITY
    state.desired[row, 0], state.desired[row, 1] = on_demand, spot
    for billing in range(2):
        if rules.billings[row, billing]:
            adjust(state, rules, row, billing)
    state.generation[row, 0] += 1
    schedule(state, rules, specs, row)
    let_go(state, rules, row)
    return DONE


@compiled
def adjust(state: State, rules: Rules, row: int, billing: int) -> None:
    """Order or give up nodes until a row has what it wants under one billing."""
    half = state.phase.shape[1] // 2
    first = billing * half
    wanted, draining = 0, 0
    for node in range(first, first + half):
        phase = state.phase[row, node]
        wanted += int(phase in (PENDING, READY, LEAVING, DOWN))
        draining += int(phase == DRAINING)
    surplus = wanted - state.desired[row, billing]
    for _ in range(surplus):
        _give_up_one(state, rules, row, first, half)
    for _ in range(min(-surplus, draining)):
        best = -1
        for node in range(first, first + half):
            if state.phase[row, node] == DRAINING and (
                best < 0 or state.free[row, node] < state.free[row, best]
            ):
                best = node
        state.phase[row, best] = READY
    for _ in range(-surplus - draining):
        _order(state, rules, row, billing, _available_from(state, rules, row, billing))
    let_go(state, rules, row)


@compiled
def happen(state: State, rules: Rules, specs: Specs, row: int) -> None:
    """Let everything happen that is due to the nodes of a row now."""
    now = state.now_us[row]
    for node in range(state.phase.shape[1]):
        phase = state.phase[row, node]
        if phase == NONE:
            continue
        if state.due_us[row, node] <= now:
            state.due_us[row, node] = NEVER
            if phase in (PENDING, DOWN):
                boot(state, rules, row, node)
                schedule(state, rules, specs, row)
            elif phase == LEAVING:
                state.counts[row, RECLAIMED] += 1
                _evict(state, rules, specs, row, node)
                _remove(state, row, node)
                adjust(state, rules, row, _billing(state, node))
                schedule(state, rules, specs, row)
        elif state.lost_us[row, node] <= now:
            state.lost_us[row, node] = NEVER
            _lose(state, rules, specs, row, node)
            schedule(state, rules, specs, row)
        elif state.kill_us[row, node] <= now:
            state.kill_us[row, node] = NEVER
            _kill_one(state, rules, specs, row, node)
            schedule(state, rules, specs, row)
        elif state.reclaim_us[row, node] <= now:
            state.reclaim_us[row, node] = NEVER
            if phase in (READY, DRAINING):
                state.phase[row, node] = LEAVING
                state.due_us[row, node] = now + RECLAIM_NOTICE_US
    let_go(state, rules, row)
    state.node_next_us[row] = -1


@compiled
def boot(state: State, rules: Rules, row: int, node: int) -> None:
    """Let a node join its pool."""
    state.phase[row, node], state.due_us[row, node] = READY, NEVER
    state.free[row, node] = rules.gpus_per_node[row]
    draw_hour(state, rules, row, node)
    state.node_next_us[row] = -1


@compiled
def draw_hour(state: State, rules: Rules, row: int, node: int) -> None:
    """Draw what befalls a node in the rest of this hour."""
    now, seed = state.now_us[row], rules.seed[row]
    hour = now // HOUR_US
    reclaims = rules.reclaims[row] if _billing(state, node) == 1 else 0.0
    state.lost_us[row, node] = _when(state, rules, row, node, LOSS, rules.lost[row])
    state.reclaim_us[row, node] = _when(state, rules, row, node, RECLAIM, reclaims)
    if state.kill_us[row, node] == NEVER:
        ill = _when(state, rules, row, node, MEMORY, rules.ecc[row])
        if ill < NEVER:
            lasts = draws.lognormal(ECC_MINUTES, HEALED_SIGMA, seed, draws.ECC_FOR, node, hour)
            drawn = draws.uniform(seed, draws.ECC_FATAL, node, hour)
            until = 1.0 + log(drawn) / log(1.0 - UNCONTAINED_SHARE) * ECC_GAP_MINUTES
            if until < lasts:
                state.kill_us[row, node] = ill + round(until * MINUTE_US)
    state.node_next_us[row] = -1


@compiled
def let_go(state: State, rules: Rules, row: int) -> None:
    """Remove drained nodes that nothing runs on any more."""
    for node in range(state.phase.shape[1]):
        if state.phase[row, node] == DRAINING and state.free[row, node] == rules.gpus_per_node[row]:
            _remove(state, row, node)


@compiled
def order_now(state: State, rules: Rules, row: int, billing: int) -> None:
    """Rent a node that is ready at once, as a row begins with."""
    _order(state, rules, row, billing, state.now_us[row])
    first = billing * (state.phase.shape[1] // 2)
    for node in range(first, first + state.phase.shape[1] // 2):
        if state.phase[row, node] == PENDING:
            boot(state, rules, row, node)


@compiled
def _when(state: State, rules: Rules, row: int, node: int, what: int, rate: float) -> int:
    """Return when in this hour something happens, if it does: one draw is both."""
    now = state.now_us[row]
    hour = now // HOUR_US
    since = hour - rules.start_us[row] // HOUR_US
    if since < rules.luck.shape[2]:
        drawn = rules.luck[row, node, since, what]
    else:
        drawn = draws.uniform(rules.seed[row], draws.STRIKES + what, node, hour)
    if drawn >= rate:
        return NEVER
    at = hour * HOUR_US + int(drawn / rate * HOUR_US)
    return at if at >= now else NEVER


@compiled
def _billing(state: State, node: int) -> int:
    return 0 if node < state.phase.shape[1] // 2 else 1


@compiled
def _hour(state: State, rules: Rules, row: int) -> int:
    hour = state.now_us[row] // HOUR_US - rules.start_us[row] // HOUR_US
    return int(min(hour, rules.shortage.shape[1] - 1))


@compiled
def _count(state: State, row: int, billing: int) -> int:
    half, found = state.phase.shape[1] // 2, 0
    for node in range(billing * half, billing * half + half):
        found += int(state.phase[row, node] != NONE)
    return found


@compiled
def _available_from(state: State, rules: Rules, row: int, billing: int) -> int:
    """Return when the provider starts a replacement: after an hour without spot capacity."""
    now, hour = state.now_us[row], _hour(state, rules, row)
    if billing == 0 or not rules.shortage[row, hour]:
        return int(now)
    later, last = hour, min(hour + DAY_HOURS, rules.shortage.shape[1] - 1)
    while later < last and rules.shortage[row, later]:
        later += 1
    return int((now // HOUR_US + later - hour) * HOUR_US)


@compiled
def _order(state: State, rules: Rules, row: int, billing: int, from_us: int) -> None:
    half = state.phase.shape[1] // 2
    for node in range(billing * half, billing * half + half):
        if state.phase[row, node] == NONE:
            state.boot[row, node] += 1
            boots = rules.cold_start_us.shape[2]
            takes_us = rules.cold_start_us[row, node, state.boot[row, node] % boots]
            state.phase[row, node], state.tenant[row, node] = PENDING, -1
            state.free[row, node] = 0
            state.due_us[row, node] = from_us + takes_us
            state.node_next_us[row] = -1
            return


@compiled
def _give_up_one(state: State, rules: Rules, row: int, first: int, half: int) -> None:
    """Cancel an order, or a node that is down, or drain the emptiest: the last by name."""
    best, score = -1, 1 << 60
    for node in range(first, first + half):
        phase = state.phase[row, node]
        if phase not in (PENDING, DOWN, READY):
            continue
        step = 0 if phase == PENDING else 1 if phase == DOWN else 2
        busy = 0
        if phase == READY:
            busy = rules.gpus_per_node[row] - state.free[row, node] - state.serving[row, node]
        if (step << 30) + busy <= score:
            best, score = node, (step << 30) + busy
    if best < 0:
        return
    if state.phase[row, best] != READY:
        _remove(state, row, best)
        return
    state.phase[row, best] = DRAINING
    _stop_serving(state, row, best)


@compiled
def _stop_serving(state: State, row: int, node: int) -> None:
    state.service_gpus[row] -= state.serving[row, node]
    state.free[row, node] += state.serving[row, node]
    state.serving[row, node] = 0


@compiled
def _remove(state: State, row: int, node: int) -> None:
    state.phase[row, node], state.free[row, node] = NONE, 0
    for when in (state.due_us, state.lost_us, state.reclaim_us, state.kill_us):
        when[row, node] = NEVER
    state.node_next_us[row] = -1


@compiled
def _evict(state: State, rules: Rules, specs: Specs, row: int, node: int) -> None:
    _stop_serving(state, row, node)
    for slot in range(state.high[row]):
        if _runs_on(state, row, slot, node):
            interrupt(state, rules, specs, row, slot, node)


@compiled
def _runs_on(state: State, row: int, slot: int, node: int) -> bool:
    job = state.job[row, slot]
    runs = False
    if job[STATE] == RUNNING:
        for index in range(job[NODES]):
            runs |= job[FIELD + 2 * index] == node
    return runs


@compiled
def _lose(state: State, rules: Rules, specs: Specs, row: int, node: int) -> None:
    """Let a node vanish and come back after a repair."""
    state.counts[row, LOST] += 1
    phase = state.phase[row, node]
    if phase not in (READY, DRAINING, LEAVING):
        return
    _evict(state, rules, specs, row, node)
    if phase != READY:
        _remove(state, row, node)
        adjust(state, rules, row, _billing(state, node))
        return
    now = state.now_us[row]
    minutes = draws.lognormal(
        LOST_MINUTES, HEALED_SIGMA, rules.seed[row], draws.LOST_FOR, node, now // MINUTE_US
    )
    state.phase[row, node], state.free[row, node], state.tenant[row, node] = DOWN, 0, -1
    state.boot[row, node] += 1
    state.due_us[row, node] = now + round(minutes * MINUTE_US)
    state.reclaim_us[row, node] = state.kill_us[row, node] = NEVER


@compiled
def _kill_one(state: State, rules: Rules, specs: Specs, row: int, node: int) -> None:
    """Let failing memory take down one job of a node."""
    jobs = 0
    for slot in range(state.high[row]):
        jobs += int(_runs_on(state, row, slot, node))
    if not jobs:
        return
    drawn = draws.uniform(rules.seed[row], draws.VICTIM, node, state.now_us[row] // SECOND_US)
    victim = int(drawn * jobs)
    for slot in range(state.high[row]):
        if _runs_on(state, row, slot, node):
            if victim == 0:
                interrupt(state, rules, specs, row, slot, node)
                return
            victim -= 1
