"""Waiting: sleep that the end of the service cuts short, and pauses that grow."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

Uniform = Callable[[float, float], float]
"""``random.uniform``, or a test's own."""


class Naps:
    """Sleep that can be ended for all at once.

    :ivar over: whether nobody sleeps any more.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.over = False
        self._clock = clock
        self._sleepers: dict[Deferred[None], IDelayedCall] = {}

    def begin(self) -> None:
        """From now on there is sleep."""
        self.over = False

    def end(self) -> None:
        """Wake everybody, now and from now on."""
        self.over = True
        for sleeper in list(self._sleepers):
            self._sleepers[sleeper].cancel()
            self._wake(sleeper)

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, or until the end."""
        if not self.over:
            sleeper: Deferred[None] = Deferred(lambda _: self._sleepers.pop(sleeper).cancel())
            self._sleepers[sleeper] = self._clock.callLater(seconds, self._wake, sleeper)
            await sleeper

    def _wake(self, sleeper: Deferred[None]) -> None:
        del self._sleepers[sleeper]
        sleeper.callback(None)


class GrowingPause:
    """Pauses that double from ``first`` to ``longest``, each shortened by up to a half: so not all come at once."""

    def __init__(self, first: float, longest: float, uniform: Uniform) -> None:
        self._first = first
        self._longest = longest
        self._uniform = uniform
        self._next = first

    def next(self) -> float:
        """The seconds to wait now."""
        pause, self._next = self._next, min(self._next * 2, self._longest)
        return pause * self._uniform(0.5, 1.0)

    def reset(self) -> None:
        """All is well: the next pause is the first again."""
        self._next = self._first
