"""Coroutines that were launched and must neither be forgotten nor fail unseen, and patience with their ends."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsOver
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure


class Tasks:
    """The coroutines under way. One that fails is logged; ``what`` says in the log which it was."""

    _log = Logger()

    def __init__(self) -> None:
        self._running: set[Deferred[None]] = set()
        self._waiters: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._running)

    def launch(self, coroutine: Coroutine[Deferred[Any], Any, None], what: str) -> Deferred[None]:
        """Run ``coroutine``; the Deferred fires with ``None`` when it has ended, however that was."""
        task = Deferred.fromCoroutine(coroutine)
        self._running.add(task)
        task.addErrback(self._report, what)
        task.addBoth(self._ended, task)
        return task

    def cancel(self) -> None:
        """Cancel all that are under way."""
        for task in list(self._running):
            task.cancel()

    def when_idle(self) -> Deferred[None]:
        """Fires when nothing is under way; cancelling stops the waiting only."""
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        self._tell()
        return waiter

    def _report(self, failure: Failure, what: str) -> None:
        if not failure.check(CancelledError):
            self._log.failure("{what} failed", failure, what=what)

    def _ended(self, result: None, task: Deferred[None]) -> None:
        self._running.discard(task)
        self._tell()
        return result

    def _tell(self) -> None:
        while self._waiters and not self._running:
            self._waiters.pop(0).callback(None)


class Patience:
    """Waits for the end of things, though only for so long, and no longer when somebody is in a hurry."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._hurried = False
        self._waiting: Deferred[None] | None = None

    @property
    def hurried(self) -> bool:
        """Whether somebody is in a hurry."""
        return self._hurried

    def renew(self) -> None:
        """Nobody is in a hurry any more."""
        self._hurried = False

    def hurry(self) -> None:
        """Wait no longer for what is waited for now; nor, later, for what has :meth:`with_time`."""
        self._hurried = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def with_time(self, seconds: float, done: Deferred[None]) -> bool:
        """As :meth:`to_the_last`, but at once over when somebody is in a hurry already."""
        if self._hurried:
            done.cancel()
        return await self.to_the_last(seconds, done)

    async def to_the_last(self, seconds: float, done: Deferred[None]) -> bool:
        """Whether ``done`` fires within that time; if not, it is cancelled."""
        self._waiting = done
        try:
            await done.addTimeout(seconds, self._clock)
        except (CancelledError, TimeIsOver):
            return False
        finally:
            self._waiting = None
        return True
