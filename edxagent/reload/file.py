"""A program together with the file that configures it, which is read again when somebody says so."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from edxagent.errors import ConfigError, EdxagentError
from edxagent.tasks import Tasks

Config = TypeVar("Config")
Config_contra = TypeVar("Config_contra", contravariant=True)


class Reconfigurable(Protocol[Config_contra]):
    """The part of a program that is needed here: the agent, or the LMS side."""

    def setServiceParent(self, parent: Any) -> None:
        """See :meth:`twisted.application.service.IService.setServiceParent`."""

    def hurry(self) -> None:
        """Cut a stop short."""

    def reconfigure(self, config: Config_contra) -> Awaitable[None]:
        """Go on with another configuration, or, with an error, with the one that there is."""


class ConfiguredService(MultiService, Generic[Config]):
    """See the module.

    The file is read in a thread: it may name others, with passwords, and any of them may be on a slow disk.

    :param read: reads the file; blocks; raises ``ConfigError``.
    :param reactor: provides ``IReactorThreads``.
    :param wall_clock: seconds since the epoch.
    :ivar loaded: when the file was read that the program goes by, in seconds since the epoch.
    :ivar reload_error: why the file that was read last isn't that one; empty if it is.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        program: Reconfigurable[Config],
        read: Callable[[], Config],
        reactor: Any,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.loaded = wall_clock()
        self.reload_error = ""
        self._program = program
        self._read = read
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._tasks = Tasks()
        self._wanted = False
        program.setServiceParent(self)

    def reload(self) -> None:
        """Read the file, and have the program go by it. What is wrong with it is logged, and changes nothing."""
        self._wanted = True
        if not self._tasks:
            self._tasks.launch(self._reload(), "reading the configuration again")

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin."""
        self._program.hurry()

    def stopService(self) -> Deferred[None]:
        """Stop the program; fires when it has stopped, and nothing is being read any more."""
        stopped: Deferred[Any] = super().stopService()
        return gatherResults([stopped, self._tasks.when_idle()]).addCallback(lambda _: None)

    async def _reload(self) -> None:
        # Told again meanwhile, it reads again: the file may have changed since.
        while self._wanted and self.running:
            self._wanted = False
            self._log.info("reading the configuration again")
            try:
                read_at = self._wall_clock()
                config = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._read)
                if self.running:
                    await self._program.reconfigure(config)
            except EdxagentError as error:
                self.reload_error = str(error)
                for problem in error.problems if isinstance(error, ConfigError) else [self.reload_error]:
                    self._log.error("the configuration stays as it is: {problem}", problem=problem)
            else:
                self.loaded, self.reload_error = read_at, ""
