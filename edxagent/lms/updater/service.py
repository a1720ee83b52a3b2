"""The updater as one Twisted service: takes results from their queue and sees to it that they reach their sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from edxagent.agent.results import ResultPublisher
from edxagent.amqp.channel import Channel
from edxagent.amqp.link import BrokerLink, Session
from edxagent.amqp.topology import ensure_updater_topology
from edxagent.breaker import Breaker
from edxagent.config.lms_values import UpdaterConfig
from edxagent.config.values import BrokerConfig
from edxagent.errors import BrokerError, BrokerRefused
from edxagent.interfaces import IDelivery, IPublisher, IResultSink
from edxagent.lms.contracts import ILedger
from edxagent.lms.updater.checks import ResultChecker
from edxagent.lms.updater.desk import Desk
from edxagent.lms.updater.life import ResultLife, Retries
from edxagent.lms.updater.notes import Notes
from edxagent.lms.updater.turns import Turns
from edxagent.tasks import Patience, Tasks

LAST_CHANCE = 10.0
"""Seconds that a cancelled delivery may take to let go of what it holds, before the updater stops without it."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Updater(Service):
    """Hands results over, from ``startService`` until the Deferred of ``stopService`` has fired.

    The publisher, the sinks and the ledger belong to whoever made it: they run before it starts and after it stopped.

    :param name: with the purpose ``results``, what the broker's list of connections shows.
    :param reactor: provides ``IReactorTCP``, ``IReactorTime``, ``IReactorPluggableNameResolver``.
    :param wall_clock: seconds since the epoch.
    :param drain_timeout: how long a stop waits for what is under way.
    :param on_refused: see :class:`~edxagent.amqp.link.BrokerLink`.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        config: UpdaterConfig,
        broker: BrokerConfig,
        name: str,
        sinks: Mapping[str, IResultSink],
        publisher: IPublisher,
        ledger: ILedger | None,
        reactor: Any,
        wall_clock: Callable[[], float],
        drain_timeout: float,
        on_refused: Callable[[BrokerRefused], None],
    ) -> None:
        self.setName("updater")
        self._config = config
        self._broker = broker
        self._clock = reactor
        self._drain_timeout = drain_timeout
        self._lives = Tasks()
        self._taking = Tasks()
        self._consumer: tuple[Channel, str] | None = None
        self._patience = Patience(reactor)
        self._notes = Notes(ledger)
        self._link = BrokerLink(
            reactor=reactor, config=broker, purpose="results", name=name, prepare=self._prepare, on_refused=on_refused
        )
        breaker = Breaker(failures=config.breaker_failures, pause=config.breaker_pause, seconds=reactor.seconds)
        self._life = ResultLife(
            checker=ResultChecker(config),
            turns=Turns(config.concurrency),
            desk=Desk(sinks=sinks, breaker=breaker, refusal_attempts=config.refusal_attempts, notes=self._notes),
            sinks=tuple(sinks),
            retries=Retries(queue=config.queue, delays=config.retry_delays),
            publisher=ResultPublisher(publisher, config.queue, reactor),
            notes=self._notes,
            clock=reactor,
            wall_clock=wall_clock,
        )

    @property
    def consuming(self) -> bool:
        """Whether results are being taken."""
        return self._consumer is not None

    def startService(self) -> None:
        """Connect and begin to take results."""
        super().startService()
        self._patience.renew()
        self._link.startService()

    def stopService(self) -> Deferred[None]:
        """Take no more, finish what is under way, give the rest back, then close; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Cut a stop short, or the one that is about to begin: what is still under way goes back to its queue."""
        self._link.hurry()
        self._patience.hurry()

    # Stopping

    async def _stop(self) -> None:
        if not await self._patience.with_time(self._drain_timeout, Deferred.fromCoroutine(self._drain())):
            self._log.warn("{count} results go back to their queue", count=len(self._lives))
            self._lives.cancel()
            await self._patience.to_the_last(LAST_CHANCE, self._lives.when_idle())
        if not await self._patience.to_the_last(LAST_CHANCE, self._notes.when_written()):
            self._notes.cancel()
        await self._link.stopService()

    async def _drain(self) -> None:
        # A broker that doesn't answer is no reason to drain for longer, so this is a part of it.
        self._taking.cancel()
        await self._taking.when_idle()
        if self._consumer is not None:
            channel, tag = self._consumer
            self._consumer = None
            with suppress(BrokerError):
                await channel.cancel(tag)
        if self._lives:
            self._log.info("waiting for {count} results", count=len(self._lives))
        await self._lives.when_idle()

    # Taking

    async def _prepare(self, session: Session) -> None:
        """A session is up: see to the queues, then take results from it for as long as it lasts."""
        await self._ensure_topology(session)
        if self.running:
            self._taking.launch(self._take(session), "taking results")
            session.when_lost().addCallback(lambda _: self._abandon())

    def _abandon(self) -> None:
        self._taking.cancel()
        self._consumer = None

    async def _ensure_topology(self, session: Session) -> None:
        await ensure_updater_topology(session, self._broker, self._config.queue, self._config.retry_delays)

    async def _take(self, session: Session) -> None:
        """Keep a consumer; begin anew when the broker ended it, as when its queue was deleted."""
        pause = FIRST_PAUSE
        for attempt in count(1):
            began = self._clock.seconds()
            reason = await self._consume(session, again=attempt > 1)
            if self._clock.seconds() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self._log.warn(
                "no results from {queue} for now: {reason}; again in {pause:g} s",
                queue=self._config.queue,
                reason=str(reason),
                pause=pause,
            )
            await deferLater(self._clock, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _consume(self, session: Session, *, again: bool) -> BrokerError:
        """Take results until the broker ends it; returns why."""
        ended: Deferred[BrokerError] = Deferred()
        try:
            if again:
                await self._ensure_topology(session)
            channel = await session.open_channel()
            try:
                tag = await channel.consume(
                    self._config.queue, self._receive, ended.callback, prefetch=self._config.concurrency
                )
            except CancelledError:
                await channel.close()  # the consumer may have begun there
                raise
        except BrokerError as error:
            return error
        self._consumer = channel, tag
        reason = await ended
        self._consumer = None
        await channel.close()
        return reason

    def _receive(self, delivery: IDelivery) -> None:
        if self.running:
            self._lives.launch(self._life.handle(delivery), "a result's life")
        else:
            delivery.requeue()
