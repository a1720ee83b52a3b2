"""The agent as one Twisted service: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from edxagent.agent.grading import Grading, configured_grader
from edxagent.agent.results import ResultPublisher
from edxagent.agent.taking import Taking
from edxagent.agent.valve import Valve
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerRefused
from edxagent.interfaces import IGrader, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.tasks import Patience

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
        grader=grader or configured_grader(config, reactor),
        reactor=reactor,
        on_refused=on_refused or (lambda refused: None),
        wall_clock=wall_clock,
    )


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
        self._slots = FairSlots(config.concurrency, {queue.name: queue.weight for queue in config.queues})
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
        self._grading = Grading(
            config=config,
            grader=grader,
            slots=self._slots,
            results=ResultPublisher(ConfirmingPublisher(self._publishing), config.results.queue, reactor),
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
        self._grading.start()
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
            self._log.warn("{count} submissions go back to their queues", count=len(self._grading))
            self._grading.cancel()
            await self._patience.to_the_last(LAST_CHANCE, self._grading.when_idle())
        await gatherResults([self._taking.stopService(), self._publishing.stopService()])
        await self._grading.stop()

    async def _drain(self) -> None:
        # A broker that doesn't answer is no reason to drain for longer, so this is a part of it.
        await self._taking.close()
        if len(self._grading):
            self._log.info("waiting for {count} submissions", count=len(self._grading))
        await self._grading.when_idle()

    def _receive(self, delivery: IHeldDelivery) -> Deferred[None]:
        return self._grading.receive(delivery)


async def _nothing(session: Session) -> None:
    """Publishing needs no preparation."""
