"""Time in the worlds of a batch, event by event and row by row, for compiled code."""

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.books import SERVICE_PENALTY_USD_MICROS
from gpuloop.twin.pool_level.arrays import (
    CAPACITY,
    ENERGY,
    LEAVING,
    NEVER,
    NEXT_US,
    NONE,
    READY,
    REVENUE,
    SERVICE,
    VIOLATED,
    Ints,
    Rules,
    Specs,
    State,
)
from gpuloop.twin.pool_level.compiling import also_compiled, compiled, entry
from gpuloop.twin.pool_level.jobs import act, arrive, resume, schedule
from gpuloop.twin.pool_level.nodes import draw_hour, happen, let_go, order_now, scale
from gpuloop.twin.services import erlang_c, gpus_wanted, wait_quantile, window

also_compiled(erlang_c, wait_quantile, window, gpus_wanted)


@entry
def begin(state: State, rules: Rules, specs: Specs, row: int) -> bool:
    """Rent what a row begins with and place the jobs that run; False when slots are too few."""
    now = state.now_us[row]
    state.minute_us[row], state.hour_us[row] = (
        (now // MINUTE_US + 1) * MINUTE_US,
        (now // HOUR_US + 1) * HOUR_US,
    )
    for billing in range(2):
        state.desired[row, billing] = rules.initial[row, billing]
        for _ in range(rules.initial[row, billing]):
            order_now(state, rules, row, billing)
    if rules.service[row]:
        _plan(state, rules, row)
    schedule(state, rules, specs, row)
    for spec in range(rules.first[row], rules.arrivals[row]):
        if not resume(state, rules, specs, row, spec):
            return False
    state.next_spec[row] = rules.arrivals[row]
    _measure(state, rules, row)
    return True


@entry
def advance(state: State, rules: Rules, specs: Specs, elapsed_us: int) -> int:
    """Let all rows reach a time since their start; return a row whose slots are too few, or -1."""
    for row in range(state.now_us.shape[0]):
        if not advance_row(state, rules, specs, row, rules.start_us[row] + elapsed_us):
            return row
    return -1


@compiled
def advance_row(state: State, rules: Rules, specs: Specs, row: int, until_us: int) -> bool:
    """Let everything up to and at a time happen in one row."""
    while True:
        if state.node_next_us[row] < 0:
            _look_at_nodes(state, rules, row)
        if state.job_next_us[row] < 0:
            first = NEVER
            for slot in range(state.high[row]):
                first = min(first, state.job[row, slot, NEXT_US])
            state.job_next_us[row] = first
        arrival = NEVER
        if state.next_spec[row] < rules.last[row]:
            arrival = specs.at_us[state.next_spec[row]]
        ours = min(state.node_next_us[row], state.job_next_us[row])
        at = min(ours, arrival, state.minute_us[row], state.hour_us[row])
        if at > until_us:
            _flow(state, row, until_us)
            return True
        _flow(state, row, at)
        if state.node_next_us[row] == at:
            happen(state, rules, specs, row)
        elif state.job_next_us[row] == at:
            state.job_next_us[row] = -1
            act(state, rules, specs, row)
            let_go(state, rules, row)
        elif arrival == at:
            if not arrive(state, rules, specs, row):
                return False
        elif state.hour_us[row] == at:
            state.hour_us[row] += HOUR_US
            for node in range(state.phase.shape[1]):
                if READY <= state.phase[row, node] <= LEAVING:
                    draw_hour(state, rules, row, node)
            state.node_next_us[row] = -1
        else:
            state.minute_us[row] += MINUTE_US
            _minute(state, rules, specs, row)


@entry
def order(state: State, rules: Rules, specs: Specs, desired: Ints, answers: Ints) -> None:
    """Bring every row to its desired counts, (rows, 2), where they are new; write the answers."""
    for row in range(desired.shape[0]):
        on_demand, spot = desired[row]
        if on_demand == state.desired[row, 0] and spot == state.desired[row, 1]:
            answers[row] = 0
        else:
            answers[row] = scale(state, rules, specs, row, on_demand, spot)


@compiled
def _look_at_nodes(state: State, rules: Rules, row: int) -> None:
    """Find when the next thing happens to a node, and what capacity costs until then."""
    first, rented = NEVER, 0.0
    half = state.phase.shape[1] // 2
    hours = state.now_us[row] // HOUR_US - rules.start_us[row] // HOUR_US
    hour = min(hours, rules.price.shape[1] - 1)
    for node in range(state.phase.shape[1]):
        phase = state.phase[row, node]
        if phase == NONE:
            continue
        first = min(first, state.due_us[row, node], state.lost_us[row, node])
        first = min(first, state.reclaim_us[row, node], state.kill_us[row, node])
        if READY <= phase <= LEAVING:
            rented += rules.price[row, hour, 0 if node < half else 1]
    state.node_next_us[row] = first
    state.rates[row, CAPACITY] = rented * rules.gpus_per_node[row]


@compiled
def _flow(state: State, row: int, at_us: int) -> None:
    hours = (at_us - state.now_us[row]) / HOUR_US
    for component in range(state.rates.shape[1]):
        state.books[row, component] += state.rates[row, component] * hours
    state.now_us[row] = at_us


@compiled
def _minute(state: State, rules: Rules, specs: Specs, row: int) -> None:
    if rules.service[row]:
        _serve(state, rules, row)
        _plan(state, rules, row)
        if state.service_gpus[row] > state.service_wanted[row]:
            _shrink(state, row)
        schedule(state, rules, specs, row)
    _measure(state, rules, row)


@compiled
def _measure(state: State, rules: Rules, row: int) -> None:
    nodes = 0
    for node in range(state.phase.shape[1]):
        nodes += int(READY <= state.phase[row, node] <= LEAVING)
    idle = rules.node_watts[row] + rules.gpus_per_node[row] * rules.idle_watts[row]
    served = state.service_gpus[row] * rules.service_watts[row]
    watts = nodes * idle + served + state.watts[row]
    state.rates[row, ENERGY] = watts * rules.energy_price[row] / 1000.0


@compiled
def _rate(state: State, rules: Rules, row: int) -> float:
    minute = (state.now_us[row] - rules.start_us[row]) // MINUTE_US
    return float(rules.service_rate[row, min(minute, rules.service_rate.shape[1] - 1)])


@compiled
def _plan(state: State, rules: Rules, row: int) -> None:
    state.service_wanted[row] = gpus_wanted(
        _rate(state, rules, row),
        service_seconds=rules.service_seconds[row],
        target_utilisation=rules.service_target[row],
    )


@compiled
def _shrink(state: State, row: int) -> None:
    best = -1
    for node in range(state.phase.shape[1]):
        serving = state.serving[row, node]
        if serving and (best < 0 or serving < state.serving[row, best]):
            best = node
    if best >= 0:
        state.serving[row, best] -= 1
        state.free[row, best] += 1
        state.service_gpus[row] -= 1


@compiled
def _serve(state: State, rules: Rules, row: int) -> None:
    """Account for the minute of a service that ends now."""
    minute = window(
        rate=_rate(state, rules, row),
        gpus=state.service_gpus[row],
        backlog=state.backlog[row],
        service_seconds=rules.service_seconds[row],
        timeout_seconds=rules.service_timeout[row],
        prefill_us=rules.service_prefill_us[row],
        limit_us=rules.service_p95_us[row],
    )
    state.backlog[row] = minute.backlog
    state.utilisation[row] = minute.utilisation
    state.books[row, REVENUE] += minute.served * rules.service_price[row]
    state.first_token_us[row] = minute.first_token_p95_us
    state.violated[row] = int(minute.violated)
    if minute.violated:
        state.books[row, SERVICE] += SERVICE_PENALTY_USD_MICROS
        state.counts[row, VIOLATED] += 1
