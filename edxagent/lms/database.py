"""A database off the reactor's thread: each transaction runs in one of a few threads of its own.

There is one thread for SQLite, which lets one write at a time, and some for PostgreSQL. Everything ends: what waits for
a thread is bounded in number, a statement and a connection attempt in time, and a transaction that takes longer than
``deadline`` all the same, because its server hangs, has its connection cut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from edxagent.errors import DatabaseUnavailable
from edxagent.lms.engine import Sockets, make_engine, read_url, shown
from edxagent.words import brief

T = TypeVar("T")

MOST_WAITING = 1000
"""Transactions that may wait for a thread."""


class Database(Service):
    """A database, open from :meth:`startService` until the Deferred of :meth:`stopService` fires.

    :param url: SQLAlchemy's, for SQLite or PostgreSQL.
    :param reactor: provides ``IReactorTime``, ``IReactorFromThreads``.
    :param threads: transactions at once; on SQLite it is always one.
    :param deadline: seconds for a transaction, beyond which the connections to the server are cut.
    :param read_only: whether everything that writes fails.
    :raises ValueError: the URL can't be used, or a folder or a driver is missing; one line, without a password.
    """

    def __init__(
        self, url: str, reactor: Any, *, threads: int = 4, deadline: float = 30.0, read_only: bool = False
    ) -> None:
        parsed = read_url(url)
        self._name = shown(parsed)
        self._threads = 1 if parsed.get_backend_name() == "sqlite" else threads
        self._engine = make_engine(parsed, connections=self._threads, read_only=read_only)
        self._sockets = Sockets(self._engine)
        self._reactor = reactor
        self._deadline = deadline
        self._slots = DeferredSemaphore(self._threads)
        self._pool: ThreadPool | None = None

    def __str__(self) -> str:
        """Its URL, without the password."""
        return self._name

    def startService(self) -> None:
        """Open it; the first transaction connects."""
        super().startService()
        self._pool = ThreadPool(0, self._threads, "database")
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """Fires when what had begun has ended, and every connection and thread is gone. What waits fails."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in a thread, as one transaction: committed when it returns, rolled back when it raises.

        Cancelling drops what hasn't begun. What has begun goes on by itself, and may be committed.

        :raises DatabaseUnavailable: the database can't be used now, or isn't open, or too much waits for it.
        :raises sqlalchemy.exc.DataError: it can't hold such a value. Its text may hold that.
        :raises sqlalchemy.exc.IntegrityError: the same, of a value that doesn't go with others.
        """
        if len(self._slots.waiting) >= MOST_WAITING:
            raise DatabaseUnavailable(f"{self}: {MOST_WAITING} transactions wait already")
        try:
            if self.running:
                await self._slots.acquire()
        except CancelledError:
            if self.running:
                raise
        if not self.running:
            raise DatabaseUnavailable(f"{self}: it isn't open")
        return await self._in_thread(partial(self._transaction, work))

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except (DataError, IntegrityError):
            raise
        except DBAPIError as error:
            raise DatabaseUnavailable(f"{self}: {brief(str(error.orig))}") from None
        except (OSError, PoolTimeout) as error:
            raise DatabaseUnavailable(f"{self}: {brief(str(error))}") from None

    def _in_thread(self, work: Callable[[], T]) -> Deferred[T]:
        """Work that holds a slot, and gives it back when it has really ended, whoever waits for it or not."""
        assert self._pool is not None
        waiting: Deferred[T] = Deferred()
        overdue = self._reactor.callLater(self._deadline, self._sockets.cut)

        def ended(result: T | Failure) -> None:
            if overdue.active():
                overdue.cancel()
            self._slots.release()
            waiting.callback(result)  # a Failure will do as well

        def tell(_: bool, result: T | Failure) -> None:
            self._reactor.callFromThread(ended, result)

        self._pool.callInThreadWithCallback(tell, work)
        return waiting

    async def _close(self) -> None:
        # Now: handed a slot each, one from within the other, a few hundred would overflow the stack.
        for waiting in list(self._slots.waiting):
            waiting.cancel()
        for _ in range(self._threads):
            await self._slots.acquire()
        if self._pool is not None:
            await self._in_thread(self._engine.dispose)  # SQLite copies its log into the file now
            await self._slots.acquire()
            self._pool.stop()  # which waits for threads that have nothing to do
            self._pool = None
        for _ in range(self._threads):
            self._slots.release()
