"""Kind ``database``: verdicts go into a table, a row a submission, on SQLite or PostgreSQL.

The table is made if it isn't there. It holds no key of the LMS. One statement decides and writes, so that several
programs may write the same verdicts at once: a graded one replaces a failure, nothing replaces a graded one, and among
equals the first stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Boolean, Column, Connection, DateTime, Double, MetaData, String, Table, Text, and_
from sqlalchemy.exc import DataError, IntegrityError
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from edxagent.config.keys import REQUIRED, Key
from edxagent.errors import DatabaseUnavailable, SinkRefused, SinkUnavailable
from edxagent.interfaces import IResultSink, IResultSinkFactory, SinkTools
from edxagent.lms.database import Database
from edxagent.lms.engine import create_missing, insert_into, read_url
from edxagent.lms.ledger_rows import clean, time_of
from edxagent.lms.sinks.address import Place, callback_address, place_of
from edxagent.model import CheckedResult, Outcome

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def scores_table(name: str) -> Table:
    """The table.

    ``course``, ``student`` and ``block`` are the LMS's words, from the callback URL where there is one: ``student`` is
    the number of the LMS's user. Times are UTC.
    """
    return Table(
        name,
        MetaData(),
        Column("submission", String(255), primary_key=True),
        Column("course", String(255)),
        Column("student", String(255)),
        Column("block", String(255)),
        Column("queue", String(255), nullable=False),
        Column("outcome", String(32), nullable=False),
        Column("correct", Boolean, nullable=False),
        Column("score", Double, nullable=False),
        Column("msg", Text, nullable=False),
        Column("graded_at", DateTime(timezone=True), nullable=False),
        Column("updated_at", DateTime(timezone=True), nullable=False),
    )


def row_of(result: CheckedResult, now: float) -> dict[str, Any]:
    """A result's row.

    :param now: seconds since the epoch.
    """
    place = _place(result)
    finished = time_of(result.headers.get("x-finished"))
    return {
        "submission": clean(result.submission),
        "course": place.course,
        "student": place.student,
        "block": place.block,
        "queue": clean(result.queue),
        "outcome": clean(result.outcome)[:32],
        "correct": result.verdict.correct,
        "score": result.verdict.score,
        "msg": result.verdict.msg,
        "graded_at": _moment(now if finished is None else finished),
        "updated_at": _moment(now),
    }


def write_row(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Write a row, unless there is one that may not be replaced."""
    insert = insert_into(connection, table).values(**row)
    graded = str(Outcome.GRADED)
    better = and_(table.c.outcome != graded, insert.excluded.outcome == graded)
    changes = {name: insert.excluded[name] for name in row if name != "submission"}
    connection.execute(insert.on_conflict_do_update(index_elements=[table.c.submission], set_=changes, where=better))


@implementer(IResultSink)
class DatabaseSink(Service):
    """Writes verdicts into a table, each in a transaction of its own."""

    def __init__(self, database: Database, table: Table, wall_clock: Callable[[], float]) -> None:
        self._database = database
        self._table = table
        self._wall_clock = wall_clock
        self._table_is_there = False

    def startService(self) -> None:
        """Open the database."""
        super().startService()
        self._database.startService()

    def stopService(self) -> Deferred[None]:
        """Fires when the database is closed."""
        super().stopService()
        return self._database.stopService()

    def target(self, result: CheckedResult) -> str | None:
        """See :meth:`edxagent.interfaces.IResultSink.target`: the database's URL, without a password."""
        return str(self._database)

    async def deliver(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.interfaces.IResultSink.deliver`."""
        row, prepared = row_of(result, self._wall_clock()), self._table_is_there

        def write(connection: Connection) -> None:
            if not prepared:
                create_missing(connection, self._table.metadata)
            write_row(connection, self._table, row)

        try:
            await self._database.run(write)
        except DatabaseUnavailable as error:
            self._table_is_there = False
            raise SinkUnavailable(str(error)) from None
        except (DataError, IntegrityError) as error:  # whose words may hold the row
            raise SinkRefused(f"{self._database}: the table can't hold it: {type(error.orig).__name__}") from None
        self._table_is_there = True


def _place(result: CheckedResult) -> Place:
    try:
        return place_of(callback_address(result.header))
    except ValueError:
        return Place()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def database_url(value: str) -> str:
    """SQLAlchemy's URL of a database."""
    read_url(value)
    return value


def table_name(value: str) -> str:
    """A name that needs no quotes anywhere."""
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError(
            "expected a table's name of at most 63 small letters, digits and underscores, such as edxagent_scores"
        )
    return value


@implementer(IResultSinkFactory)
class DatabaseFactory:
    """Kind ``database``."""

    kind = "database"
    keys = (
        Key(
            "url",
            database_url,
            REQUIRED,
            "sqlite:////path/of/a/file, which may be written down here, or postgresql://user:password@host/database.",
            secret=True,
            harmless="sqlite:",
        ),
        Key("table", table_name, "edxagent_scores", "The table; it is made if it isn't there."),
    )

    def build(self, options: Mapping[str, Any], tools: SinkTools) -> DatabaseSink:
        """See :meth:`edxagent.interfaces.IResultSinkFactory.build`."""
        try:
            database = Database(options["url"], tools.reactor)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None
        return DatabaseSink(database, scores_table(options["table"]), tools.wall_clock)


factory = DatabaseFactory()
