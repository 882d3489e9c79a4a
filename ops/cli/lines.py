"""One readable line per message, for terminals. Pure."""

from base64 import b64decode
from typing import Final

from gpuloop.schemas.codec import BadInput, Record, decode
from gpuloop.schemas.messages import (
    Anomaly,
    Approval,
    AuditCheckpoint,
    AuditRecord,
    Cause,
    ClockAnchor,
    Command,
    Control,
    DeadLetter,
    Decision,
    Fault,
    FeatureVector,
    Forecast,
    GpuSample,
    JobEvent,
    JobState,
    Message,
    Offer,
    Outcome,
    PolicyVersion,
    PoolState,
    Proposal,
    ResourceSample,
    Reward,
    ServiceSample,
)
from gpuloop.schemas.messages.control import scope
from gpuloop.schemas.units import USD_MICROS, calendar_time

SHORT: Final = 12


def when(time_us: int) -> str:
    """Return fleet or wall time as date and time to the second, or as it is where none exists."""
    time = calendar_time(time_us)
    return f"{time_us} us" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def usd(micros: int) -> str:
    """Return a signed amount of US dollars."""
    return f"{micros / USD_MICROS:+,.2f} USD"


def clock(text: str) -> str:
    """Return a line of `line` without its date."""
    return text[11:] if text[4:5] == "-" and text[13:14] == ":" else text


def line(message: Message, timestamp_ms: int = 0) -> str:
    """Return the message in one line: when, what, why.

    `timestamp_ms` is when it was written; it stands for a time that a message leaves open, as the
    policy that ships with the project does.
    """
    stamp = when(_time_us(message) or timestamp_ms * 1000)
    return f"{stamp}  {_what(message)}"


def _time_us(message: Message) -> int | None:
    names = ("event_time_us", "tick_us", "issued_at_us", "start_us", "fetched_at_us")
    for name in (*names, "created_wall_us", "wall_us"):
        value = getattr(message, name, None)
        if isinstance(value, int):
            return value
    return message.command.issued_at_us if isinstance(message, Proposal) else None


def _what(message: Message) -> str:
    match message:
        case Command():
            return _command(message)
        case Proposal(command=command, state=state):
            end = {
                "awaiting": f", answer by {when(message.answer_by_wall_us)} UTC",
                "shadow": "",
            }.get(state, f"  {command.reason}")
            return f"{state:<9}{_command(command)}{end}"
        case Outcome():
            detail = f": {message.detail}" if message.detail else ""
            reason = "" if message.reason == "ok" else f" ({message.reason})"
            return (
                f"{message.status:<9}{message.actuator:<10} {message.target}{reason}{detail}"
                f"  [{message.command_id[:SHORT]}]"
            )
        case Decision():
            why_not = f"  {message.why_not}" if message.why_not else ""
            return f"{message.pool:<6} {message.summary}{why_not}"
        case Reward():
            parts = ", ".join(f"{k} {usd(v)}" for k, v in sorted(message.components.items()) if v)
            return f"{message.pool:<6} {usd(message.total_usd_micros)}  {parts}"
        case Cause() | Anomaly() | Fault() | Forecast() | FeatureVector():
            return _insight(message)
        case AuditRecord():
            return _audited(message)
        case AuditCheckpoint():
            heads = len(message.heads)
            return f"checkpoint {message.number} over {heads} chains  {message.hash[:SHORT]}"
        case Control():
            reason = f": {message.reason}" if message.reason else ""
            return f"{scope(message.body):<28} by {message.by}{reason}  {_body(message)}"
        case Approval():
            word = "approved" if message.approve else "vetoed"
            return f"{message.command_id[:SHORT]} {word} by {message.by} {message.reason}".rstrip()
        case PolicyVersion():
            return f"{message.policy_id}  alpha {message.alpha:.2f}  {message.summary}"
        case DeadLetter():
            at = f"{message.topic}/{message.partition}@{message.offset}"
            return f"{message.stage} refused {at}: {message.reason}, {message.detail}"
        case _:
            return _telemetry(message)


def _command(command: Command) -> str:
    return f"{command.actuator:<10} {command.summary}  [{command.command_id[:SHORT]}]"


def _insight(message: Cause | Anomaly | Fault | Forecast | FeatureVector) -> str:
    match message:
        case Cause():
            return f"{message.tier:<6} {message.summary}"
        case Anomaly():
            return (
                f"{message.state:<6} {message.kind:<6} {message.subject} {message.metric}: "
                f"{message.evidence or f'{message.value:.3g}, expected {message.expected:.3g}'} "
                f"(score {message.score:+.1f})"
            )
        case FeatureVector():
            known = sum(value is not None for value in message.values)
            of = f"{message.pool}/{message.job_class}" if message.job_class else message.pool
            return f"{of:<18} {known} of {len(message.values)} features known"
        case Fault():
            xid = f" XID {message.xid}" if message.xid is not None else ""
            where = f"{message.node} ({message.pool})"
            return f"{message.kind}{xid} on {where} {message.detail}".rstrip()
        case Forecast():
            spans = ", ".join(
                f"{h.horizon_us // 60_000_000} min {h.p50:.0f} ({h.p10:.0f} to {h.p90:.0f})"
                for h in message.horizons
            )
            return f"{message.pool:<6} {message.metric}: {spans}  by {message.model}"


def _audited(message: AuditRecord) -> str:
    """Show what was recorded, read from the original bytes in the record."""
    at = f"{message.topic}/{message.partition}@{message.offset}"
    original = Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=message.timestamp_ms,
        key=None,
        headers=tuple((name, _bytes(value)) for name, value in message.headers),
        value=_bytes(message.value),
    )
    try:
        what = _what(decode(original))
    except BadInput as error:
        what = f"{len(original.value or b'')} bytes ({error.reason})"
    return f"{at:<24} {message.hash[:SHORT]}  {what}"


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _body(message: Control) -> str:
    body = message.body
    fields = {
        name: getattr(body, name)
        for name in body.__struct_fields__
        if getattr(body, name) is not None
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _telemetry(message: Message) -> str:
    match message:
        case JobEvent():
            reason = f" ({message.reason})" if message.reason else ""
            return f"{message.kind:<12} {message.job} {_gpus(message)} in {message.pool}{reason}"
        case JobState():
            nodes = f" on {', '.join(message.nodes)}" if message.nodes else ""
            return f"{message.phase:<12} {message.job} {_gpus(message)} in {message.pool}{nodes}"
        case ServiceSample():
            late = "  SERVICE LEVEL MISSED" if message.violated else ""
            return (
                f"{message.service} {message.requests_per_second:.1f} requests/s, first token "
                f"p95 {message.first_token_p95_us / 1000:.0f} ms{late}"
            )
        case ResourceSample(kind="capacity"):
            nodes = ", ".join(f"{t.nodes_ready} {t.billing}" for t in message.tranches)
            quote = message.quote_usd_micros_per_gpu_hour / USD_MICROS
            return f"{message.pool:<6} {nodes} nodes, quote {quote:.2f} USD per GPU-hour"
        case PoolState():
            queued = sum(queue.gpus for queue in message.queues)
            return (
                f"{message.pool:<6} {message.gpus_allocated} GPUs busy, {message.running_jobs} "
                f"jobs running, {queued} GPUs queued"
            )
        case GpuSample():
            return f"{message.node} {len(message.gpu_ids)} GPUs{_busy_and_hot(message)}"
        case Offer():
            price = message.usd_micros_per_gpu_hour / USD_MICROS
            return f"{message.gpu_model} {message.billing} {price:.2f} USD by {message.provider}"
        case ClockAnchor():
            return f"world {message.world}: {when(message.anchor_us)} at {message.speed:g} x"
        case _:
            subject = getattr(message, "node", getattr(message, "job", message.fleet))
            return f"{message.TYPE} {subject}"


def _busy_and_hot(sample: GpuSample) -> str:
    """Return how busy the GPUs are on average and how hot the hottest is, as far as is known."""
    busy = [value for value in sample.utilisation if value is not None]
    hot = [value for value in sample.temperature_celsius if value is not None]
    said = f", {sum(busy) / len(busy):.0%} busy" if busy else ""
    return said + (f", up to {max(hot):.0f} degrees" if hot else "")


def _gpus(job: JobEvent | JobState) -> str:
    """Return the GPUs of a job, as a decimal where it has a part of one."""
    return f"{job.gpus * job.gpu_milli / 1000:g} GPUs"
