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
from twisted.logger import Logger

from edxagent.agent.changes import with_same_source
from edxagent.agent.remote_origin import Origin, make_origin
from edxagent.agent.service import AgentService, make_agent_service
from edxagent.config.lms_answer import parse_answer
from edxagent.config.values import AgentConfig, LMSSourceConfig
from edxagent.errors import BadAnswer, ConfigRefused, ConfigUnavailable, EdxagentError
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

    def reconfigure(self, config: AgentConfig) -> Deferred[None]:
        """Go on with another configuration."""


def make_agent(
    config: AgentConfig,
    reactor: Any,
    *,
    grader: IGrader | None = None,
    on_refused: Callable[[EdxagentError], None] | None = None,
    on_stuck: Callable[[], object] = lambda: None,
    wall_clock: Callable[[], float] = time.time,
) -> AgentService | RemoteAgent:
    """The agent, whoever tells its broker and queues; see :func:`edxagent.agent.service.make_agent_service`.

    :param on_refused: is called also when the LMS side doesn't know us and there is no earlier answer of its.
    :raises ConfigError: the grader's options don't fit each other, or ``[lms-config] ca_file`` can't be used.
    """

    def make(told: AgentConfig) -> AgentService:
        return make_agent_service(
            told, reactor, grader=grader, on_refused=on_refused, on_stuck=on_stuck, wall_clock=wall_clock
        )

    if config.lms is None:
        return make(config)
    return RemoteAgent(
        config=config,
        make=make,
        make_origin=lambda lms: make_origin(lms, reactor),
        reactor=reactor,
        on_refused=on_refused or (lambda refused: None),
    )


class RemoteAgent(Service):
    """Runs an agent with the configuration that the LMS side tells, and another one when it tells another broker.

    :param config: the file's, without broker addresses and queues.
    :param make: makes an agent with a whole configuration; tells of a bad grader also without one.
    :param make_origin: makes what answers.
    :param reactor: provides ``IReactorTime``.
    :param on_refused: is called once when the LMS side doesn't know us and there is nothing to begin with.
    :raises ConfigError: see :func:`make_agent`.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: AgentConfig,
        make: Callable[[AgentConfig], RunsAgent],
        make_origin: Callable[[LMSSourceConfig], Origin],
        reactor: Any,
        on_refused: Callable[[EdxagentError], None],
    ) -> None:
        assert config.lms is not None
        self.setName("edxagent")
        make(config)  # and drop it: what is wrong with the grader is to be said now
        self._config = config
        self._make = make
        self._make_origin = make_origin
        self._origin = make_origin(config.lms)
        self._reactor = reactor
        self._on_refused = on_refused
        self._told: AgentConfig | None = None
        self._agent: RunsAgent | None = None
        self._tasks = Tasks()
        self._asking: Deferred[bytes] | None = None
        self._changing: Deferred[None] | None = None
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
        for awaited in (self._asking, self._changing):
            if awaited is not None:
                awaited.cancel()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, also that of an agent whose place another one is to take."""
        if self._agent is not None:
            self._agent.hurry()

    def reload(self) -> None:
        """Ask again. The agent goes on with another answer, as :meth:`AgentService.reconfigure` does; if the broker is
        another one, another agent takes over when this one has finished what it has begun.
        """
        if self.running:
            self._log.info("asking the LMS side for the configuration again")
            self._wake()

    async def reconfigure(self, config: AgentConfig) -> None:
        """Go by another file, and ask again: what it says holds together with the answer, or with the last good one.

        :raises ConfigError: see :func:`make_agent`; nothing has changed.
        """
        config, beyond = with_same_source(self._config, config)
        if beyond:
            self._log.warn("{settings} came or went, and that needs a restart", settings=", ".join(beyond))
        self._make(config)  # as above
        assert config.lms is not None
        if config.lms != self._config.lms:
            before, self._origin = self._origin, self._make_origin(config.lms)
            if self._asking is not None:
                self._asking.cancel()
            self._tasks.launch(before.close(), "leaving the LMS side that was asked before")
        self._config = config
        self.reload()

    async def _stop(self) -> None:
        await self._tasks.when_idle()
        await self._stop_agent()
        await self._origin.close()

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
        origin = self._origin
        self._asking = Deferred.fromCoroutine(origin.ask())
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
        await origin.remember(answer)
        if told == self._told:
            self._log.info("the LMS side tells what it told before: nothing changed")
        return await self._use(told)

    async def _do_without(self, error: EdxagentError) -> None:
        """Go by its last good answer, and by what the file says now."""
        told = await self._remembered()
        if told is not None:
            if self._agent is None:
                self._log.warn("beginning with its last good answer, from {path}", path=self._origin.path)
            await self._use(told)
        elif self._agent is None and isinstance(error, ConfigRefused) and not self._reported_refusal:
            self._reported_refusal = True
            self._on_refused(error)

    async def _remembered(self) -> AgentConfig | None:
        origin = self._origin
        answer = await origin.remembered()
        try:
            return None if answer is None else parse_answer(answer, self._config)
        except BadAnswer as error:
            self._log.warn("{path} is of no use: {reason}", path=origin.path, reason=str(error))
            return None

    async def _use(self, told: AgentConfig) -> bool:
        """Have an agent with that configuration; whether there is one."""
        if not self.running or told == self._told:
            return True
        try:
            if self._agent is not None and self._told is not None and told.broker == self._told.broker:
                self._changing = self._agent.reconfigure(told)
                await self._changing
                self._told = told
            else:
                await self._exchange(told)
        except EdxagentError as error:
            self._log.error("the agent can't use what it was told: {reason}", reason=str(error))
            return False
        finally:
            self._changing = None
        return True

    async def _exchange(self, told: AgentConfig) -> None:
        if self._agent is not None:
            self._log.info("the LMS side tells another broker: the agent stops, and another one takes over")
            await self._stop_agent()
        if self.running:
            self._agent = self._make(told)
            self._agent.startService()
            self._told = told

    async def _stop_agent(self) -> None:
        if self._agent is None:
            return
        try:
            await self._agent.stopService()
        except Exception:
            self._log.failure("an agent didn't stop in order")
        self._agent = self._told = None

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
