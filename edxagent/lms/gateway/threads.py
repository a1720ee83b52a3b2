"""A few threads for work that may block; none of them lives longer than whoever started them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class Threads:
    """Runs functions outside the reactor's thread.

    :param most: how many run at once; more wait.
    """

    def __init__(self, reactor: Any, name: str, most: int) -> None:
        self._reactor = reactor
        self._name = name
        self._most = most
        self._pool = ThreadPool(0, most, name)
        self._under_way = 0
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Be ready; also again after a stop."""
        self._pool = ThreadPool(0, self._most, self._name)
        self._pool.start()

    def run(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Call ``function``; fires with what it returns or raises. Cancelling ends the waiting, not the call."""
        deferred: Deferred[T] = Deferred()
        self._under_way += 1
        self._pool.callInThreadWithCallback(
            lambda success, result: self._reactor.callFromThread(self._done, deferred, result), function, *args
        )
        return deferred

    async def stop(self) -> None:
        """Let the calls end, and then the threads. Nobody may call :meth:`run` any more."""
        if self._under_way:
            self._idle = Deferred()
            await self._idle
        self._pool.stop()

    def _done(self, deferred: Deferred[Any], result: Any) -> None:
        deferred.callback(result)
        self._under_way -= 1
        if not self._under_way and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)
