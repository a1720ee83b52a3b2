"""An agent that is told by the LMS side where the broker is and which queues are its own.

It asks at its start and whenever :meth:`RemoteAgent.reload` is called, and goes on asking until it is answered. The
last good answer is kept in a file, and holds as long as there is no newer one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from edxagent.agent.remote_cache import AnswerCache, CacheError
from edxagent.agent.remote_source import ConfigSource
from edxagent.agent.service import AgentService, make_agent_service
from edxagent.config.lms_answer import parse_answer
from edxagent.config.values import AgentConfig
from edxagent.errors import BadAnswer, ConfigError, ConfigRefused, ConfigUnavailable, EdxagentError
from edxagent.interfaces import IGrader
from edxagent.tasks import Tasks

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class RunsAgent(Protocol):
    """The part of an agent that is needed here."""

    def startService(self) -> None:
        """Begin."""

    def stopService(self) -> Deferred[None]:
        """End; fires when it has."""

    def hurry(self) -> None:
        """Cut an end short."""


class Asks(Protocol):
    """Whom we ask; see :class:`edxagent.agent.remote_source.ConfigSource`."""

    async def ask(self) -> bytes:
        """The answer."""

    async def close(self) -> None:
        """Ask no more."""


def make_agent(
    config: AgentConfig,
    reactor: Any,
    *,
    grader: IGrader | None = None,
    on_refused: Callable[[EdxagentError], None] | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AgentService | RemoteAgent:
    """The agent, whoever tells its broker and queues; see :func:`edxagent.agent.service.make_agent_service`.

    :param on_refused: is called also when the LMS side doesn't know us and there is no earlier answer of its.
    :raises ConfigError: the grader's options don't fit each other, or ``[lms-config] ca_file`` can't be used.
    """

    def make(told: AgentConfig) -> AgentService:
        return make_agent_service(told, reactor, grader=grader, on_refused=on_refused, wall_clock=wall_clock)

    agent = make(config)
    if config.lms is None:
        return agent
    # That one is never started: it was made so that what is wrong with the grader is said now.
    try:
        source = ConfigSource(config.lms, reactor)
    except ValueError as error:
        raise ConfigError([f"[lms-config] {error}"]) from None
    return RemoteAgent(
        config=config,
        make=make,
        source=source,
        cache=AnswerCache(config.lms),
        reactor=reactor,
        on_refused=on_refused or (lambda refused: None),
    )


class RemoteAgent(Service):
    """Runs an agent with the configuration that the LMS side tells, and another one when it tells another.

    :param config: the file's, without broker addresses and queues.
    :param make: makes an agent with a whole configuration.
    :param reactor: provides ``IReactorTime``, ``IReactorThreads``.
    :param on_refused: is called once when the LMS side doesn't know us and there is nothing to begin with.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: AgentConfig,
        make: Callable[[AgentConfig], RunsAgent],
        source: Asks,
        cache: AnswerCache,
        reactor: Any,
        on_refused: Callable[[EdxagentError], None],
    ) -> None:
        self.setName("edxagent")
        self._config = config
        self._make = make
        self._source = source
        self._cache = cache
        self._reactor = reactor
        self._on_refused = on_refused
        self._told: AgentConfig | None = None
        self._kept: bytes | None = None
        self._agent: RunsAgent | None = None
        self._tasks = Tasks()
        self._asking: Deferred[bytes] | None = None
        self._resting: Deferred[None] | None = None
        self._woken = False
        self._reported_refusal = False

    def startService(self) -> None:
        """Ask, then run an agent."""
        super().startService()
        self._woken = False
        self._tasks.launch(self._keep_asking(), "asking for the configuration")

    def stopService(self) -> Deferred[None]:
        """Ask no more, and stop the agent as it stops by itself."""
        super().stopService()
        self._wake()
        if self._asking is not None:
            self._asking.cancel()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, also that of an agent whose place another one is to take."""
        if self._agent is not None:
            self._agent.hurry()

    def reload(self) -> None:
        """Ask again. An agent with another configuration takes over when this one has finished what it has begun."""
        if self.running:
            self._log.info("asking the LMS side for the configuration again")
            self._wake()

    async def _stop(self) -> None:
        await self._tasks.when_idle()
        await self._stop_agent()
        await self._source.close()

    async def _keep_asking(self) -> None:
        pause = FIRST_PAUSE
        while self.running:
            if await self._asked(pause):
                pause = FIRST_PAUSE
                await self._rest(None)
            else:
                await self._rest(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _asked(self, pause: float) -> bool:
        """Ask once, and act on the answer; whether there was a good one."""
        self._asking = Deferred.fromCoroutine(self._source.ask())
        try:
            answer = await self._asking
            told = parse_answer(answer, self._config)
        except CancelledError:
            return False
        except (ConfigUnavailable, ConfigRefused, BadAnswer) as error:
            self._log.error(
                "no configuration from the LMS side: {reason}; again in {pause:g} s", reason=str(error), pause=pause
            )
            await self._do_without(error)
            return False
        finally:
            self._asking = None
        await self._remember(answer)
        return await self._use(told)

    async def _do_without(self, error: EdxagentError) -> None:
        if self._agent is not None:
            return
        told = await self._remembered()
        if told is not None:
            self._log.warn("beginning with its last good answer, from {path}", path=self._cache.path)
            await self._use(told)
        elif isinstance(error, ConfigRefused) and not self._reported_refusal:
            self._reported_refusal = True
            self._on_refused(error)

    async def _use(self, told: AgentConfig) -> bool:
        """Have an agent with that configuration; whether there is one."""
        if told == self._told or not self.running:
            return True
        if self._agent is not None:
            self._log.info("the LMS side tells another configuration: the agent stops, and another one takes over")
            await self._stop_agent()
        if not self.running:
            return True
        try:
            agent = self._make(told)
        except ConfigError as error:
            self._log.error("no agent can be made: {reason}", reason=str(error))
            return False
        self._agent, self._told = agent, told
        agent.startService()
        return True

    async def _stop_agent(self) -> None:
        if self._agent is None:
            return
        try:
            await self._agent.stopService()
        except Exception:
            self._log.failure("an agent didn't stop in order")
        self._agent = self._told = None

    async def _remembered(self) -> AgentConfig | None:
        try:
            answer = await self._in_thread(self._cache.read)
            return None if answer is None else parse_answer(answer, self._config)
        except (CacheError, BadAnswer) as error:
            self._log.warn("{path} is of no use: {reason}", path=self._cache.path, reason=str(error))
            return None

    async def _remember(self, answer: bytes) -> None:
        if answer == self._kept:
            return
        try:
            await self._in_thread(self._cache.write, answer)
            self._kept = answer
        except CacheError as error:
            self._log.warn(
                "the LMS side's answer can't be kept in {path}: {reason}; mend [lms-config] cache_file",
                path=self._cache.path,
                reason=str(error),
            )

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    async def _rest(self, seconds: float | None) -> None:
        """Wait until somebody wakes us, or some time has passed."""
        if not self._woken:
            self._resting = Deferred()
            timer = None if seconds is None else self._reactor.callLater(seconds, self._wake)
            await self._resting
            self._resting = None
            if timer is not None and timer.active():
                timer.cancel()
        self._woken = False

    def _wake(self) -> None:
        self._woken = True
        if self._resting is not None and not self._resting.called:
            self._resting.callback(None)
