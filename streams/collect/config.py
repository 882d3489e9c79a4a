"""What a collector observes, as people write it in a JSON file.

`{}` observes this machine's GPUs by NVML. Naming exporters or a Prometheus server observes those
instead, for many nodes from one process; `"nvml": true` beside them keeps the GPUs as well.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import Name

MAX_TARGETS: Final = 4096

Timeout = Annotated[float, Meta(gt=0, le=8, description="less than a stop may take")]
Seconds = Annotated[float, Meta(ge=1, le=3600)]
Url = Annotated[str, Meta(pattern=r"^https?://\S+$", max_length=2000)]
Query = Annotated[str, Meta(min_length=1, max_length=8000)]


class Exporter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A DCGM exporter of one node. Without `node` the exporter's own `Hostname` is believed."""

    url: Url
    node: str = ""
    pool: Name = "default"
    rack: Name = "default"
    billing: Billing = "on_demand"


class Dcgm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exporters to scrape. They collect every 30 s unless told otherwise, and repeat meanwhile."""

    targets: Annotated[tuple[Exporter, ...], Meta(min_length=1, max_length=MAX_TARGETS)]
    every_seconds: Seconds = 30.0
    timeout_seconds: Timeout = 5.0


class Services(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PromQL for inference services; every expression answers one series per service.

    The labels `service` and `pool` name a series. Times are in seconds, `error_ratio` and
    `utilisation` from 0 to 1. Whoever has no such metric says so in PromQL, as `0 * gpus`.
    """

    requests_per_second: Query
    queue_depth: Query
    utilisation: Query
    first_token_p50_seconds: Query
    first_token_p95_seconds: Query
    error_ratio: Query
    gpus: Query
    objective_p95_seconds: Annotated[float, Meta(gt=0)]
    revenue_usd_per_request: Annotated[float, Meta(ge=0)] = 0.0


class Jobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PromQL for batch jobs; the labels `job_id`, `tenant`, `job_class` and `pool` name a series.

    `running` answers the GPUs that a job holds, one series per job, or per job and `node`.
    `queued` answers the GPUs that a waiting job asks for. `failed`, where given, names jobs that
    ended badly. `gpu_seconds_done`, where given, is useful work kept so far, one series per job;
    else it is what the job held its GPUs for while it was watched.
    """

    running: Query
    queued: Query = ""
    failed: Query = ""
    gpu_seconds_done: Query = ""


class Prometheus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server with the HTTP API of Prometheus (Prometheus, Thanos, Mimir, VictoriaMetrics).

    `token_file` holds a bearer token, read before each round, for a server that asks for one.
    """

    url: Url
    services: Services | None = None
    jobs: Jobs | None = None
    every_seconds: Seconds = 30.0
    timeout_seconds: Timeout = 8.0
    token_file: str = ""


class CollectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to observe; NVML when nothing else is named, or when it is asked for."""

    nvml: bool | None = None
    dcgm: Dcgm | None = None
    prometheus: Prometheus | None = None

    @property
    def with_nvml(self) -> bool:
        """Say whether this machine's GPUs are to be read."""
        return self.nvml if self.nvml is not None else not (self.dcgm or self.prometheus)
