"""The ledger's tables, and what each event does to them: functions of a connection, for SQLite and PostgreSQL.

Events commute, because several programs tell of one submission and each may tell twice: in whatever order they come,
the same row is left. There are two tables, since a submission has one verdict but may have several sinks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    and_,
    case,
    delete,
    exists,
    or_,
    select,
    update,
)

from edxagent.errors import DatabaseUnavailable
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.engine import create_missing, insert_into
from edxagent.model import CheckedResult, Outcome

VERSION = 1
"""Of the tables below. Whoever changes them raises it, and has :func:`prepare` change those that are there."""

SETTLED = ("delivered", "possibly-recorded", "parked")
"""The states of a sink that end its work: nothing more happens unless a person makes it."""

BRIDGE_SINK = "put_result"
"""The sink whose word counts for what a bridge fetched, beside the one of the bridge's own name."""

MOST_UNANSWERED = 1000
LONGEST_TEXT = 255
LONGEST_REASON = 1024
LATEST = 253402300799.0
"""The end of the year 9999, in seconds since the epoch."""

_tables = MetaData()
_schemas = Table(
    "edxagent_schemas",
    _tables,
    Column("part", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
)
_submissions = Table(
    "edxagent_ledger",
    _tables,
    Column("submission", String(LONGEST_TEXT), primary_key=True),
    Column("since", Double, nullable=False),
    Column("settled", Boolean, nullable=False),
    Column("origin", String(LONGEST_TEXT), nullable=False),
    Column("queue", String(LONGEST_TEXT), nullable=False),
    Column("accepted", Double),
    Column("remote", String(LONGEST_TEXT), index=True),
    Column("outcome", String(32)),
    Column("agent", String(LONGEST_TEXT)),
    Column("grader", String(LONGEST_TEXT)),
    Column("attempt", Integer),
    Column("received", Double),
    Column("started", Double),
    Column("finished", Double),
    Index("edxagent_ledger_since", "since"),
    Index("edxagent_ledger_waiting", "settled", "origin", "accepted"),
)
_sinks = Table(
    "edxagent_ledger_sinks",
    _tables,
    Column("submission", String(LONGEST_TEXT), primary_key=True),
    Column("sink", String(LONGEST_TEXT), primary_key=True),
    Column("state", String(32), nullable=False),
    Column("time", Double, nullable=False, index=True),
    Column("reason", String(LONGEST_REASON), nullable=False),
)


def prepare(connection: Connection) -> None:
    """Make the tables, unless they are there.

    :raises DatabaseUnavailable: they were made by a later version of ours.
    """
    create_missing(connection, _tables)
    ours = insert_into(connection, _schemas).values(part="ledger", version=VERSION)
    connection.execute(ours.on_conflict_do_nothing())
    version = connection.execute(select(_schemas.c.version).where(_schemas.c.part == "ledger")).scalar_one()
    if version > VERSION:
        raise DatabaseUnavailable(
            f"the ledger was made by a later edxagent (schema {version}; this one knows {VERSION}): upgrade this one"
        )


def accept(connection: Connection, now: float, submission: str, *, origin: str, queue: str, remote: str | None) -> bool:
    """A submission was taken from the LMS; false if there was a row, whose gaps are filled then."""
    submission = clean(submission)
    told = {"accepted": now, "origin": clean(origin), "queue": clean(queue), "remote": remote and clean(remote)}
    row = _new_row(connection, now, submission, told).on_conflict_do_nothing()
    here = _submissions.c
    new = connection.execute(row.returning(here.submission)).first() is not None
    if not new:
        gap = update(_submissions).where(here.submission == submission, here.accepted.is_(None))
        connection.execute(gap.values(**told))
    _settle(connection, submission)
    return new


def answer(connection: Connection, now: float, result: CheckedResult) -> None:
    """A verdict came: ``graded`` replaces a failure, nothing replaces ``graded``, among equals the first stays."""
    headers = result.headers
    told = {
        "outcome": clean(result.outcome)[:32],
        "agent": _text(headers.get("x-agent")),
        "grader": _text(headers.get("x-grader")),
        "attempt": _attempt(headers.get("x-attempt")),
        "received": time_of(headers.get("x-received")),
        "started": time_of(headers.get("x-started")),
        "finished": time_of(headers.get("x-finished")),
    }
    submission = clean(result.submission)
    known = {"origin": clean(result.origin or ""), "queue": clean(result.queue)}
    row = _new_row(connection, now, submission, {**known, **told})
    here = _submissions.c
    better = or_(
        here.outcome.is_(None),
        and_(here.outcome != str(Outcome.GRADED), row.excluded.outcome == str(Outcome.GRADED)),
    )
    connection.execute(row.on_conflict_do_update(index_elements=[here.submission], set_=told, where=better))


def sink_did(connection: Connection, now: float, submission: str, *, sink: str, state: str, reason: str) -> None:
    """A sink did something with the verdict: what ended well stays; else the latest counts, or a new attempt."""
    submission = clean(submission)
    told = {"state": clean(state)[:32], "time": now, "reason": clean(reason, LONGEST_REASON)}
    row = insert_into(connection, _sinks).values(submission=submission, sink=clean(sink), **told)
    old, new = _rank(_sinks.c.state), _rank(row.excluded.state)
    # An attempt begins: were it forgotten because a clock was set back, its sink would think that nobody had posted.
    latest = or_(row.excluded.time >= _sinks.c.time, row.excluded.state == "posting")
    newer = or_(new > old, and_(new == old, old == 0, latest))
    key = [_sinks.c.submission, _sinks.c.sink]
    connection.execute(row.on_conflict_do_update(index_elements=key, set_=told, where=newer))
    if state in SETTLED:
        _settle(connection, submission)


def find(connection: Connection, submission: str) -> LedgerEntry | None:
    """The row of a submission."""
    rows = connection.execute(select(_submissions).where(_submissions.c.submission == clean(submission)))
    return next(iter(_entries(connection, rows)), None)


def look_up(connection: Connection, either_id: str, most: int) -> Sequence[LedgerEntry]:
    """The submission of that id, or the latest that LMSs have by that id: several may."""
    here = _submissions.c
    ours = here.submission == clean(either_id)
    wanted = select(_submissions).where(or_(ours, here.remote == clean(either_id)))
    return _entries(connection, connection.execute(wanted.order_by(ours.desc(), here.since.desc()).limit(most)))


def unanswered(connection: Connection, origin: str, before: float) -> Sequence[LedgerEntry]:
    """Submissions that were accepted before then and that no sink has settled, oldest first."""
    here = _submissions.c
    wanted = select(_submissions).where(here.settled.is_(False), here.origin == clean(origin), here.accepted < before)
    return _entries(connection, connection.execute(wanted.order_by(here.accepted).limit(MOST_UNANSWERED)))


def forget(connection: Connection, before: float, most: int) -> int:
    """Delete rows from before then, so many at most; return how many."""
    here, sinks = _submissions.c, _sinks.c
    old = connection.scalars(select(here.submission).where(here.since < before).limit(most)).all()
    connection.execute(delete(_sinks).where(sinks.submission.in_(old)))
    connection.execute(delete(_submissions).where(here.submission.in_(old)))
    orphan = ~exists().where(here.submission == sinks.submission)
    stray = connection.scalars(select(sinks.submission).where(sinks.time < before, orphan).limit(most)).all()
    connection.execute(delete(_sinks).where(sinks.submission.in_(stray)))
    return max(len(old), len(stray))


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text that any database can hold: printable, and not too long."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:longest])


def time_of(value: object) -> float | None:
    """A message header that is a time."""
    return float(value) if type(value) in (int, float) and 0 <= value <= LATEST else None  # type: ignore[operator, arg-type]


def _new_row(connection: Connection, now: float, submission: str, values: dict[str, Any]) -> Any:
    return insert_into(connection, _submissions).values(submission=submission, since=now, settled=False, **values)


def _settle(connection: Connection, submission: str) -> None:
    """See whether the LMS has, or will never have, the verdict. What a bridge fetched, no database can settle."""
    here, sinks = _submissions.c, _sinks.c
    answers = or_(~here.origin.startswith("bridge:"), sinks.sink == BRIDGE_SINK, sinks.sink == here.origin)
    settled = exists().where(sinks.submission == here.submission, sinks.state.in_(SETTLED), answers)
    connection.execute(update(_submissions).where(here.submission == submission).values(settled=settled))


def _rank(state: Any) -> Any:
    return case((state == "delivered", 2), (state == "possibly-recorded", 1), else_=0)


def _entries(connection: Connection, rows: Iterable[Row[Any]]) -> list[LedgerEntry]:
    entries = []
    for row in rows:
        values = dict(row._mapping)
        del values["since"], values["settled"]
        entries.append(LedgerEntry(**values))
    by_id = {entry.submission: entry for entry in entries}
    sinks = select(_sinks).where(_sinks.c.submission.in_(list(by_id))).order_by(_sinks.c.sink)
    for row in connection.execute(sinks):
        by_id[row.submission].sinks[row.sink] = (row.state, row.time, row.reason)
    return entries


def _text(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _attempt(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= 1_000_000 else None
