"""A reactor for tests of what works in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure


class ThreadlessReactor(Clock):
    """A clock whose threads are none: what they would do is done when a test says so.

    :ivar hold: whether it is put off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.held: list[Callable[[], None]] = []

    def getThreadPool(self) -> ThreadlessReactor:
        """See ``IReactorThreads``."""
        return self

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        """See ``IReactorFromThreads``."""
        function(*arguments)

    def callInThreadWithCallback(self, done: Any, function: Any, *arguments: Any, **named: Any) -> None:
        """See ``ThreadPool``."""

        def work() -> None:
            try:
                result = function(*arguments, **named)
            except Exception:
                done(False, Failure())
            else:
                done(True, result)

        if self.hold:
            self.held.append(work)
        else:
            work()
