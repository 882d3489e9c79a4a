"""How the sinks of a local stack reach their stores: its own, or those that a person named.

Only a sink is told its store, and never the administrator's password. It does not know what is
stored.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.settings import Settings
from gpuloop.ops.stack import postgres
from gpuloop.ops.stack.ports import LOOPBACK

SINK: Final = "gpuloop_sink"
"""The role that the sink signs in as."""

SINK_SECRET: Final = "postgres-sink.password"  # noqa: S105  The name of a file.
ENGINE_SECRET: Final = "clickhouse.token"  # noqa: S105  The name of a file, as its owner has it.


@dataclass(slots=True, kw_only=True)
class Stores:
    """How sinks reach their stores, which no other process is told."""

    postgres_dsn: str
    clickhouse_url: str
    postgres_password: Path | None = None
    clickhouse_password: Path | None = None
    administrator: str = ""
    waits: dict[str, str] = field(default_factory=dict)
    """The unit of this stack that a sink waits for."""

    def own(self, server: postgres.Postgres, port: int, root: Path) -> None:
        """Write to this stack's own PostgreSQL, not as its administrator."""
        self.administrator = server.dsn(port)
        self.postgres_dsn = f"postgresql://{SINK}@{LOOPBACK}:{port}/postgres"
        self.postgres_password = root / SINK_SECRET
        self.waits["sink-timescale"] = "postgres"

    def embedded(self, port: int, root: Path) -> None:
        """Write to this stack's own engine, with the token that it leaves there."""
        self.clickhouse_url = f"http://{LOOPBACK}:{port}"
        self.clickhouse_password = root / ENGINE_SECRET
        self.waits["sink-clickhouse"] = "clickhouse"

    def settings(self, name: str, settings: Settings) -> Settings:
        """Return the settings of a service: only a sink's name a store, and only its own."""
        private = msgspec.structs.replace(
            settings,
            postgres_dsn="",
            clickhouse_url="",
            postgres_password_file=None,
            clickhouse_password_file=None,
        )
        match name:
            case "sink-timescale":
                return msgspec.structs.replace(
                    private,
                    postgres_dsn=self.postgres_dsn,
                    postgres_password_file=self.postgres_password
                    or settings.postgres_password_file,
                )
            case "sink-clickhouse":
                return msgspec.structs.replace(
                    private,
                    clickhouse_url=self.clickhouse_url,
                    clickhouse_password_file=self.clickhouse_password
                    or settings.clickhouse_password_file,
                )
        return private

    def prepare(self, name: str) -> str:
        """Admit the sink to this stack's own PostgreSQL."""
        if name != "sink-timescale" or self.postgres_password is None:
            return ""
        from gpuloop.ops.stack.roles import admit

        return admit(self.administrator, postgres.secret(self.postgres_password))
