"""Where each submission is and what became of it, for ``edxagent trace`` and for the bridges, in a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from edxagent.errors import DatabaseUnavailable
from edxagent.lms import ledger_rows as rows
from edxagent.lms.contracts import LedgerEntry
from edxagent.lms.database import Database
from edxagent.lms.engine import be_alone
from edxagent.model import CheckedResult
from edxagent.tasks import Tasks

T = TypeVar("T")

MOST_WAITING = 10_000
"""Events that may wait to be written."""

MOST_AT_ONCE = 200
"""Events written in one transaction, and rows deleted in one."""

TIDY_SECONDS = 60.0


class Ledger(Service):
    """An :class:`~edxagent.lms.contracts.ILedger`; it starts and stops its database.

    Events that come while others are being written go into one transaction together: what takes time is the commit.

    :ivar keep: seconds; older rows are deleted, a few at a time.
    :param reactor: provides ``IReactorTime``.
    :param wall_clock: seconds since the epoch.
    """

    _log = Logger()

    def __init__(self, database: Database, *, keep: float, reactor: Any, wall_clock: Callable[[], float]) -> None:
        self._database = database
        self.keep = keep
        self._wall_clock = wall_clock
        self._tidying = LoopingCall(self._tidy_soon)
        self._tidying.clock = reactor
        self._tasks = Tasks()
        self._waiting: list[_Event] = []
        self._writing = False
        self._tables_are_there = False

    def startService(self) -> None:
        """Open the database."""
        super().startService()
        self._database.startService()
        self._tidying.start(TIDY_SECONDS)

    def stopService(self) -> Deferred[None]:
        """Fires when what was told is written, and the database is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def accepted(self, submission: str, *, origin: str, queue: str, remote: str | None = None) -> bool:
        """See :meth:`edxagent.lms.contracts.ILedger.accepted`.

        A row that others wrote about it before is a known one too; what it doesn't tell yet is added.
        """
        now = self._wall_clock()
        return await self._write(
            lambda connection: rows.accept(connection, now, submission, origin=origin, queue=queue, remote=remote)
        )

    async def answered(self, result: CheckedResult) -> None:
        """See :meth:`edxagent.lms.contracts.ILedger.answered`."""
        now = self._wall_clock()
        await self._write(lambda connection: rows.answer(connection, now, result))

    async def sink(self, submission: str, sink: str, state: str, reason: str = "") -> None:
        """See :meth:`edxagent.lms.contracts.ILedger.sink`."""
        now = self._wall_clock()
        told = {"sink": sink, "state": state, "reason": reason}
        await self._write(lambda connection: rows.sink_did(connection, now, submission, **told))

    async def find(self, submission: str) -> LedgerEntry | None:
        """See :meth:`edxagent.lms.contracts.ILedger.find`."""
        return await self._run(partial(rows.find, submission=submission))

    async def unanswered(self, origin: str, before: float) -> Sequence[LedgerEntry]:
        """See :meth:`edxagent.lms.contracts.ILedger.unanswered`."""
        return await self._run(partial(rows.unanswered, origin=origin, before=before))

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` together with what else waits. Cancelling drops what hasn't begun."""
        if not self.running:
            raise DatabaseUnavailable("the ledger isn't open")
        if len(self._waiting) >= MOST_WAITING:
            raise DatabaseUnavailable(f"{MOST_WAITING} events wait already to be written into the ledger")
        event = _Event(work, self._waiting)
        if not self._writing:
            self._writing = True
            self._tasks.launch(self._write_what_waits(), "writing the ledger")
        result: T = await event.done
        return result

    async def _write_what_waits(self) -> None:
        try:
            while self._waiting:
                together, self._waiting[:MOST_AT_ONCE] = self._waiting[:MOST_AT_ONCE], []
                await self._write_together(together)
        finally:
            self._writing = False

    async def _write_together(self, events: Sequence[_Event]) -> None:
        works = [event.work for event in events]

        def write(connection: Connection) -> list[Any]:
            be_alone(connection)
            return [work(connection) for work in works]

        try:
            results: Sequence[Any] = await self._run(write)
        except Exception:
            results = [Failure()] * len(events)
        for event, result in zip(events, results, strict=True):
            if not event.done.called:
                event.done.callback(result)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        prepared = self._tables_are_there

        def run(connection: Connection) -> T:
            if not prepared:
                rows.prepare(connection)
            return work(connection)

        try:
            result = await self._database.run(run)
        except DatabaseUnavailable:
            self._tables_are_there = False  # it may be another one when it's back
            raise
        self._tables_are_there = True
        return result

    def _tidy_soon(self) -> Deferred[None]:
        return self._tasks.launch(self._tidy(), "deleting old rows of the ledger")

    async def _tidy(self) -> None:
        deleted = MOST_AT_ONCE
        while deleted == MOST_AT_ONCE and self.running:
            forget = partial(rows.forget, before=self._wall_clock() - self.keep, most=MOST_AT_ONCE)
            try:
                deleted = await self._run(forget)
            except DatabaseUnavailable as error:
                self._log.error("can't delete old rows of the ledger: {reason}", reason=str(error))
                return

    async def _stop(self) -> None:
        if self._tidying.running:
            self._tidying.stop()
        await self._tasks.when_idle()
        await self._database.stopService()


class _Event:
    """Something to be written; ``done`` fires with what ``work`` returned, when it is committed."""

    def __init__(self, work: Callable[[Connection], Any], waiting: list[_Event]) -> None:
        self.work = work
        self.done: Deferred[Any] = Deferred(lambda _: waiting.remove(self) if self in waiting else None)
        waiting.append(self)
