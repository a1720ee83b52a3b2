"""The valve: whether requests are taken at the moment, and every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.logger import Logger


class Valve:
    """Open unless somebody has a reason against it. Whoever shuts it opens it again.

    Each reason has a name, its owner's: ``breaker``, ``publishing``, ``blocked``, ``stopping``.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._watchers: list[Callable[[], object]] = []

    @property
    def is_open(self) -> bool:
        """Whether nobody has a reason against it."""
        return not self._reasons

    @property
    def reasons(self) -> Mapping[str, str]:
        """Name → what it says to people."""
        return dict(self._reasons)

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call ``watcher`` whenever it opened or shut."""
        self._watchers.append(watcher)

    def shut(self, name: str, reason: str) -> None:
        """Have a reason against taking requests; a second one of the same name takes the place of the first."""
        was_open = self.is_open
        self._reasons[name] = reason
        if was_open:
            self._log.warn("no more requests are taken: {reason}", reason=reason)
            self._tell()

    def open(self, name: str) -> None:
        """Have no reason any more; harmless where there was none."""
        if self._reasons.pop(name, None) is not None and self.is_open:
            self._log.info("requests are taken again")
            self._tell()

    def _tell(self) -> None:
        for watcher in list(self._watchers):
            watcher()
