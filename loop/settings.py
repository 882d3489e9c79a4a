"""Settings of every process, and the only module that reads the environment.

A process is started with `GPULOOP_*` variables and nothing else. They are read once, checked
against the types below, and frozen; a name that is not listed here is refused, because a misspelt
limit must not silently become its default.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import SECOND_US, Count, Name

PREFIX: Final = "GPULOOP_"
OWN_HOST: Final = "@host"
"""The replica of who is one of several containers that are started alike."""
LISTS: Final = frozenset({"trusted_keys", "audit_keys"})

MAX_SPEED: Final = 600.0
"""How fast a twin can go: a minute of fleet time in each step, and ten steps a second."""

Port = Annotated[int, Meta(ge=0, le=65535)]


def _about(description: str) -> Meta:
    return Meta(description=description)


class SettingsError(ValueError):
    """The environment does not describe a process that could run; the message says which part."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process is told at start. Field `x` is read from `GPULOOP_X`."""

    bootstrap_servers: Annotated[str, _about("Kafka's first addresses, host:port,...")] = (
        "127.0.0.1:9092"
    )
    kafka_config: Annotated[
        Path | None, _about("file of librdkafka properties, key=value: TLS, SASL, ...")
    ] = None
    topic_prefix: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._-]{0,100}$"),
        _about("put before every topic name, for clusters shared with others"),
    ] = ""
    fleet: Annotated[Name, _about("the fleet served; messages of another are refused")] = "local"
    replica: Annotated[
        Name,
        _about("name of this copy of a process, stable over restarts; @host: that of its machine"),
    ] = "main"
    state_dir: Annotated[Path, _about("where a process keeps what must survive it")] = Path(
        ".gpuloop"
    )
    http_host: Annotated[str, _about("address of /health and /metrics")] = "127.0.0.1"
    http_port: Annotated[Port, _about("port of /health and /metrics; 0 takes a free one")] = 0
    traces: Annotated[Path | None, _about("folder of public traces; unset: generated load")] = None
    workload: Annotated[str, _about("what the twin runs; empty: the trace, else generated")] = ""
    twin_config: Annotated[
        Path | None, _about("JSON file of a twin's configuration; left out: its defaults")
    ] = None
    start: Annotated[datetime, _about("fleet time at which a fresh twin begins (ISO 8601)")] = (
        datetime(2017, 10, 16, tzinfo=UTC)
    )
    speed: Annotated[
        float,
        Meta(gt=0, le=MAX_SPEED),
        _about("seconds of fleet time per second of wall time, up to 600, twin only"),
    ] = 60.0
    pricing: Annotated[Literal["rule", "learned"], _about("whose price wish the decider takes")] = (
        "rule"
    )
    seed: Annotated[Count, _about("root of all random draws")] = 0
    postgres_dsn: Annotated[str, _about("PostgreSQL or TimescaleDB; empty: none")] = ""
    postgres_password_file: Annotated[
        Path | None, _about("file with the password for it; unset: as the connection string says")
    ] = None
    clickhouse_url: Annotated[str, _about("a ClickHouse server; empty: the embedded engine")] = ""
    clickhouse_user: Annotated[Name, _about("who signs in there")] = "gpuloop"
    clickhouse_password_file: Annotated[
        Path | None, _about("file with the password for it; unset: none")
    ] = None
    history_days: Annotated[
        float, Meta(gt=0), _about("days of fleet time that metrics stay in PostgreSQL")
    ] = 14.0
    analysis_days: Annotated[
        float, Meta(gt=0), _about("days of fleet time that decisions stay in ClickHouse")
    ] = 90.0
    trusted_keys: Annotated[
        tuple[str, ...],
        _about("Ed25519 public keys (hex or @FILE, commas between) whose policies are loaded"),
    ] = ()
    audit_keys: Annotated[
        tuple[str, ...],
        _about("Ed25519 public keys (hex, comma-separated) of auditors; unset: only our own"),
    ] = ()
    audit_anchors: Annotated[
        Path | None,
        _about("file that audit checkpoints are appended to; unset: in the state directory"),
    ] = None
    node: Annotated[
        str, Meta(max_length=200), _about("name of the machine observed; empty: its host name")
    ] = ""
    pool: Annotated[Name, _about("pool of the machine observed, collector only")] = "default"
    rack: Annotated[Name, _about("rack of the machine observed, collector only")] = "default"
    billing: Annotated[Billing, _about("how the machine observed is rented, collector only")] = (
        "on_demand"
    )
    collect: Annotated[
        Path | None, _about("JSON file of what to observe; unset: this machine's GPUs, by NVML")
    ] = None
    collect_seconds: Annotated[
        float, Meta(ge=0.1, le=3600), _about("wall seconds between two samples of this machine")
    ] = 1.0
    collect_buffer: Annotated[
        int,
        Meta(ge=100, le=10_000_000),
        _about("samples kept while Kafka is away; the oldest give way"),
    ] = 20_000
    snapshot_seconds: Annotated[
        float, Meta(gt=0), _about("wall seconds between two snapshots of a component")
    ] = 60.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("least severe line")
    ] = "info"

    @property
    def member(self) -> str:
        """Return the name of this copy among those that share its work."""
        return socket.gethostname() if self.replica == OWN_HOST else self.replica

    @property
    def start_us(self) -> int:
        """Return the fleet time at which a fresh twin begins, in microseconds."""
        moment = self.start if self.start.tzinfo else self.start.replace(tzinfo=UTC)
        return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * SECOND_US

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Return the settings in `environ`, by default this process's environment.

        Raises:
            SettingsError: a value does not fit, or a `GPULOOP_*` name is unknown.

        """
        found = os.environ if environ is None else environ
        raw: dict[str, Any] = {}
        for name, value in found.items():
            if not name.startswith(PREFIX) or value == "":
                continue
            field = name.removeprefix(PREFIX).lower()
            raw[field] = list(_listed(value)) if field in LISTS else value
        try:
            return msgspec.convert(raw, cls, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise SettingsError(_in_the_readers_words(str(error))) from None

    def environment(self) -> dict[str, str]:
        """Return the variables that say what differs from the defaults, for a child process."""
        return {
            PREFIX + field.name.upper(): _text(getattr(self, field.name))
            for field in msgspec.structs.fields(self)
            if getattr(self, field.name) != field.default
        }


def variables() -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of every variable, for documentation."""
    hints = msgspec.inspect.type_info(Settings)
    assert isinstance(hints, msgspec.inspect.StructType)
    for field in hints.fields:
        described = field.type
        schema = (
            described.extra_json_schema if isinstance(described, msgspec.inspect.Metadata) else None
        )
        meaning = str((schema or {}).get("description", ""))
        yield PREFIX + field.name.upper(), _text(field.default), meaning


def _listed(value: str) -> Iterator[str]:
    """Yield the entries of a list; `@FILE` stands for the words in a file, made at deployment.

    Raises:
        SettingsError: a file that is named cannot be read.

    """
    for entry in filter(None, map(str.strip, value.split(","))):
        if not entry.startswith("@"):
            yield entry
            continue
        try:
            yield from Path(entry[1:]).read_text().split()
        except OSError as error:
            raise SettingsError(f"{entry[1:]}: {error.strerror}") from None


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"settings cannot hold {kind}")


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case tuple():
            return ",".join(value)
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


def _in_the_readers_words(error: str) -> str:
    """Turn msgspec's `$.http_port` and `unknown field `x`` into variable names."""
    error = error.replace("Object contains unknown field", "unknown setting")
    for word in sorted(set(_fields_named(error)), key=len, reverse=True):
        error = error.replace(word, PREFIX + word.removeprefix("$.").upper())
    what, at, where = error.partition(" - at ")
    return f"{where.strip('`')}: {plain(what)}" if at else error


def plain(what: str) -> str:
    """Return what msgspec has against a value, in words that name no type of a language."""
    what = what.partition(", got ")[0].replace("RFC3339 encoded datetime", "time")
    for name, words in {"`int`": "a whole number", "`float`": "a number", "`str`": "text"}.items():
        what = what.replace(name, words)
    return what if what[1:2].isupper() else what[:1].lower() + what[1:]


def _fields_named(error: str) -> Iterator[str]:
    for word in error.split("`"):
        if word.startswith("$."):
            yield word.split("[")[0]
        elif word.isidentifier() and word.islower() and error.startswith("unknown setting"):
            yield word
