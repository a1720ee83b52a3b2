"""From one configuration to another: one change at a time, none during a stop, and a line in the log for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

Config = TypeVar("Config")


class Changes(Generic[Config]):
    """See the module.

    :param current: the configuration that the program goes by.
    :param within_reach: of the current one and a wanted one: as much of the latter as can be had without a restart, and
        what of it can't, as ``[broker]``.
    :param changed_sections: of the current one and the next: the sections that differ.
    :param take_over: has the program go by a configuration, all of it, or, with an error, nothing. Cancelling it means
        nothing as well.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        current: Callable[[], Config],
        within_reach: Callable[[Config, Config], tuple[Config, list[str]]],
        changed_sections: Callable[[Config, Config], list[str]],
        take_over: Callable[[Config], Awaitable[None]],
    ) -> None:
        self._current = current
        self._within_reach = within_reach
        self._changed_sections = changed_sections
        self._take_over = take_over
        self._turn = DeferredLock()
        self._change: Deferred[None] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Begin none any more, and give up the one that is under way."""
        self._stopped = True
        if self._change is not None:
            self._change.cancel()

    def resume(self) -> None:
        """After a stop: begin them again."""
        self._stopped = False

    async def to(self, wanted: Config) -> None:
        """Go by another configuration, as far as that is possible; raises what ``take_over`` does."""
        await self._turn.acquire()
        try:
            if not self._stopped:
                self._change = Deferred.fromCoroutine(self._change_to(wanted))
                await self._change
        except CancelledError:
            self._log.info("the configuration stays as it is: the program stops")
        finally:
            self._change = None
            self._turn.release()

    async def _change_to(self, wanted: Config) -> None:
        current = self._current()
        config, beyond = self._within_reach(current, wanted)
        if beyond:
            self._log.warn(
                "{settings} changed, and that needs a restart: until then it stays as it is",
                settings=", ".join(beyond),
            )
        changed = self._changed_sections(current, config)
        if changed:
            await self._take_over(config)
            self._log.info("the configuration has changed: {sections}", sections=" ".join(changed))
        elif not beyond:
            self._log.info("the configuration is as it was: nothing changed")
