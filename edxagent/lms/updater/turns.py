"""Whose turn it is: a bounded number of results at once, and never two on the same submission."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import DeferredLock, DeferredSemaphore


class Turns:
    """After a connection was lost the broker hands out again what is still under way here: it waits for its twin's end.

    :param count: how many may have their turn at once.
    """

    def __init__(self, count: int) -> None:
        self._free = DeferredSemaphore(count)
        self._locks: dict[str, DeferredLock] = {}

    def resize(self, count: int) -> None:
        """Let so many have their turn at once from now on. Those that have one, or wait for it, aren't counted."""
        self._free = DeferredSemaphore(count)

    def __len__(self) -> int:
        """How many submissions have a turn, or wait for one."""
        return len(self._locks)

    @asynccontextmanager
    async def on(self, submission: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it; cancelling gives the place up."""
        lock = self._locks.setdefault(submission, DeferredLock())
        try:
            async with lock, self._free:
                yield
        finally:
            if not lock.locked and self._locks.get(submission) is lock:
                del self._locks[submission]
