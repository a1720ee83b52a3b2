"""The agent as one Twisted service: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from edxagent.agent.life import SubmissionLife
from edxagent.agent.results import ResultPublisher
from edxagent.agent.taking import Taking
from edxagent.agent.valve import Valve
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerRefused, ConfigError
from edxagent.graders.registry import find_factory
from edxagent.interfaces import GraderTools, IGrader, IHeldDelivery
from edxagent.limits import DeadlineGrader, FairSlots
from edxagent.tasks import Patience, Tasks

LAST_CHANCE = 10.0
"""Seconds that a cancelled submission may take to let go of what it holds, before the agent stops without it."""


def make_agent_service(
    config: AgentConfig,
    reactor: Any,
    *,
    grader: IGrader | None = None,
    on_refused: Callable[[BrokerRefused], None] | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AgentService:
    """The agent, to be hung into any ``MultiService``. Where ``[lms-config]`` may be used, take
    :func:`edxagent.agent.make_agent`: this one needs a configuration that names broker and queues.

    :param grader: a grader of your own, in the place of the configured one.
    :param on_refused: is called when every broker has refused us from the start, in a way that only a person can mend,
        and none is tried again. The program that owns the process may stop then; an embedding one may carry on without
        grading.
    :param wall_clock: seconds since the epoch, for what others read; deadlines run by the reactor's clock.
    :raises ConfigError: the grader's options don't fit each other.
    """
    return AgentService(
        config=config,
        grader=grader or _configured_grader(config, reactor),
        reactor=reactor,
        on_refused=on_refused or (lambda refused: None),
        wall_clock=wall_clock,
    )


def _configured_grader(config: AgentConfig, reactor: Any) -> IGrader:
    tools = GraderTools(reactor=reactor, concurrency=config.concurrency, max_reply=config.results.max_reply)
    try:
        return find_factory(config.grader.kind).build(config.grader.options, tools)
    except ValueError as error:
        raise ConfigError([f"[grader] {error}"]) from None


class AgentService(Service):
    """Grades what waits in the queues, from ``startService`` until the Deferred of ``stopService`` has fired."""

    _log = Logger()

    def __init__(
        self,
        *,
        config: AgentConfig,
        grader: IGrader,
        reactor: Any,
        on_refused: Callable[[BrokerRefused], None],
        wall_clock: Callable[[], float],
    ) -> None:
        self.setName("edxagent")
        self._config = config
        self._grader = grader
        self._clock = reactor
        self._slots = FairSlots(config.concurrency, {queue.name: queue.weight for queue in config.queues})
        self._lives = Tasks()
        self._patience = Patience(reactor)
        self._valve = Valve()
        self._publishing = BrokerLink(
            reactor=reactor,
            config=config.broker,
            purpose="publish",
            name=config.name,
            prepare=_nothing,
            on_refused=on_refused,
        )
        self._taking = Taking(
            config=config,
            reactor=reactor,
            slots=self._slots,
            valve=self._valve,
            receive=self._receive,
            on_refused=on_refused,
        )
        publisher = ConfirmingPublisher(self._publishing)
        self._life = SubmissionLife(
            config=config,
            grader=DeadlineGrader(grader, config.grader.timeout, reactor),
            slots=self._slots,
            results=ResultPublisher(publisher, config.results.queue, reactor),
            clock=reactor,
            wall_clock=wall_clock,
        )

    @property
    def consuming(self) -> bool:
        """Whether there is a session that requests are taken from."""
        return self._taking.consuming

    def startService(self) -> None:
        """Start the grader, if it is a service, then publishing, then taking requests."""
        super().startService()
        self._patience.renew()
        if IService.providedBy(self._grader):
            self._grader.startService()
        self._publishing.startService()
        self._taking.startService()

    def stopService(self) -> Deferred[None]:
        """Take no more, finish what is being graded, give the rest back, then close; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin: what is still being graded goes back to its queue."""
        self._taking.hurry()
        self._publishing.hurry()
        self._patience.hurry()

    async def _stop(self) -> None:
        if not await self._patience.with_time(self._config.drain_timeout, Deferred.fromCoroutine(self._drain())):
            self._log.warn("{count} submissions go back to their queues", count=len(self._lives))
            self._lives.cancel()
            await self._patience.to_the_last(LAST_CHANCE, self._lives.when_idle())
        await gatherResults([self._taking.stopService(), self._publishing.stopService()])
        if IService.providedBy(self._grader):
            await maybeDeferred(self._grader.stopService)

    async def _drain(self) -> None:
        # A broker that doesn't answer is no reason to drain for longer, so this is a part of it.
        await self._taking.close()
        if self._lives:
            self._log.info("waiting for {count} submissions", count=len(self._lives))
        await self._lives.when_idle()

    def _receive(self, delivery: IHeldDelivery) -> Deferred[None]:
        return self._lives.launch(self._life.handle(delivery), "a submission's life")


async def _nothing(session: Session) -> None:
    """Publishing needs no preparation."""
