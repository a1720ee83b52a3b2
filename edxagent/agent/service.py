"""The agent as one Twisted service: what it is made of, in which order it starts and stops, and how it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from edxagent.agent.blocked import BlockedBroker
from edxagent.agent.changes import changed_sections, within_reach
from edxagent.agent.grader_breaker import GraderBreaker
from edxagent.agent.grading import Grading, configured_grader, same_grader
from edxagent.agent.quarantine import Quarantine
from edxagent.agent.results import ResultPublisher
from edxagent.agent.succession import Succession
from edxagent.agent.taking import Taking
from edxagent.agent.valve import Valve
from edxagent.amqp.link import BrokerLink
from edxagent.amqp.publisher import ConfirmingPublisher
from edxagent.config.values import AgentConfig
from edxagent.errors import BrokerRefused
from edxagent.interfaces import IGrader, IHeldDelivery
from edxagent.limits import FairSlots
from edxagent.reload.changes import Changes
from edxagent.tasks import Patience

LAST_CHANCE = 10.0
"""Seconds that a cancelled submission may take to let go of what it holds, before the agent stops without it."""


def make_agent_service(
    config: AgentConfig,
    reactor: Any,
    *,
    grader: IGrader | None = None,
    on_refused: Callable[[BrokerRefused], None] | None = None,
    on_stuck: Callable[[], object] = lambda: None,
    wall_clock: Callable[[], float] = time.time,
) -> AgentService:
    """The agent, to be hung into any ``MultiService``. Where ``[lms-config]`` may be used, take
    :func:`edxagent.agent.make_agent`: this one needs a configuration that names broker and queues.

    :param grader: a grader of your own, in the place of the configured one.
    :param on_refused: is called when every broker has refused us from the start, in a way that only a person can mend,
        and none is tried again. The program that owns the process may stop then; an embedding one may carry on without
        grading.
    :param on_stuck: is called when the broker has submissions for us, yet sends none, over any connection that we make.
        Only another process may help then.
    :param wall_clock: seconds since the epoch, for what others read; deadlines run by the reactor's clock.
    :raises ConfigError: the grader's options don't fit each other.
    """
    return AgentService(
        config=config,
        grader=grader,
        reactor=reactor,
        on_refused=on_refused or (lambda refused: None),
        on_stuck=on_stuck,
        wall_clock=wall_clock,
    )


class AgentService(Service):
    """Grades what waits in the queues, from ``startService`` until the Deferred of ``stopService`` has fired."""

    _log = Logger()

    def __init__(
        self,
        *,
        config: AgentConfig,
        grader: IGrader | None = None,
        reactor: Any,
        on_refused: Callable[[BrokerRefused], None],
        on_stuck: Callable[[], object] = lambda: None,
        wall_clock: Callable[[], float],
    ) -> None:
        self.setName("edxagent")
        self._config = config
        self._own_grader = grader
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._slots = FairSlots(config.concurrency, _weights(config))
        self._patience = Patience(reactor)
        self._valve = Valve()
        self._publishing = BrokerLink(
            reactor=reactor,
            config=config.broker,
            purpose="publish",
            name=config.name,
            prepare=BlockedBroker(self._valve).attend,
            on_refused=on_refused,
        )
        self._taking = Taking(
            config=config,
            reactor=reactor,
            slots=self._slots,
            valve=self._valve,
            receive=self._receive,
            on_refused=on_refused,
            on_stuck=on_stuck,
        )
        self._results = ResultPublisher(
            ConfirmingPublisher(self._publishing), config.results.queue, reactor, self._valve
        )
        self._breaker = GraderBreaker(
            config=config.breaker, valve=self._valve, clock=reactor, wall_clock=wall_clock, probe=self._taking.probe
        )
        self._quarantine = Quarantine(config.quarantine, reactor, concurrency=config.concurrency, wall_clock=wall_clock)
        self._graders = Succession(self._make_grading(config))
        self._changes = Changes(
            current=lambda: self._config,
            within_reach=within_reach,
            changed_sections=changed_sections,
            take_over=self._take_over,
        )

    @property
    def consuming(self) -> bool:
        """Whether there is a session that requests are taken from."""
        return self._taking.consuming

    def startService(self) -> None:
        """Start the grader, if it is a service, then publishing, then taking requests."""
        super().startService()
        self._patience.renew()
        self._breaker.use(self._config.breaker)
        self._graders.current.start()
        self._publishing.startService()
        # What agents died of has to be known before the first submission comes.
        self._quarantine.open().addCallback(lambda _: self._start_taking())

    def stopService(self) -> Deferred[None]:
        """Take no more, finish what is being graded, give the rest back, then close; fires when all that is done."""
        super().stopService()
        self._changes.stop()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin: what is still being graded goes back to its queue."""
        self._taking.hurry()
        self._publishing.hurry()
        self._patience.hurry()

    def reconfigure(self, config: AgentConfig) -> Deferred[None]:
        """Go on with another configuration, on the same connections. During a stop it does nothing.

        A submission ends by the configuration by which it was taken, with the grader of that time. What can't change
        without a restart stays as it is, and a line in the log names it.

        :raises ConfigError: the grader can't be made or started; nothing has changed.
        :raises BrokerError: the broker doesn't let us have a queue; nothing has changed.
        """
        return Deferred.fromCoroutine(self._changes.to(config))

    async def _stop(self) -> None:
        if not await self._patience.with_time(self._config.drain_timeout, Deferred.fromCoroutine(self._drain())):
            self._log.warn("{count} submissions go back to their queues", count=self._graders.count)
            self._graders.cancel()
            await self._patience.to_the_last(LAST_CHANCE, Deferred.fromCoroutine(self._graders.when_idle()))
        await gatherResults([self._taking.stopService(), self._publishing.stopService()])
        await self._patience.to_the_last(LAST_CHANCE, Deferred.fromCoroutine(self._quarantine.close()))
        await self._patience.to_the_last(LAST_CHANCE, Deferred.fromCoroutine(self._graders.stop()))
        self._breaker.stop()
        self._changes.resume()

    async def _drain(self) -> None:
        # A broker that doesn't answer is no reason to drain for longer, so this is a part of it.
        await self._taking.close()
        if self._graders.count:
            self._log.info("waiting for {count} submissions", count=self._graders.count)
        await self._graders.when_idle()

    def _start_taking(self) -> None:
        if self.running:
            self._taking.startService()

    def _receive(self, delivery: IHeldDelivery) -> Deferred[None]:
        return self._graders.current.receive(delivery)

    # Another configuration

    async def _take_over(self, config: AgentConfig) -> None:
        """All of it, or, with an error, nothing."""
        grading = self._graders.current
        if self._own_grader is None and not same_grader(self._config, config):
            grading = self._make_grading(config)
            if self.running:
                grading.start()
            self._graders.join(grading)
        try:
            await self._taking.use(config)
        except Exception:
            if grading is not self._graders.current:
                self._graders.leave(grading)
            raise
        fresh = grading is not self._graders.current or config.breaker != self._config.breaker
        # Nothing that follows can fail. No request of another queue is here yet: it would meet the wrong grader.
        self._config = config
        self._slots.resize(config.concurrency)
        self._slots.reweigh(_weights(config))
        self._results.default_key = config.results.queue
        self._quarantine.use(config.quarantine)
        if grading is self._graders.current:
            grading.use(config)
        else:
            self._graders.succeed(grading)
        if fresh:
            self._breaker.use(config.breaker)

    def _make_grading(self, config: AgentConfig) -> Grading:
        return Grading(
            config=config,
            grader=self._own_grader or configured_grader(config, self._reactor),
            slots=self._slots,
            results=self._results,
            breaker=self._breaker,
            quarantine=self._quarantine,
            clock=self._reactor,
            wall_clock=self._wall_clock,
        )


def _weights(config: AgentConfig) -> dict[str, int]:
    return {queue.name: queue.weight for queue in config.queues}
