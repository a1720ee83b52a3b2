"""Coroutines that were launched and must neither be forgotten nor fail unseen."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
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
