"""From a database's URL to SQLAlchemy's engine: SQLite or PostgreSQL, and nothing that waits for ever.

Whoever imports this imports SQLAlchemy; so nobody does before a database is configured.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
BUSY_SECONDS = 5.0
"""How long SQLite waits for another process that is writing."""

_LOCK = 0x65647861  # any number that other users of the database are unlikely to take


def read_url(url: str) -> URL:
    """Read a database's URL.

    :raises ValueError: it is none that we can use; one line, without the URL.
    """
    expected = "expected sqlite:////path/of/a/file or postgresql://user@host/database"
    try:
        parsed = make_url(url)
        word = parsed.drivername.partition("+")[0]
    except (ArgumentError, ValueError):
        raise ValueError(expected) from None
    if word == "sqlite":
        if parsed.drivername not in ("sqlite", "sqlite+pysqlite") or parsed.query or parsed.host:
            raise ValueError(f"{expected}; a relative path takes three slashes, an absolute one four")
        if parsed.database in (None, "", ":memory:"):
            raise ValueError(f"{expected}; a database in memory would forget everything")
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(expected)
    if not parsed.database:
        raise ValueError(f"{expected}; the database's name is missing")
    return parsed.set(drivername="postgresql+psycopg")


def has_password(url: str) -> bool:
    """Whether there may be a password in a URL; raises as :func:`read_url` does."""
    parsed = read_url(url)
    return bool(parsed.password or {"password", "passfile", "sslpassword"} & set(parsed.query))


def shown(url: URL) -> str:
    """The URL for a person: without its password, and without options, which may hold one too."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    return url.set(drivername=url.get_backend_name(), query={}).render_as_string(hide_password=True)


def make_engine(url: URL, *, connections: int, read_only: bool = False) -> Engine:
    """An engine that keeps at most so many connections. Nothing is connected yet.

    :param read_only: whether everything that writes fails.
    :raises ValueError: a folder or a driver is missing; one line that says what to do.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(Path(str(url.database)), read_only)
    return _postgresql_engine(url, connections, read_only)


def insert_into(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ``on_conflict_do_update``: SQLite and PostgreSQL have it alike, the standard hasn't."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def create_missing(connection: Connection, tables: MetaData) -> None:
    """Make those tables that aren't there, also when another program is doing the same right now."""
    be_alone(connection)
    tables.create_all(connection)


def be_alone(connection: Connection) -> None:
    """Wait until no other transaction that asked for this is under way; on SQLite, all those that write are alone.

    For what touches several rows or tables: two such transactions at once could each wait for the other.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})


class Sockets:
    """The connections that an engine has to a server, so that all can be cut: one that hangs can't be asked to end."""

    def __init__(self, engine: Engine) -> None:
        self._open: set[Any] = set()
        self._lock = Lock()
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", self._opened)
            event.listen(engine, "close", self._closing)

    def cut(self) -> None:
        """End whatever waits for the server. May be called from any thread."""
        with self._lock:  # nothing in the set is closed now, and its descriptor somebody else's
            for connection in self._open:
                with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
                    line.shutdown(socket.SHUT_RDWR)

    def _opened(self, connection: Any, record: object) -> None:
        with self._lock:
            self._open.add(connection)

    def _closing(self, connection: Any, record: object) -> None:
        with self._lock:
            self._open.discard(connection)


def _sqlite_engine(path: Path, read_only: bool) -> Engine:
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} doesn't exist; make it, and let us write there")

    def connect() -> sqlite3.Connection:
        if not read_only:  # SQLite gives the files beside it the same permissions
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        address = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rw'}"
        # Without an isolation level, Python begins no transactions of its own; we do, below.
        connection = sqlite3.connect(
            address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL").close()
            connection.execute("PRAGMA synchronous = FULL").close()
        return connection

    def begin(connection: Connection) -> None:
        # One that first reads and then wants to write fails at once if somebody else has written in between.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    engine = create_engine(
        "sqlite+pysqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0, hide_parameters=True
    )
    event.listen(engine, "begin", begin)
    return engine


def _postgresql_engine(url: URL, connections: int, read_only: bool) -> Engine:
    bounds = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": STATEMENT_SECONDS * 1000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "edxagent",
        "prepare_threshold": None,  # a pooler in between may hand each transaction to another connection
    }
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in bounds.items() if name not in url.query},
            pool_size=connections,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except ImportError:
        raise ValueError("PostgreSQL's driver isn't installed; pip install 'edxagent[postgresql]'") from None

    def begin(connection: Connection) -> None:
        # For each transaction, and not in the connection's options: poolers such as PgBouncer refuse those.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000}")
        if read_only:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    event.listen(engine, "begin", begin)
    return engine
