"""Who may do what in PostgreSQL: a role for the sink, one for readers, and nothing as superuser.

Done by whoever holds the administrator's password, at every start; what is there already stays.
"""

from typing import Any, Final

import psycopg
from psycopg import sql

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.stores import SINK

READER: Final = "gpuloop_reader"
SCHEMA: Final = "gpuloop"

_STATEMENTS: Final = (
    "alter role {sink} login nosuperuser nocreatedb nocreaterole noreplication password {password}",
    "create schema if not exists {schema} authorization {sink}",
    "grant temporary on database {database} to {sink}",
    "grant usage on schema {schema} to {reader}",
    "grant select on all tables in schema {schema} to {reader}",
    "alter default privileges for role {sink} in schema {schema} grant select on tables to"
    " {reader}",
)


def admit(dsn: str, password: str) -> str:
    """Let the sink sign in with this password and own its schema; return what the server is.

    `dsn` is the administrator's. TimescaleDB is switched on where it is installed.

    Raises:
        StackError: the server does not do it.

    """
    try:
        with psycopg.connect(dsn, connect_timeout=5, options="-c timezone=UTC") as connection:
            timescale = _extension(connection)
            for role in (SINK, READER):
                if not _one(connection, "select 1 from pg_roles where rolname = %s", role):
                    connection.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
            # Sent as the server will keep it, so that no log of statements has it in clear.
            kept = connection.pgconn.encrypt_password(password.encode(), SINK.encode())
            place = {
                "sink": sql.Identifier(SINK),
                "reader": sql.Identifier(READER),
                "schema": sql.Identifier(SCHEMA),
                "database": sql.Identifier(connection.info.dbname),
                "password": sql.Literal(kept.decode()),
            }
            for statement in _STATEMENTS:
                connection.execute(sql.SQL(statement).format(**place))
    except psycopg.Error as error:
        raise StackError(str(error).strip().splitlines()[0]) from None
    return f"TimescaleDB {timescale}" if timescale else "plain PostgreSQL, partitioned by day"


def _extension(connection: psycopg.Connection[Any]) -> str:
    """Return the version of TimescaleDB in this database, switched on if it can be; else empty."""
    offered = "select default_version from pg_available_extensions where name = 'timescaledb'"
    if not _one(connection, offered):
        return ""
    # The administrator may be called like our schema, which would come first in its search path.
    connection.execute("create extension if not exists timescaledb schema public")
    found = _one(connection, "select extversion from pg_extension where extname = 'timescaledb'")
    return str(found)


def _one(connection: psycopg.Connection[Any], statement: str, *values: object) -> object:
    found = connection.execute(statement, values or None).fetchone()
    return found[0] if found else None
