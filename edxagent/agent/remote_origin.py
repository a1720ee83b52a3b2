"""Where an agent's configuration comes from: the LMS side, or else the file with its last good answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from edxagent.agent.remote_cache import AnswerCache, CacheError
from edxagent.agent.remote_source import ConfigSource
from edxagent.config.values import LMSSourceConfig
from edxagent.errors import ConfigError


class Asks(Protocol):
    """Whom we ask; see :class:`edxagent.agent.remote_source.ConfigSource`."""

    async def ask(self) -> bytes:
        """The answer."""

    async def close(self) -> None:
        """Ask no more."""


class Origin:
    """One LMS side, and the file that belongs to it.

    :param reactor: provides ``IReactorThreads``.
    :ivar answer: the last good one, if there was any.
    """

    _log = Logger()

    def __init__(self, source: Asks, cache: AnswerCache, reactor: Any) -> None:
        self.answer: bytes | None = None
        self._source = source
        self._cache = cache
        self._reactor = reactor
        self._kept: bytes | None = None

    @property
    def path(self) -> str:
        """The file's."""
        return self._cache.path

    async def ask(self) -> bytes:
        """What the LMS side answers; raises as :meth:`edxagent.agent.remote_source.ConfigSource.ask` does."""
        return await self._source.ask()

    async def remember(self, answer: bytes) -> None:
        """Keep a good answer, at least for as long as we live."""
        self.answer = answer
        if answer == self._kept:
            return
        try:
            await self._in_thread(self._cache.write, answer)
            self._kept = answer
        except CacheError as error:
            self._log.warn(
                "the LMS side's answer can't be kept in {path}: {reason}; mend [lms-config] cache_file",
                path=self.path,
                reason=str(error),
            )

    async def remembered(self) -> bytes | None:
        """The last good answer, also of a life before."""
        if self.answer is None:
            try:
                self.answer = await self._in_thread(self._cache.read)
            except CacheError as error:
                self._log.warn("{path} is of no use: {reason}", path=self.path, reason=str(error))
        return self.answer

    async def close(self) -> None:
        """Ask no more."""
        await self._source.close()

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)


def make_origin(config: LMSSourceConfig, reactor: Any) -> Origin:
    """The origin that ``[lms-config]`` names.

    :raises ConfigError: ``ca_file`` can't be used.
    """
    try:
        return Origin(ConfigSource(config, reactor), AnswerCache(config), reactor)
    except ValueError as error:
        raise ConfigError([f"[lms-config] {error}"]) from None
